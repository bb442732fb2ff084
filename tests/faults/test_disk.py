"""A disk that is full, a directory that is taken, files that were cut: nothing is lost and the message helps."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from oblivion.aggregation.gate import GateState
from oblivion.config import RunConfig
from oblivion.errors import ConfigError, InputError, OblivionError
from oblivion.files import write_atomically
from oblivion.ledger.memory import RoundRecord, RoundState
from oblivion.types import GlobalState
from server.run_directory import RunDirectory


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["fsync", "replace", "open", "mkdir"])
def test_a_full_disk_leaves_the_old_file_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path if where in ("open", "mkdir") else os, where, full)
    with pytest.raises(OblivionError, match="No space left on device; free some space or choose another --out") as e:
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert str(path) in str(e.value) and e.value.exit_code == 1
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_up_in_the_middle_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    original = Path.open

    def short(self: Path, *arguments: Any, **options: Any) -> Any:
        file = original(self, *arguments, **options)

        class Full:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                file.write(data[: len(data) // 2])
                full()

        return Full()

    monkeypatch.setattr(Path, "open", short)
    with pytest.raises(OblivionError, match="No space left"):
        write_atomically(path, b"new and longer")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_path_that_goes_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OblivionError, match="could not be written"):
        write_atomically(tmp_path / "file" / "below", b"new")


@pytest.mark.parametrize("kind", ["empty", "full", "file"])
def test_an_existing_run_directory_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "run"
    if kind == "file":
        root.write_text("mine")
    else:
        root.mkdir()
        if kind == "full":
            (root / "config.toml").write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="exists already; choose another --out") as caught:
        RunDirectory.create(root, RunConfig(), {})
    assert caught.value.exit_code == 2
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory.create(tmp_path / "run", RunConfig(), {})
    state = GlobalState(adapter={"x": torch.arange(64.0)})
    made.save_head(
        RoundState(round=1, state=state, rule_state={"m/x": torch.ones(2)}, gate_state=GateState()),
        [RoundRecord(branch="main", round=1, selected=("a",), accepted=("a",), loss=1.0)],
    )
    return made


def rounds(change: Any) -> bytes:
    value = {
        "round": 1,
        "norms": [],
        "records": [
            {"branch": "main", "round": 1, "selected": ["a"], "accepted": ["a"], "refused": {}, "failed": {},
             "loss": 1.0, "cost": {"client_steps": 0, "tokens": 0, "bytes_up": 0, "bytes_down": 0}}
        ],
    }  # fmt: skip
    change(value)
    return json.dumps(value).encode()


def drop(key: str) -> Any:
    return lambda value: value.pop(key)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        rounds(drop("records")),
        rounds(drop("norms")),
        rounds(lambda v: v.update(records=[3])),
        rounds(lambda v: v.update(records=["text"])),
        rounds(lambda v: v["records"][0].pop("selected")),
        rounds(lambda v: v["records"][0].update(surplus=1)),
        rounds(lambda v: v["records"][0].update(cost=None)),
        rounds(lambda v: v.update(norms=[[["a"]]])),
        rounds(lambda v: v.update(round=None)),
    ],
)
def test_garbled_rounds_are_an_input_error(run: RunDirectory, content: bytes) -> None:
    (run.root / "ledger/rounds.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        run.load_head()
    assert str(run.root) in str(caught.value) and caught.value.exit_code == 3


def test_the_unchanged_file_is_read(run: RunDirectory) -> None:
    (run.root / "ledger/rounds.json").write_bytes(rounds(lambda value: None))
    head, records = run.load_head()
    assert head.round == 1 and len(records) == 1 and torch.equal(head.state.adapter["x"], torch.arange(64.0))


@pytest.mark.parametrize("size", [0, 4, 40, 200])
def test_truncated_state_is_an_input_error(run: RunDirectory, size: int) -> None:
    path = run.root / "ledger/head.safetensors"
    data = path.read_bytes()
    assert size < len(data)
    path.write_bytes(data[:size])
    with pytest.raises(InputError, match="not what a finished run keeps there"):
        run.load_head()


def test_missing_or_foreign_state_is_an_input_error(run: RunDirectory) -> None:
    from safetensors.torch import save

    path = run.root / "ledger/head.safetensors"
    path.write_bytes(save({"another|x": torch.ones(1)}))
    with pytest.raises(InputError, match="not what a finished run keeps there"):
        run.load_head()
    path.unlink()
    with pytest.raises(InputError, match="not what a finished run keeps there"):
        run.load_head()


def test_a_crash_while_the_head_is_saved_keeps_the_old_one(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    state = GlobalState(adapter={"x": torch.zeros(64)})
    new = RoundState(round=2, state=state, rule_state={}, gate_state=GateState())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OblivionError):
        run.save_head(new, [])
    monkeypatch.undo()
    head, _ = run.load_head()
    assert head.round == 1 and torch.equal(head.state.adapter["x"], torch.arange(64.0))
