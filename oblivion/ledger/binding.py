"""Which ledger a folder of keys serves, and that both are a run's own.

Erasing removes files of ``ledger/`` and ``keys/`` for good. Where a link leads from one run into another's, or two
runs share one folder of keys, erasing in one would destroy the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oblivion.errors import OblivionError
from oblivion.ledger.keys import Keys
from oblivion.ledger.reading import shown

BINDING = "ledger.json"


def check_own_files(ledger: Path, keys: Path) -> None:
    """Refuse a ledger with a link in it; only ``keys/`` itself may be one, to a folder on another disk.

    Raises
    ------
    OblivionError
        Naming the link, or the database that has a second name.
    """
    for path in _folders(ledger, keys):
        if path.is_symlink():
            raise OblivionError(
                f"{path} is a link, and erasing would reach what it leads to; put the folder or file itself there"
            )
    _refuse_second_names([ledger / "ledger.db"])


def _folders(ledger: Path, keys: Path) -> Iterator[Path]:
    yield from (ledger, ledger / "blobs", *(ledger / "blobs").glob("??"))
    yield from (ledger / name for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm", "lock"))
    yield keys / "lock"
    for part in ("contributions", "states", "noise"):
        yield from (keys / part, *(keys / part).glob("*"))


def _refuse_second_names(paths: list[Path]) -> None:
    found = {path: path.stat() for path in paths if path.is_file()}
    # A list beside the keys that is being written anew has two names, both of them here.
    here = Counter((about.st_dev, about.st_ino) for about in found.values())
    for path, about in found.items():
        if about.st_nlink > here[about.st_dev, about.st_ino]:
            raise OblivionError(
                f"{path} has a second name somewhere (a hard link, as `cp -l` makes), and erasing would reach it; "
                "copy the run anew with `cp -a`"
            )


def check_binding(keys: Keys, ledger: Path) -> dict[str, Any] | None:
    """See that keys serve this ledger; return what is to be noted beside them with `bind`, None where it is already.

    A run that was moved, copied or restored whole has its keys with it, and they are noted as its own. Where ``keys/``
    is a link, a copy of the run leads to the keys of the original.

    Raises
    ------
    OblivionError
        If the keys lie elsewhere and serve another ledger.
    """
    about, place = ledger.stat(), str(ledger.resolve())
    here = {"folder": place, "device": about.st_dev, "inode": about.st_ino}
    known = keys.read_json(BINDING)
    if known == here:
        return None
    if known is not None:
        moved = known.get("inode") == about.st_ino and place == known.get("folder")  # a disk may get another number
        moved = moved or (known.get("inode"), known.get("device")) == (about.st_ino, about.st_dev)
        if not moved and keys.folder.is_symlink():
            elsewhere, other = keys.folder.resolve(), shown(known.get("folder"), 300)
            raise OblivionError(
                f"{keys.folder} leads to {elsewhere}, whose keys serve the ledger {other}; give this run a copy of its "
                f"own (`cp -a`), or remove {elsewhere / BINDING} if the other is gone for good"
            )
        if not moved:
            _refuse_second_names([path for path in keys.folder.rglob("*") if not path.is_symlink()])
    return here


def bind(keys: Keys, here: dict[str, Any]) -> None:
    """Note beside the keys which ledger they serve."""
    keys.write_json(BINDING, here)
