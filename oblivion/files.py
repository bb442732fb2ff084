"""Files that are there whole or not at all, made of durable steps that a test can stop at.

Everything that a run must not lose is written here or by the ledger's database. Each step of it (write, fsync, rename,
unlink, commit, checkpoint) is announced to `watch_steps`, so that a test can kill the process before and after it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from oblivion.errors import OblivionError

Step: TypeAlias = Literal["write", "fsync", "rename", "unlink", "commit", "checkpoint"]
Watch: TypeAlias = Callable[[Literal["before", "after"], Step], None]

_watch: Watch | None = None


def watch_steps(watch: Watch | None) -> None:
    """Let `watch` be called before and after every durable step of this process; None for nobody."""
    global _watch
    _watch = watch


@contextlib.contextmanager
def durable_step(step: Step) -> Iterator[None]:
    """Announce the body as one durable step."""
    if _watch is not None:
        _watch("before", step)
    yield
    if _watch is not None:
        _watch("after", step)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a renamed or removed file is, only after this."""
    with durable_step("fsync"):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it where they are missing, durably."""
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, path in enumerate(missing) if path.exists())]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for path in missing[::-1]:
        sync_folder(path.parent)


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file so that it is either the old one or the new one, also after a crash.

    Parameters
    ----------
    path : Path
        Its folders are made where they are missing.
    data : bytes
        The whole content.
    mode : int, default 0o666
        Permissions, less those that the process masks.

    Raises
    ------
    OblivionError
        If the disk is full or cannot be written; the old file is still there.
    """
    staging = path.with_name(path.name + ".partial")

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, mode)

    try:
        make_folder(path.parent)
        with open(staging, "wb", opener=opener) as file:
            with durable_step("write"):
                file.write(data)
                file.flush()
            with durable_step("fsync"):
                os.fsync(file.fileno())
        with durable_step("rename"):
            os.replace(staging, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
        raise OblivionError(
            f"{path} could not be written: {error.strerror}; free some space or choose another --out"
        ) from None


def remove(path: Path) -> None:
    """Remove a file or a folder for good; nothing happens where there is none.

    Raises
    ------
    OblivionError
        If it cannot be removed.
    """
    try:
        if not path.exists():
            return
        with durable_step("unlink"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise OblivionError(f"{path} could not be removed: {error.strerror}; make it writable and try again") from None
