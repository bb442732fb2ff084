"""Only what the program made is deleted: half-written files by names that nobody else gives, in its own folders."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from command_line import oblivion
from small_ledger import SETTINGS, build

from oblivion.files import remove_partial, staging_path, write_folder
from oblivion.ledger.opening import open_ledger

OTHERS = (
    "notes.partial.txt",
    "thesis.partial.docx",
    "my.partials/kept",
    "x.partial",
    "adapters/mine.partial/kept",
    "keys/backup.partial",
    "ledger/blobs/ab/notes.partial",
    f"notes/.thesis.{'0' * 16}.oblivion-partial",
    f"forgets/thesis.{'0' * 16}.oblivion-partial",
    "forgets/.thesis.0123.oblivion-partial",
)
"""Files that somebody else put into a run directory."""
HALF = ("adapters/original", "keys/log.key", "ledger/ledger.db", f"ledger/blobs/ab/{'ab' * 32}", "metrics.json")


def put(root: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"mine")


def test_opening_leaves_what_others_put_there(tmp_path: Path) -> None:
    root = build(tmp_path / "run").root
    put(root, OTHERS)
    half = [staging_path(root / name) for name in HALF]
    for path in half:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    (root / "my.partials.link").symlink_to(tmp_path / "nowhere.partial")
    open_ledger(root, SETTINGS)[0].close()
    assert [name for name in OTHERS if not (root / name).is_file()] == []
    assert (root / "my.partials.link").is_symlink()
    assert [path for path in half if path.exists()] == []


def test_no_link_is_followed_or_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    inside = staging_path(outside / "thesis")
    outside.mkdir()
    inside.write_bytes(b"mine")
    root = tmp_path / "run"
    for name in ("ledger", "forgets"):
        (root / name).mkdir(parents=True)
    (root / "adapters").symlink_to(outside)
    (root / "forgets" / "link").symlink_to(outside)
    link = staging_path(root / "ledger" / "a")
    link.symlink_to(outside)
    remove_partial(root, ["adapters", "forgets", "ledger"])
    assert inside.read_bytes() == b"mine" and link.is_symlink()


@pytest.mark.parametrize("command", [("show",), ("verify",), ("export",)])
def test_looking_at_a_ledger_deletes_nothing(tmp_path: Path, command: tuple[str, ...]) -> None:
    root = build(tmp_path / "run").root
    half = staging_path(root / "metrics.json")
    half.write_bytes(b"half")
    stray = root / "ledger" / "blobs" / "ab" / ("ab" * 32)
    put(root, (*OTHERS, str(stray.relative_to(root)), "keys/states/9/9.key"))
    before = {path: path.lstat().st_mtime_ns for path in sorted(root.rglob("*"))}
    code, _, error = oblivion("ledger", *command, root)
    assert code == (4 if command == ("verify",) else 0), error
    assert {path: path.lstat().st_mtime_ns for path in sorted(root.rglob("*"))} == before


def test_a_folder_that_another_process_is_writing_is_left(tmp_path: Path) -> None:
    other, started, go = staging_path(tmp_path / "run"), threading.Event(), threading.Event()
    other.mkdir()

    def writes() -> None:
        import fcntl
        import os

        handle = os.open(other, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        started.set()
        go.wait()
        os.close(handle)

    writer = threading.Thread(target=writes)
    writer.start()
    started.wait()
    write_folder(tmp_path / "run", {"one": b"1"})
    assert other.is_dir()
    go.set()
    writer.join()
    (tmp_path / "run" / "one").unlink()
    (tmp_path / "run").rmdir()
    write_folder(tmp_path / "run", {"one": b"1"})
    assert not other.exists()
