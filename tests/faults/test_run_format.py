"""A run directory says which layout it has; another one, or none, is refused by whatever opens a run."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import command_line
import pytest

from oblivion.config import RunConfig
from oblivion.errors import InputError
from oblivion.evaluation import find_target
from oblivion.ledger.opening import open_ledger
from oblivion.report.reading import read_run
from oblivion.run.directory import RunDirectory
from oblivion.run_format import FORMAT, check_format, format_file, open_run

PRIVATE = 0o077


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = RunDirectory.create(tmp_path / "run", RunConfig(), {}).root
    (root / "metrics.json").write_text("{}")
    ledger, _ = open_ledger(root, RunConfig().ledger)
    ledger.close()
    return root


def test_a_run_that_was_just_made_is_opened(run: Path) -> None:
    assert (run / "format").read_bytes() == format_file() == b"%d\n" % FORMAT
    assert open_run(run) == RunConfig()
    read_run(run)


BAD = {
    "empty": b"",
    "half-written": b"%d" % FORMAT,
    "older": b"%d\n" % (FORMAT - 1),
    "newer": b"%d\n" % (FORMAT + 1),
    "negative": b"-2\n",
    "huge": b"9" * 60,
    "too large": b"%d\n" % FORMAT * 1000,
    "other digits": "\u0662\n".encode(),
    "a second line": b"%d\n%d\n" % (FORMAT, FORMAT),
    "text": b"two\n",
    "not UTF-8": b"\xff\xfe2",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_another_format_is_refused_in_one_line(run: Path, content: bytes) -> None:
    (run / "format").write_bytes(content)
    with pytest.raises(InputError) as caught:
        check_format(run)
    text = str(caught.value)
    assert str(run / "format") in text and "\n" not in text and len(text) < len(str(run)) + 250
    assert "restore it" in text or "restore the file" in text or "use the version of oblivion that" in text


def test_a_link_a_folder_and_a_pipe_are_no_format(run: Path, tmp_path: Path) -> None:
    (run / "format").rename(tmp_path / "elsewhere")
    (run / "format").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"):
        check_format(run)
    (run / "format").unlink()
    (run / "format").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        check_format(run)
    (run / "format").rmdir()
    os.mkfifo(run / "format")
    with pytest.raises(InputError, match="is a pipe"):
        check_format(run)


OPENERS: dict[str, Any] = {
    "Python": lambda run: RunDirectory.open(run),
    "evaluate": lambda run: find_target(run),
    "report": lambda run: read_run(run),
}
COMMANDS = (
    ("run", "--resume", "--out"),
    ("forget", "--client", "client-1", "--method", "exclude"),
    ("ledger", "show"),
    ("ledger", "verify"),
    ("ledger", "export"),
    ("evaluate",),
    ("report",),
)


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_an_older_run_is_refused_with_the_way_out(run: Path, opener: Any) -> None:
    (run / "format").unlink()
    with pytest.raises(InputError, match=r"older version of oblivion .*run its config\.toml again"):
        opener(run)
    (run / "format").write_bytes(b"7\n")
    with pytest.raises(InputError, match=f"format 7, this version reads format {FORMAT}"):
        opener(run)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_refuses_an_older_run_and_leaves_it_as_it_is(run: Path, words: tuple[str, ...]) -> None:
    (run / "format").unlink()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    line = ("forget", run, *words[1:]) if words[0] == "forget" else (*words, run)
    code, _, said = command_line.oblivion(*line)
    assert code == InputError.exit_code and said.count("\n") == 1 and "older version of oblivion" in said
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_nobody_else_on_the_machine_reads_a_run(run: Path) -> None:
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    ledger, _ = open_ledger(run, RunConfig().ledger)
    try:
        private = [run / "keys", run / "ledger", *(run / "ledger").glob("ledger.db*"), run / "ledger" / "lock"]
        assert len(private) >= 5  # the database with its log
        assert not [path for path in private if stat.S_IMODE(path.stat().st_mode) & PRIVATE]
    finally:
        ledger.close()
