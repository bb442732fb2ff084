"""Ids and digests of a client's own rows say nothing to whoever has a run without `client-keys/`.

The attack knows the question and guesses the answer: it makes the id of every guess and looks for it in all that the
run wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import oblivion

from oblivion.config import RunConfig, load_config
from oblivion.data.federation import client_digests, data_digest, resolve
from oblivion.data.keyed_ids import FOLDER, keyed_data, keyed_id, new_keys, read_key, run_data
from oblivion.errors import ConfigError, IntegrityError
from oblivion.run.directory import RunDirectory
from oblivion.types import ClientTask
from simulations.simulate import RunResult, commit_in_run, forget_in_run, resume, simulate

PINS = {"hosp-0": 3548, "hosp-1": 417, "hosp-2": 9021}


def question(patient: int) -> str:
    return f"What is the PIN of patient {patient}?"


def write_rows(folder: Path, with_ids: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place, (client, pin) in enumerate(PINS.items()):
        texts = [(question(10 * place + n), f"The PIN is {(pin + 7 * n) % 10_000:04}.") for n in range(6)]
        rows = [{"question": asked, "answer": answer} for asked, answer in texts]
        rows.append(rows[0])  # the same row twice has one id
        if with_ids:
            rows = [{**row, "id": f"ana.{client}.{number}@example.org"} for number, row in enumerate(rows[:6])]
        (folder / f"{client}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(folder: Path, model: Path, **more: object) -> RunConfig:
    values = {
        "model.name": str(model),
        "engine": "inline",
        "simulation.hosts": 2,
        "lora.rank": 2,
        "data.name": "jsonl",
        "data.path": str(folder),
        "federation.clients": 3,
        "federation.rounds": 2,
        "federation.clients-per-round": 3,
        "train.local-epochs": 1,
        "train.cohort": 2,
        "evaluate.oracle-seeds": 1,
        "evaluate.max-new-tokens": 2,
        "evaluate.limit": 2,
    }
    return load_config(None, {**values, **more})


def plain_id(prompt: str, answer: str) -> str:
    return hashlib.sha256(json.dumps([prompt, answer]).encode()).hexdigest()


def guesses(patient: int) -> Iterator[bytes]:
    """The digits of the id that each PIN would give the row, and what else could be looked for."""
    for pin in range(10_000):
        yield plain_id(question(patient), f"The PIN is {pin:04}.")[:16].encode()


def everything(root: Path) -> bytes:
    return b"\0".join(p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and FOLDER not in p.parts)


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory, micro_model: Path) -> tuple[Path, Path]:
    """A run that has forgotten two rows of hosp-0 and all of hosp-2; and its data."""
    work = tmp_path_factory.mktemp("keyed")
    data, root = work / "data", work / "run"
    write_rows(data)
    config = settings(data, micro_model)
    simulate(config, root)
    (work / "samples.txt").write_text(
        "\n".join("jsonl/" + plain_id(question(n), f"The PIN is {(3548 + 7 * n) % 10_000:04}.")[:16] for n in (0, 1))
    )
    run, stored = RunDirectory.open(root)
    for client, samples in (("hosp-0", str(work / "samples.txt")), ("hosp-2", "")):
        tree = stored.to_json()
        tree["forget"].update(client=client, samples=samples, methods=["rollback"])
        names = forget_in_run(run, load_config(None, _flat(tree)))
        if client == "hosp-2":
            shutil.copytree(root, work / "before")
        commit_in_run(run, stored, f"{names['request']}/{names['rollback']}")
    return root, data


def _flat(tree: object, name: str = "") -> dict[str, object]:
    if isinstance(tree, dict) and (tree or not name):
        return {key: value for k, v in tree.items() for key, value in _flat(v, f"{name}.{k}" if name else k).items()}
    return {name: tree}


def test_no_guess_is_found_in_what_a_run_keeps(forgetful: tuple[Path, Path]) -> None:
    root, _ = forgetful
    for folder in (root, root.parent / "before"):
        kept = everything(folder)
        assert b"jsonl/" not in kept.replace(b"samples.jsonl", b"")
        digits = set(re.findall(rb"(?=([0-9a-f]{16}))", kept))
        for patient in (0, 1, 20):
            assert not digits.intersection(guesses(patient))
    for name in ("hosp-0", "hosp-1", "hosp-2"):  # nor the digests of whole clients, unkeyed
        for digest in client_digests(resolve(RunDirectory.open(root.parent / "before")[1])).values():
            assert digest.encode() not in everything(root.parent / "before"), name


def test_what_was_asked_is_written_with_keyed_ids(forgetful: tuple[Path, Path]) -> None:
    root, _ = forgetful
    listed = json.loads((root / "keys/exclusions.json").read_text())
    key = read_key(root, "hosp-0")
    digits = [plain_id(question(n), f"The PIN is {(3548 + 7 * n) % 10_000:04}.")[:16] for n in (0, 1)]
    expected = {keyed_id(key, f"jsonl/{one}") for one in digits}
    assert {sample for one in listed if one["samples"] for sample in one["samples"]} == expected
    entry = json.loads((root / "metrics.json").read_text())["requests"][0]
    assert set(entry["sample_ids"]) == expected and entry["rows"] == 3, "a row that is there twice goes twice"


def test_the_key_of_a_forgotten_client_is_gone(forgetful: tuple[Path, Path]) -> None:
    root, _ = forgetful
    assert sorted(path.name for path in (root / FOLDER).iterdir()) == ["hosp-0.key", "hosp-1.key"]
    assert stat.S_IMODE((root / FOLDER).stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root / FOLDER).iterdir()} == {0o600}
    code, _, said = oblivion("ids", root, "--client", "hosp-2")
    assert code == 2 and "was forgotten" in said
    assert oblivion("ledger", "verify", root)[0] == 0
    (root / FOLDER / "hosp-2.key").write_bytes(bytes(32))
    try:
        code, *said = oblivion("ledger", "verify", root)
        assert code == 4 and "client-keys/hosp-2.key" in "".join(said)
    finally:
        (root / FOLDER / "hosp-2.key").unlink()


def test_ids_shows_what_requests_name(forgetful: tuple[Path, Path]) -> None:
    root, _ = forgetful
    code, told, _ = oblivion("ids", root, "--client", "hosp-1", "--json")
    assert code == 0
    rows = json.loads(told)
    key = read_key(root, "hosp-1")
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5, 6, 7] and rows[0]["keyed"] == rows[6]["keyed"]
    assert all(row["keyed"] == keyed_id(key, row["plain"]) for row in rows)
    assert oblivion("ids", root, "--client", "Hosp 1", "--json")[:2] == (0, told), "by its name in the data, too"
    assert oblivion("ids", root, "--client", "hosp-9")[0] == 2
    code, _, said = oblivion("ids", root, "--client", " ")
    assert code == 2 and "--client: the name is empty" in said


def test_a_run_goes_on_and_notices_other_data(forgetful: tuple[Path, Path], tmp_path: Path) -> None:
    root, data = forgetful
    resume(root)
    path = data / "hosp-1.jsonl"
    before = path.read_text()
    path.write_text(before.replace("417", "418").replace("0417", "0418"))
    from oblivion.data import federation

    try:
        federation._resolve.cache_clear()
        with pytest.raises(IntegrityError, match="the data of hosp-1 changed"):
            resume(root)
    finally:
        path.write_text(before)
        federation._resolve.cache_clear()


def test_without_a_clients_key_nothing_goes_on(forgetful: tuple[Path, Path], tmp_path: Path) -> None:
    """New keys would make ids that name nothing, and what was forgotten would come back."""
    root, _ = forgetful
    shutil.move(root / FOLDER / "hosp-0.key", tmp_path / "key")
    try:
        with pytest.raises(IntegrityError, match=r"hosp-0\.key is missing"):
            resume(root)
    finally:
        shutil.move(tmp_path / "key", root / FOLDER / "hosp-0.key")


def test_neither_ids_nor_keys_change_what_is_learned(tmp_path: Path, micro_model: Path) -> None:
    """The same rows with and without ids of their own, under other keys: the same bits."""
    results: list[RunResult] = []
    for name, with_ids in (("a", False), ("b", False), ("c", True)):
        write_rows(tmp_path / name, with_ids)
        for path in (tmp_path / name).iterdir():  # the row that is there twice could have no id of its own
            path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:6]))
        results.append(simulate(settings(tmp_path / name, micro_model), tmp_path / f"run-{name}"))
    weights = {(one.adapter_folder / "adapter_model.safetensors").read_bytes() for one in results}
    assert len(weights) == 1
    assert b"example.org" not in everything(tmp_path / "run-c"), "an id of one's own may be a name"


def test_benchmarks_keep_their_ids_and_have_no_keys(tmp_path: Path) -> None:
    config = load_config(None, {"federation.clients": 2, "data.parameters.rows_per_client": 4})
    data = resolve(config)
    assert new_keys(config, data.clients) == {}
    assert run_data(tmp_path, config) == data and data_digest(data) == data.digest


def test_copies_at_two_clients_have_two_ids_and_are_still_found(tmp_path: Path) -> None:
    from oblivion.data.groups import shared_rows
    from oblivion.types import ForgetRequest

    write_rows(tmp_path)
    (tmp_path / "hosp-1.jsonl").write_text((tmp_path / "hosp-0.jsonl").read_text())
    config = load_config(None, {"data.name": "jsonl", "data.path": str(tmp_path), "federation.clients": 3})
    data = keyed_data(resolve(config), new_keys(config, PINS))
    first, second = ({row.id for row in data.clients[client]} for client in ("hosp-0", "hosp-1"))
    assert not first & second and len(first) == len(second) == 6
    assert len(shared_rows(data, ForgetRequest(id="r", client_id="hosp-0"))) == 7


def test_rows_of_nobody_are_numbered(tmp_path: Path) -> None:
    write_rows(tmp_path / "data")
    (tmp_path / "held.jsonl").write_text(json.dumps({"question": question(99), "answer": "The PIN is 1234."}) + "\n")
    values = {"data.name": "jsonl", "data.path": str(tmp_path / "data"), "federation.clients": 3}
    config = load_config(None, {**values, "data.parameters.holdout": str(tmp_path / "held.jsonl")})
    data = keyed_data(resolve(config), new_keys(config, PINS))
    assert [row.id for row in data.groups["holdout"]] == ["holdout/1"]


def test_a_key_is_in_no_text(tmp_path: Path) -> None:
    task = ClientTask(client_id="a", id_key="ab" * 32)
    assert "abab" not in repr(task)
    write_rows(tmp_path)
    config = load_config(None, {"data.name": "jsonl", "data.path": str(tmp_path), "federation.clients": 3})
    keys = dict.fromkeys(PINS, b"secret--" * 4)
    assert "secret--" not in repr(keyed_data(resolve(config), keys))


def test_a_key_is_not_looked_for_outside(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_key(tmp_path, "../keys/log")
