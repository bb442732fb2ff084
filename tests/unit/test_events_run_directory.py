"""What a run tells while it runs, and what it leaves on disk."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path

import pytest

from oblivion.config import RunConfig, load_config
from oblivion.errors import ConfigError, InputError
from oblivion.files import write_atomically
from oblivion.ledger.rounds import RoundRecord
from oblivion.run.directory import RunDirectory, to_json
from oblivion.run.events import Event, Observer, round_entry
from oblivion.types import Cost

RECORD = RoundRecord(
    branch="main",
    round=2,
    selected=("a", "b", "c"),
    accepted=("a",),
    refused={"b": "too large"},
    failed={"c": "no reply"},
    loss=1.5,
    cost=Cost(client_steps=3, tokens=40, bytes_up=5, bytes_down=6),
    seconds=0.25,
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", RunConfig(), {"version": 1})


def test_observer_tells_every_sink() -> None:
    first: list[Event] = []
    second: list[Event] = []
    observer = Observer(first.append, second.append)
    observer.event("round_started", round=2, clients=3)
    observer.round_committed(RECORD, rounds=5)
    assert first == second
    assert [e["event"] for e in first] == ["round_started", "round_committed", "update.refused", "client.failed"]
    assert first[2] | {"time": ""} == {
        "time": "",
        "event": "update.refused",
        "branch": "main",
        "round": 2,
        "client": "b",
        "reason": "too large",
    }
    assert first[3]["client"] == "c" and first[3]["reason"] == "no reply"
    assert datetime.fromisoformat(first[0]["time"]).tzinfo is not None
    assert first[1]["rounds"] == 5 and first[1] | round_entry(RECORD) == first[1]


def test_what_is_told_of_a_round_is_numbers_and_its_place() -> None:
    assert round_entry(RECORD) == {
        "branch": "main",
        "round": 2,
        "loss": 1.5,
        "scheme_error": 0.0,
        "clients": 1,
        "refused": 1,
        "failed": 1,
        "seconds": 0.25,
    }


def test_create_writes_config_and_manifest_first(tmp_path: Path) -> None:
    config = load_config(None, {"federation.rounds": 3, "federation.joins.client-1": 2})
    run = RunDirectory.create(tmp_path / "deep" / "run", config, {"loss": math.inf, "n": (1, 2)})
    assert load_config(run.root / "config.toml") == config
    assert json.loads((run.root / "manifest.json").read_text()) == {"loss": None, "n": [1, 2]}
    assert sorted(p.name for p in run.root.iterdir()) == ["config.toml", "format", "manifest.json"]


def test_open_refuses_what_is_no_run(tmp_path: Path, run: RunDirectory) -> None:
    with pytest.raises(InputError, match="not a run directory: there is no such folder"):
        RunDirectory.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.toml"):
        RunDirectory.open(tmp_path / "empty")
    opened, config = RunDirectory.open(run.root)  # whether it has learned is for the ledger to say
    assert opened.root == run.root and config == RunConfig()


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe\x00"])
def test_open_with_a_garbled_config(run: RunDirectory, content: bytes) -> None:
    (run.root / "config.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.toml"):
        RunDirectory.open(run.root)


def test_open_with_a_config_of_another_version(run: RunDirectory) -> None:
    (run.root / "config.toml").write_text("sede = 3\n")
    with pytest.raises(ConfigError, match="unknown key 'sede'; did you mean 'seed'"):
        RunDirectory.open(run.root)


def test_events_are_one_json_object_a_line(run: RunDirectory) -> None:
    run.log({"event": "x", "loss": math.nan, "text": "é\n"})
    run.log({"event": "y", "nested": {"a": [math.inf, 1]}})
    lines = (run.root / "events.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"event": "x", "loss": None, "text": "é\n"},
        {"event": "y", "nested": {"a": [None, 1]}},
    ]


def test_to_json_has_only_what_json_has() -> None:
    value = {1: math.nan, "a": (1, [2.5, -math.inf]), "b": {"c": None, "d": True}}
    text = to_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "1": None,
        "a": [1, [2.5, None]],
        "b": {"c": None, "d": True},
    }
    assert text.endswith(b"\n")


def test_read_json_of_nothing_and_of_nonsense(run: RunDirectory) -> None:
    assert run.read_json("metrics.json", {"default": 1}) == {"default": 1}
    run.write_json("a/b.json", {"x": 1})
    assert run.read_json("a/b.json", None) == {"x": 1}
    (run.root / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad\.json: not JSON"):
        run.read_json("bad.json", None)


def test_write_atomically_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two" and [p.name for p in path.parent.iterdir()] == ["file"]
