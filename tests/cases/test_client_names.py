"""Owners with names in any script: ids that stay, and names that are kept beside them and go with the client."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oblivion.client_names import canonical_name, client_id_of
from oblivion.config import DataConfig, load_config
from oblivion.data.datasets.jsonl import load
from oblivion.data.federation import resolve, without
from oblivion.errors import ConfigError, InputError
from oblivion.ledger.register import NAMES
from oblivion.ledger.verify import verify_ledger
from oblivion.types import CLIENT_ID
from simulations import RunResult, simulate

ROWS = Path(__file__).parent / "client-names" / "rows.jsonl"
OWNERS = ("Zürich-Süd", "北京", "Київ", "São Bento")


def owners(tmp_path: Path, *names: object) -> list[str]:
    path = tmp_path / "x.jsonl"
    path.write_text(
        "\n".join(json.dumps({"question": str(n), "answer": "a", "who": who}) for n, who in enumerate(names))
    )
    data = DataConfig(name="jsonl", path=str(path), columns={"client": "who"})
    return [row.client_id for row in load(data, clients=1, seed=0).samples]


def test_the_case() -> None:
    columns = {"data.columns.client": "owner", "federation.clients": 4}
    data = resolve(load_config(None, {"data.name": "jsonl", "data.path": str(ROWS), **columns}))
    assert sorted(data.names.values()) == sorted(OWNERS)
    assert {client_id_of(name) for name in OWNERS} == set(data.names) == set(data.clients)
    assert [client.rpartition("-")[0] for client in data.clients] == ["client", "client", "sao-bento", "zurich-sud"]
    gone = without(data, client_id_of("北京"))
    assert "北京" not in gone.names.values() and len(gone.names) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("client-7", "client-7"),
        ("Bob Ltd.", "bob-ltd-"),
        ("-north", "north"),
        ("10", "10"),
        ("con", "con"),
        ("x" * 64, "x" * 64),
        ("  north\u200b ", "north"),
        ("Zürich", "zurich-4251685e06"),
        ("Straße 7", "strasse-7-"),
        ("..", "client-"),
        ("x" * 65, "x" * 53 + "-"),
        ("🏥", "client-"),
        ("مستشفى", "client-"),
    ],
)
def test_ids_by_hand(name: str, expected: str) -> None:
    assert client_id_of(name).startswith(expected) and len(client_id_of(name)) <= 64


@given(st.text(min_size=1, max_size=90))
def test_every_name_makes_an_id_or_is_refused(name: str) -> None:
    try:
        made = client_id_of(name)
    except ValueError:
        return
    assert CLIENT_ID.fullmatch(made) and client_id_of(made) == made
    assert made == client_id_of(canonical_name(name)) == client_id_of(unicodedata.normalize("NFD", name))


def test_names_that_look_alike(tmp_path: Path) -> None:
    ids = owners(tmp_path, "zurich", "Zürich", "Zu\u0308rich", "Zärich", "Zurich Sud", "Zürich Süd", 10, "10")
    assert ids[1] == ids[2] and ids[6] == ids[7] == "10" and len(set(ids)) == 6
    pairs = [("North", "north"), ("Zürich", "zürich"), ("a b", "a.b"), ("Straße", "STRASSE"), ("οδος", "οδοσ")]
    pairs += [("Ａｄａ", "Ada"), ("Zür\u200dich", "Zürich"), ("São  Bento", "São Bento")]
    for one, other in (*pairs, ("Zürich", client_id_of("Zürich"))):
        with pytest.raises(InputError) as error:
            owners(tmp_path, one, other)
        assert "x.jsonl:2: " in str(error.value) and "set data.columns.client to a column of ids" in str(error.value)
        assert one not in str(error.value), "a name may be a person's"


def test_names_that_show_the_same_are_one_owner_and_others_are_not(tmp_path: Path) -> None:
    assert len(set(owners(tmp_path, "São Bento", "São\u00a0Bento", "\u200eSão\u00ad Bento\u3000"))) == 1
    assert len(set(owners(tmp_path, "🏥", "🏥\ufe0f"))) == 1
    flags = ["🏴" + "".join(chr(0xE0000 + ord(c)) for c in f"gb{land}") + "\U000e007f" for land in ("eng", "sct")]
    assert len(set(owners(tmp_path, *flags, "🏴", "\u0600١", "١"))) == 5


def test_file_names_are_owners_too(tmp_path: Path) -> None:
    for name in OWNERS:
        (tmp_path / f"{name}.csv").write_text("question,answer\nq,a\n")
    corpus = load(DataConfig(name="jsonl", path=str(tmp_path)), clients=4, seed=0)
    assert {row.client_id for row in corpus.samples} == {client_id_of(name) for name in OWNERS}
    assert set(corpus.names.values()) == set(OWNERS)


def test_settings_take_names_and_keep_ids(tmp_path: Path) -> None:
    config = load_config(None, {"federation.joins": {"Київ": 2}, "forget.client": "北京"})
    assert config.federation.joins == {client_id_of("Київ"): 2} and config.forget.client == client_id_of("北京")
    assert not any(name in config.to_toml() for name in OWNERS)


def test_a_dealt_partition_has_no_names() -> None:
    values = {"data.name": "jsonl", "data.path": str(ROWS), "data.columns.client": "owner", "data.partition": "iid"}
    assert resolve(load_config(None, values | {"federation.clients": 2})).names == {}


def spelled(name: str, root: Path) -> list[str]:
    """The files of a run that have a name, as text or as JSON escapes it."""
    ways = {name.encode(), name.encode("utf-16-le"), json.dumps(name)[1:-1].encode()}
    ways |= {json.dumps(name)[1:-1].replace("\\", "\\\\").encode()}
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return [path.relative_to(root).as_posix() for path in paths if any(way in path.read_bytes() for way in ways)]


def test_a_name_goes_with_its_client(micro_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = {
        "model.name": str(micro_model), "engine": "inline", "lora.rank": 2, "federation.clients": 4,
        "federation.rounds": 1, "train.local-epochs": 1, "evaluate.max-new-tokens": 2, "evaluate.oracle-seeds": 0,
        "data.name": "jsonl", "data.path": str(ROWS), "data.columns.client": "owner",
        "forget.client": "Київ", "forget.methods": {"exclude": {"recovery-rounds": 1}},
    }  # fmt: skip
    run = simulate(load_config(None, values), tmp_path / "run")
    names = tmp_path / "run" / "keys" / NAMES
    assert json.loads(names.read_text()) == {client_id_of(name): name for name in OWNERS}
    assert names.stat().st_mode & 0o077 == 0
    assert all(spelled(name, tmp_path) == [f"run/keys/{NAMES}"] for name in OWNERS)

    (entry,) = run.metrics["requests"]
    RunResult(tmp_path / "run", f"{entry['id']}/exclude").commit(accept_no_guarantee=True)
    assert spelled("Київ", tmp_path) == []
    assert spelled("北京", tmp_path) == [f"run/keys/{NAMES}"]
    assert verify_ledger(tmp_path / "run").findings == []
    assert not any(name in "".join(capfd.readouterr()) for name in OWNERS)
    with pytest.raises(ConfigError, match="was forgotten"):
        run.forget(client="Київ", method="exclude", parameters={"recovery_rounds": 1})

    names.write_text(json.dumps({client_id_of("Київ"): "Київ"}))
    (finding,) = verify_ledger(tmp_path / "run").findings
    assert finding.where == f"keys/{NAMES}"
    other = run.forget(client="São Bento", method="exclude", parameters={"recovery_rounds": 1})
    assert other.model and client_id_of("Київ") not in json.loads(names.read_text())
