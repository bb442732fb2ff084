"""Where Ray puts its folder: it holds sockets, and the path of a Unix socket may have at most 107 bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from oblivion.errors import FederationError

LONGEST = 107
_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
"""The longest name that Ray gives a socket below its folder: the time, the process, the store's second try."""
_PLACES = ("/tmp", "/dev/shm", "/var/tmp")


def usual_folder() -> Path:
    """Where Ray would put its folder by itself."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"


def fits(folder: Path) -> bool:
    """Whether the paths of Ray's sockets below `folder` are short enough."""
    return len(os.fsencode(folder / _SOCKET)) <= LONGEST


@contextlib.contextmanager
def ray_folder() -> Iterator[Path | None]:
    """A folder for Ray's sessions: None for the usual one; where that is too long, a short and private one.

    The private one (mode 0700) is removed at the end.

    Raises
    ------
    FederationError
        If no short folder can be made.
    """
    usual = usual_folder()
    if fits(usual):
        yield None
        return
    folder = _short_folder(usual)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short_folder(usual: Path) -> Path:
    for place in _PLACES:
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="oblivion-", dir=place))
    raise FederationError(
        f"{usual} is too long for Ray: with the names of its sockets it has more than {LONGEST} bytes, and in "
        f"{', '.join(_PLACES)} no folder can be made; set TMPDIR or RAY_TMPDIR to a shorter one, or --engine inline"
    )


def describe() -> str | None:
    """Where Ray's folder would be, in words; None if there is no place for it."""
    usual = usual_folder()
    if fits(usual):
        return str(usual)
    try:
        folder = _short_folder(usual)
    except FederationError:
        return None
    folder.rmdir()
    return f"a private one in {folder.parent}, since {usual} (TMPDIR) is too long for sockets of {LONGEST} bytes"
