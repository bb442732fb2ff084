"""Data files from strangers: no pipe or device is read, no line without end, and no error repeats a row."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oblivion.config import DataConfig
from oblivion.data import csv_rows
from oblivion.data.jsonl import load
from oblivion.errors import ConfigError, InputError

CANARY = "SECRETCANARY"


def refused(path: Path, columns: dict[str, str] | None = None) -> str:
    with pytest.raises((InputError, ConfigError)) as error:
        load(DataConfig(name="jsonl", path=str(path), columns=columns or {}), clients=2, seed=0)
    return str(error.value)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_no_data(kind: str, inside: bool, tmp_path: Path) -> None:
    """Finding m3: a pipe hung, and /dev/zero was read into memory."""
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert f"is a {kind}, not a file" in refused(tmp_path if inside else path)


def test_a_row_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "LONGEST", 2**20)
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n" + "q,a\n" * 50 + "q," + "a" * 2**20)
    assert "rows.csv:52: a row of more than 1 million characters" in refused(path)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (f'{{"question": "q", "answer": "a", "client": "a\\n{CANARY}"}}', {"client": "client"}),
        ("\n".join(f'{{"question": "{n}", "answer": "a", "id": "{CANARY}"}}' for n in range(2)), {"id": "id"}),
        (f'{{"messages": [{{"role": "{CANARY}", "content": "{CANARY}"}}]}}', {}),
        (f'{{"{CANARY}": {{"question": "q"}}}}', {}),
        (f'{{"question": "{CANARY}", "answer": []}}', {}),
        (f'[{{"question": "{CANARY}", "answer": "a"}}', {}),
        (f'{{"question": "q", "answer": {{"{CANARY}": 1, "{CANARY}": 1}}}}', {}),
    ],
)  # fmt: skip
def test_no_error_repeats_a_row(text: str, columns: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert CANARY not in refused(path, columns)
