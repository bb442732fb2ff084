"""Choose Ray's folder: private to every run, and short, because the path of a Unix socket has at most 107 bytes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from oblivion.errors import FederationError
from server.ray_watch import Watch, end

LONGEST = 107
_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
"""The longest name that Ray gives a socket below its folder: the time, the process, the store's second try."""
_NAME = "oblivion-"
_MADE = re.compile(rf"{_NAME}[a-z0-9_]{{8}}")
_EXAMPLE = f"{_NAME}12345678"
"""A name such as `tempfile.mkdtemp` makes."""
_INSIDE = "ray"
"""Ray opens its folder to everybody (mode 0777), so it gets one inside the private one."""
_PLACES = ("/tmp", "/dev/shm", "/var/tmp")


def fits(place: Path) -> bool:
    """Return whether the paths of Ray's sockets in a private folder in `place` are short enough."""
    return len(os.fsencode(place / _EXAMPLE / _INSIDE / _SOCKET)) <= LONGEST


def usual_place() -> Path:
    """Return where temporary folders belong on this machine."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _PLACES[0])


@contextlib.contextmanager
def ray_folder() -> Iterator[tuple[Path, Watch]]:
    """Make a new folder for Ray's session, inside one of mode 0700, and start the process that cleans up behind it.

    At the end, also that of a killed run, the processes that belong to the folder are ended and it is removed. Where
    the cleaning process was killed as well, the next run in the same place does it.

    Raises
    ------
    FederationError
        If no short folder can be made.
    """
    folder = _short_folder()
    with _held(folder) as handle:
        _remove_abandoned(folder.parent)
        watch = Watch(folder, handle)
        try:
            yield folder / _INSIDE, watch
        finally:
            watch.finish()


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[int]:
    """Hold a folder, so that others see that its run, or what cleans up behind it, is alive."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    finally:
        os.close(handle)


def _remove_abandoned(place: Path) -> None:
    for folder in place.glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):  # it is another user's, in use, or gone meanwhile
            made = folder.lstat()
            if not _MADE.fullmatch(folder.name) or made.st_uid != os.getuid() or made.st_mode & 0o077:
                continue
            # An empty folder may be one that is just being made.
            if [inside.name for inside in folder.iterdir()] == [_INSIDE]:
                with _held(folder):
                    end(str(folder), os.getpid())


def _short_folder() -> Path:
    usual = usual_place()
    for place in (usual, *map(Path, _PLACES)):
        if place.is_absolute() and fits(place):
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix=_NAME, dir=place))
    raise FederationError(
        f"no private folder for Ray can be made in {', '.join(dict.fromkeys((str(usual), *_PLACES)))}: it must be "
        f"writable, and the paths of the sockets in it may have at most {LONGEST} bytes; set TMPDIR or RAY_TMPDIR to a "
        "shorter one, or --engine inline"
    )


def describe() -> str | None:
    """Say where Ray's folder would be; None if there is no place for it."""
    usual = usual_place()
    try:
        folder = _short_folder()
    except FederationError:
        return None
    folder.rmdir()
    said = f"a private one in {folder.parent} for every run, removed at its end"
    return said if folder.parent == usual else f"{said} ({usual} is too long for sockets of {LONGEST} bytes, or closed)"
