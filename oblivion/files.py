"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from oblivion.errors import OblivionError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the new one, also after a crash.

    Raises
    ------
    OblivionError
        If the disk is full or cannot be written; the old file is still there.
    """
    staging = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
        raise OblivionError(
            f"{path} could not be written: {error.strerror}; free some space or choose another --out"
        ) from None
