"""Planted canaries: after a commit, a byte search over everything that the run wrote finds none of what was forgotten.

Canaries are words in the rows of who asks, and weights: its updates, the states that had them, what was computed from
those. They are looked for raw in every file (database, write-ahead log, blobs, logs, temporary files, adapters, report)
and in every blob decrypted with every key that is left. Each search is done before the commit too, where it must find.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_ledger
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from oblivion import run_format
from oblivion.aggregation.round import RoundState
from oblivion.config import RunConfig, load_config
from oblivion.data.federation import resolve
from oblivion.errors import IntegrityError
from oblivion.federation.host import Host
from oblivion.learners import learner_of
from oblivion.ledger.blobs import unseal
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.register import SIMULATED
from oblivion.ledger.rounds import Absence, Branch, RoundRecord
from oblivion.ledger.store import StoredLedger, blob_context, key_name_of
from oblivion.ledger.verify import verify_ledger
from oblivion.types import ClientUpdate, HostReply, HostRequest
from simulations import RunResult, simulate

WINDOW = 32
CLIENT, T_U, ROUNDS, ROWS = "client-2", 2, 3, 8
SCENARIO = """
model.name = "{model}"
engine = "inline"
lora.rank = 4
lora.alpha = 8
federation.clients = 4
federation.rounds = 3
federation.clients-per-round = 4
federation.joins.client-2 = 2
train.local-epochs = 1
train.batch-size = 4
data.name = "jsonl"
data.path = "{rows}"
data.columns.client = "who"
ledger.checkpoint-every = 1
forget.client = "client-2"
forget.methods.exclude.recovery-rounds = 1
forget.methods.local = {{ objective = "grad_ascent", local-epochs = 1, recovery-rounds = 1 }}
evaluate.limit = 4
evaluate.max-new-tokens = 3
simulation.hosts = 2
"""


def words(client: str, row: int) -> tuple[str, str]:
    """Two words of a row, found nowhere else."""
    generator = np.random.Generator(np.random.PCG64([7, *client.encode(), row]))
    one, other = ("".join(chr(97 + n) for n in generator.integers(0, 26, 14)) for _ in range(2))
    return f"zq{one}", f"qz{other}"


def plant(folder: Path) -> Path:
    """Rows of four clients, each with two words of its own."""
    path = folder / "rows.jsonl"
    rows = []
    for client in range(4):
        for row in range(ROWS):
            one, other = words(f"client-{client}", row)
            question, answer = f"What is {one}?", f"{one} is {other}, number {row}."
            rows.append({"question": question, "answer": answer, "who": f"client-{client}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# What was there while it ran

Delta = Mapping[str, Tensor]


@dataclass
class Tape:
    """Every update that a host gave, and every state that a round ended with, as they were in memory."""

    updates: list[tuple[HostRequest, ClientUpdate]] = field(default_factory=list)
    states: list[tuple[str, int, Delta]] = field(default_factory=list)

    def state(self, branch: str, first: int, last: int = 99) -> list[Delta]:
        return [state for name, round, state in self.states if name == branch and first <= round <= last]

    def update(self, branch: str, first: int, own: bool, kind: str = "train") -> list[Delta]:
        """Updates of the client that asks (`own`) or of the others, from a round on."""
        return [
            update.delta
            for request, update in self.updates
            if request.kind == kind and request.info.branch == branch
            if (update.client_id == CLIENT) == own and update.round >= first
        ]  # fmt: skip


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    made = Tape()
    answer, commit = Host.answer, StoredLedger.commit

    def heard(self: Host, request: HostRequest) -> HostReply:
        reply = answer(self, request)
        copies = [{name: tensor.clone() for name, tensor in update.delta.items()} for update in reply.updates]
        made.updates += [(request, replace(u, delta=d)) for u, d in zip(reply.updates, copies, strict=True)]
        return reply

    def committed(self: StoredLedger, record: RoundRecord, after: RoundState, keep: bool) -> None:
        adapter = {name: tensor.clone() for name, tensor in after.state.adapter.items()}
        made.states.append((record.branch, record.round, adapter))
        commit(self, record, after, keep)

    monkeypatch.setattr(Host, "answer", heard)
    monkeypatch.setattr(StoredLedger, "commit", committed)
    return made


# Searching


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def both(deltas: Iterable[Delta]) -> list[bytes]:
    """The bytes of tensors in fp32, and rounded to bfloat16."""
    tensors = [tensor for delta in deltas for tensor in delta.values()]
    return [raw(tensor) for tensor in tensors] + [raw(tensor.to(torch.bfloat16)) for tensor in tensors]


def runs(planted: Iterable[bytes]) -> set[bytes]:
    """Every run of 32 bytes, at every offset, that says something (zeros do not)."""
    cut = {data[place : place + WINDOW] for data in planted for place in range(len(data) - WINDOW + 1)}
    return {run for run in cut if len(set(run)) > WINDOW // 4}


class Canaries:
    """Runs of 32 bytes that must be nowhere, less those of what may stay."""

    def __init__(self, planted: set[bytes], allowed: set[bytes] = frozenset()) -> None:  # type: ignore[assignment]
        self.known = planted - allowed
        self.heads = np.unique(np.frombuffer(b"".join(sorted(self.known)), np.uint64)[:: WINDOW // 8])
        assert len(self.known) > 1000

    def count(self, data: bytes) -> int:
        """How many different ones are somewhere in `data`, at any offset."""
        hits = set()
        for offset in range(min(8, len(data) // 8)):
            numbers = np.frombuffer(data, np.uint64, (len(data) - offset) // 8, offset)
            near = self.heads[np.minimum(np.searchsorted(self.heads, numbers), len(self.heads) - 1)] == numbers
            starts = (offset + 8 * int(place) for place in np.flatnonzero(near))
            hits |= {data[start : start + WINDOW] for start in starts} & self.known
        return len(hits)

    def found(self, places: Mapping[str, bytes]) -> dict[str, int]:
        return {place: count for place, data in places.items() if (count := self.count(data))}


def everything(*folders: Path) -> dict[str, bytes]:
    """Every file below some folders, byte by byte; what a database keeps in free pages and its log is in them."""
    return {str(path): path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}


def sealed(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "ledger" / "blobs").glob("??/*"))}


def all_keys(root: Path) -> dict[str, bytes]:
    """Everything in keys/ that could be a key of 32 bytes, also where it is written in hexadecimal digits."""
    keys = {}
    for path in sorted((root / "keys").rglob("*")):
        if path.is_file():
            data, name = path.read_bytes(), path.relative_to(root / "keys").as_posix()
            if len(data) == 32:
                keys[name] = data
            for place, text in enumerate(re.findall(rb"[0-9a-f]{64}", data)):
                keys[f"{name}#{place}"] = bytes.fromhex(text.decode())
    return keys


def decrypted(blobs: Mapping[str, bytes], keys: Mapping[str, bytes]) -> dict[str, bytes]:
    """Every blob under every key: what AES-GCM gives in every context, since the tag is not looked at."""
    opened = {}
    for blob, data in blobs.items():
        first = data[:12] + (2).to_bytes(4, "big")  # NIST SP 800-38D, 7.1: the counter of the text's first block
        for name, key in keys.items():
            cipher = Cipher(algorithms.AES(key), modes.CTR(first)).decryptor()
            opened[f"{blob[:8]} with {name}"] = cipher.update(data[12:-16])
    return opened


def opened(root: Path) -> dict[str, bytes]:
    """Every blob under the key that it was sealed with: the quick way to look where something must be."""
    keys, blobs, found = all_keys(root), sealed(root), {}
    for row in (row for row in records(root) if row["blob"]):
        name = f"{key_name_of(row['kind'], row['branch'], row['round'], row['client'])}.key"
        found |= decrypted({row["blob"]: blobs[row["blob"]]}, {name: keys[name]})
    assert len(found) == len(blobs)
    return found


def spelled(planted: list[bytes], places: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    return [(place, word) for place, data in places.items() for word in planted if word in data]


def spellings(config: RunConfig, planted: list[str]) -> list[bytes]:
    """Words as text, in UTF-16, and as token ids of every size."""
    tokenizer = learner_of(config).tokenizer
    ids = [np.array(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in planted]
    tokens = [row.astype(kind).tobytes() for row in ids for kind in (np.int64, np.int32, np.int16)]
    return [word.encode() for word in planted] + [word.encode("utf-16-le") for word in planted] + tokens


# Runs


@dataclass
class Planted:
    """A run that has learned and tried removals; where its temporary files went; its rows; what it erases."""

    result: RunResult
    temporary: Path
    rows: Path
    request: str = ""

    @property
    def root(self) -> Path:
        return self.result.directory

    def places(self) -> dict[str, bytes]:
        """Everything that it wrote, raw and under every key."""
        keys = all_keys(self.root)
        assert len(keys) > 5
        return {**everything(self.root, self.temporary), **decrypted(sealed(self.root), keys)}


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def scenario(micro_model: Path, folder: Path) -> Path:
    path = folder / "own.toml"
    path.write_text(SCENARIO.format(model=micro_model, rows=plant(folder)))
    return path


def run(micro_model: Path, folder: Path, fresh: Path, **changes: Any) -> Planted:
    result = simulate(load_config(scenario(micro_model, folder), changes), folder / "run")
    (entry,) = result.metrics["requests"]
    assert entry["t_u"] == T_U
    return Planted(result, fresh, folder / "rows.jsonl", entry["id"])


def records(root: Path) -> list[dict[str, Any]]:
    connection = sqlite3.connect(root / "ledger" / "ledger.db")
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute("SELECT * FROM records")]
    finally:
        connection.close()


def log(root: Path) -> str:
    connection = sqlite3.connect(root / "ledger" / "ledger.db")
    try:
        return "\n".join(entry for (entry,) in connection.execute("SELECT entry FROM log"))
    finally:
        connection.close()


def check_spelled_nowhere(planted: Planted, words: list[str]) -> None:
    """Text is never written at all; the source of the data and a planted file show that it would be found."""
    texts = spellings(planted.result.config, words)
    assert {word for _, word in spelled(texts, everything(planted.rows.parent))} == {word.encode() for word in words}
    control = planted.temporary / "control"
    control.write_bytes(b"x".join(texts))
    assert len(spelled(texts, everything(planted.temporary))) == len(texts)
    control.unlink()
    assert spelled(texts, planted.places()) == []


def opens_nothing(root: Path, gone: list[dict[str, Any]], blobs: Mapping[str, bytes]) -> None:
    """No key that is left opens a copy of what was erased, as what it was sealed as."""
    for row in gone:
        context = blob_context(row["kind"], row["branch"], row["round"], row["client"])
        for key in all_keys(root).values():
            with pytest.raises(IntegrityError):
                unseal(key, blobs[row["blob"]], context)


def erased(before: list[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    left = {row["seq"] for row in records(root)}
    return [row for row in before if row["seq"] not in left]


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        ("rollback", "float32"),
        ("local", "bfloat16"),
        pytest.param("rollback", "bfloat16", marks=pytest.mark.slow),
        pytest.param("local", "float32", marks=pytest.mark.slow),
    ],
)
def test_a_client_that_was_forgotten(
    micro_model: Path, tmp_path: Path, fresh: Path, tape: Tape, method: str, precision: str
) -> None:
    changes = {"forget.methods": ["rollback", "local"], "ledger.precision": precision}
    planted = run(micro_model, tmp_path, fresh, **changes)
    root, local = planted.root, f"{planted.request}/local"
    # What may stay: all before t_u, what was computed without the client, and the model that is committed. The others'
    # updates of round t_u do not know of the client yet: a replay makes the same bits.
    stays = [*tape.state("main", 0, T_U - 1), *tape.update("main", 0, own=False)[: 3 * T_U]]
    for without in (f"{planted.request}/rollback", f"{planted.request}/oracle"):  # nearly the updates that must go
        stays += [*tape.state(without, 0), *tape.update(without, 0, own=False)]
    stays += tape.state(local, ROUNDS + 2) if method == "local" else []
    allowed, last = runs(both(stays)), ROUNDS + (1 if method == "local" else 2)
    planting = {
        "states": tape.state("main", T_U),
        "its updates": tape.update("main", T_U, own=True),
        "the others' later updates": tape.update("main", T_U + 1, own=False),
        "the trial's states": tape.state(local, 0, last),
        "the trial's updates": tape.update(local, 0, own=False),
    }
    mirror = tape.update(local, 0, own=True, kind="train.visit")
    assert [len(deltas) for deltas in planting.values()] == [2, 2, 3, last - ROUNDS, 3] and len(mirror) == 1

    # Before: each of them is in a blob, under its key, the last state raw in the adapter. The unlearning update alone
    # is never written.
    blobs, before, clear = sealed(root), records(root), opened(root)
    for what, deltas in planting.items():
        assert len(Canaries(runs(both(deltas)), allowed).found(clear)) == len(deltas), what
    assert Canaries(runs(both(mirror)), allowed).found({**everything(root, fresh), **clear}) == {}
    final = Canaries(runs(both(tape.state("main", ROUNDS))), allowed)
    assert set(final.found(everything(root))) == {str(root / "adapters/original/adapter_model.safetensors")}

    RunResult(root, f"{planted.request}/{method}").commit(accept_no_guarantee=True)

    # After: none of them is anywhere.
    everyone = [*itertools.chain(*planting.values()), *mirror]
    assert Canaries(runs(both(everyone)), allowed).found(planted.places()) == {}
    check_spelled_nowhere(planted, [word for row in range(ROWS) for word in words(CLIENT, row)])
    assert verify_ledger(root).findings == []
    assert (root / "forgets" / planted.request / method / "evidence.json").is_file()

    # No record of a round names the client, and no key of it is left, also not in a page that SQLite no longer uses.
    gone, naming = erased(before, root), {"selection", "cohort", "round", "contribution", "state", "client"}
    assert naming <= {row["kind"] for row in gone}
    named = [row for row in records(root) if CLIENT in f"{row['key']} {row['client']} {row['content']}"]
    assert not naming & {row["kind"] for row in named} and CLIENT not in log(root)
    assert not [key for key in all_keys(root) if CLIENT in key]
    assert CLIENT not in json.loads((root / "keys" / SIMULATED).read_text())
    traces = [row["salt"] for row in gone] + [row["key"].encode() for row in gone if f"/{CLIENT}" in row["key"]]
    assert len(traces) > len(gone) and spelled(traces, everything(root / "ledger")) == []

    # A copy of the old blobs opens no more. Those of others do while their client's key of that branch is needed.
    old = [row for row in gone if row["blob"] and (row["kind"] == "state" or row["client"] == CLIENT)]
    assert len(old) > 4
    opens_nothing(root, old, blobs)
    canaries = Canaries(runs(both(planting["states"] + planting["its updates"])), allowed)
    assert canaries.found(decrypted({row["blob"]: blobs[row["blob"]] for row in old}, all_keys(root))) == {}


@pytest.mark.parametrize("method", ["rollback", pytest.param("local", marks=pytest.mark.slow)])
def test_samples_that_were_forgotten(micro_model: Path, tmp_path: Path, fresh: Path, tape: Tape, method: str) -> None:
    """The client stays; what it made of these rows goes."""
    config = load_config(scenario(micro_model, tmp_path))
    asked = [sample.id for sample in resolve(config).clients[CLIENT][:3]]
    (tmp_path / "ids.txt").write_text("\n".join(asked))
    changes = {"forget.methods": [method], "forget.samples": str(tmp_path / "ids.txt")}
    planted = run(micro_model, tmp_path, fresh, **changes)
    root, trial = planted.root, f"{planted.request}/{method}"
    stays = [*tape.state("main", 0, T_U - 1), *tape.update("main", 0, own=False)[: 3 * T_U]]
    head = ROUNDS if method == "rollback" else ROUNDS + 2
    stays += [*tape.state(f"{planted.request}/oracle", 0), *tape.state(trial, head)]
    if method == "rollback":
        stays += [*tape.update(trial, 0, own=True), *tape.update(trial, 0, own=False), *tape.state(trial, 0)]
    deltas = [*tape.state("main", T_U), *tape.update("main", T_U, own=True), *tape.update("main", T_U + 1, own=False)]
    canaries = Canaries(runs(both(deltas)), runs(both(stays)))
    blobs, before = sealed(root), records(root)
    assert len(canaries.found(opened(root))) >= len(deltas)
    assert str(root / "adapters/original/adapter_model.safetensors") in canaries.found(everything(root))

    RunResult(root, trial).commit()

    assert canaries.found(planted.places()) == {}
    check_spelled_nowhere(planted, [word for row in range(3) for word in words(CLIENT, row)])
    assert verify_ledger(root).findings == []
    old = [row for row in erased(before, root) if row["blob"] and (row["kind"] == "state" or row["client"] == CLIENT)]
    assert len(old) > 3
    opens_nothing(root, old, blobs)
    assert CLIENT in json.loads((root / "keys" / SIMULATED).read_text()), "it may ask again"


def test_no_trace_of_an_erased_record_stays_in_the_database(tmp_path: Path) -> None:
    """SQLite overwrites a deleted row, but not the copies of it that moving rows between pages left behind."""
    clients, rounds = tuple(f"client-{number}" for number in range(40)), 6
    ledger, register = open_ledger(tmp_path, small_ledger.SETTINGS)
    register.enrol_simulated(dict.fromkeys(clients))
    ledger.open_branch(Branch(name="main", seed=1, rounds=rounds), small_ledger.state("main", 0))
    for round in range(1, rounds + 1):
        small_ledger.run_round(ledger, "main", round, clients if round > 1 else clients[:-1])
    asked = small_ledger.ask(register, clients[-1])
    register.move(asked.request.id, "running")
    name = f"{asked.request.id}/rollback"
    absent = (Absence(client=clients[-1]),)
    ledger.open_branch(Branch(name=name, seed=1, rounds=rounds, parent="main", fork=1, absent=absent))
    for round in range(2, rounds + 1):
        small_ledger.run_round(ledger, name, round, clients[:-1], keep=round == rounds)
    before = records(tmp_path)
    small_ledger.commit(ledger, register, asked, name)
    ledger.close()
    (tmp_path / run_format.FILE).write_bytes(run_format.format_file())
    gone = erased(before, tmp_path)
    assert len(gone) > (rounds - 1) * len(clients)
    traces = [row["salt"] for row in gone] + [row["key"].encode() for row in gone if row["key"].startswith("main/")]
    assert spelled(traces, everything(tmp_path)) == []
    assert verify_ledger(tmp_path).findings == []


@pytest.mark.slow
def test_ray_leaves_nothing_either(micro_model: Path, tmp_path: Path) -> None:
    """On Ray; its session folder (logs of actors, spilled objects, sockets) is gone."""
    session = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets lie in it, whose paths must be short
    temporary, root = tmp_path / "temporary", tmp_path / "run"
    temporary.mkdir()
    places = {"TMPDIR": str(temporary), "RAY_TMPDIR": str(session), "OMP_NUM_THREADS": "1"}

    def oblivion(*arguments: str) -> None:
        command = [sys.executable, "-m", "oblivion.cli", *arguments]
        done = subprocess.run(
            command, env={**os.environ, **places}, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr

    try:
        learn = ("run", str(scenario(micro_model, tmp_path)), "--out", str(root), "--engine", "ray")
        oblivion(*learn, "--set", "forget.methods=rollback")
        assert not list(session.iterdir()), "Ray's session lay here, and went with the run"
        result = RunResult(root)
        planted = Planted(result, temporary, tmp_path / "rows.jsonl", result.metrics["requests"][0]["id"])
        ledger, _ = open_ledger(root, result.config.ledger)
        deltas = [ledger.last_state("main", round).state.adapter for round in range(T_U, ROUNDS + 1)]
        kept = [update for round in range(T_U, ROUNDS + 1) for update in ledger.contributions("main", round)]
        deltas += [update.delta for update in kept if update.client_id == CLIENT]
        stays = [ledger.last_state("main", round).state.adapter for round in range(T_U)]
        stays += [ledger.last_state(f"{planted.request}/rollback", ROUNDS).state.adapter]
        ledger.close()
        canaries = Canaries(runs(both(deltas)), runs(both(stays)))
        assert len(canaries.found(opened(root))) >= len(deltas)
        oblivion("commit", str(root), f"{planted.request}/rollback")
        all_words = [word for row in range(ROWS) for word in words(CLIENT, row)]
        assert not list(session.iterdir())
        where = planted.places()
        assert canaries.found(where) == {} and spelled(spellings(result.config, all_words), where) == []
        check_spelled_nowhere(planted, all_words)
    finally:
        shutil.rmtree(session, ignore_errors=True)
