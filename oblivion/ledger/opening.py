"""Open the ledger of a run directory: database, blobs and keys together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from oblivion.config import LedgerConfig
from oblivion.errors import InputError, IntegrityError, OblivionError
from oblivion.files import remove_partial
from oblivion.ledger.blobs import FolderBlobs
from oblivion.ledger.book import Book, utc_now
from oblivion.ledger.erasure import finish_erasure
from oblivion.ledger.keys import Keys
from oblivion.ledger.register import Register
from oblivion.ledger.schema import Lock
from oblivion.ledger.store import StoredLedger
from oblivion.run_format import CLIENT_STORE, check_format, open_run

DATABASE = "ledger/ledger.db"
OWN_FOLDERS = ("adapters", CLIENT_STORE, "evaluations", "forgets", "keys", "ledger")
"""The folders of a run directory that the program makes and writes to."""


def open_ledger(
    root: Path, settings: LedgerConfig, wait: float = 0.0, now: Callable[[], datetime] = utc_now
) -> tuple[StoredLedger, Register]:
    """Open the ledger under a run directory for this process alone, or make an empty one.

    What a crash left is made good first: half-written files in the run's own folders go, and blobs and keys
    without a record; an erasure that was begun is finished.

    Parameters
    ----------
    root : Path
        The run directory.
    settings : LedgerConfig
        How exactly and for how long updates are kept.
    wait : float, default 0
        Seconds to wait for another process to leave it.
    now : callable, optional
        The clock.

    Raises
    ------
    IntegrityError
        If it is damaged or an older copy.
    OblivionError
        If another process has it, or the disk cannot be written.
    """
    if (root / DATABASE).is_file():
        check_keys_exist(root)
    keys = Keys(root / "keys")
    book = Book(root / "ledger", keys, now, wait)
    try:
        remove_partial(root, OWN_FOLDERS)
        store = StoredLedger(book, FolderBlobs(root / "ledger" / "blobs"), keys, settings.precision, settings.retention)
        register = Register(book)
        register.begin()
        register.check_exclusions()
        store.check_keys()
        register.forget_simulated_keys()
        if register.removals():
            finish_erasure(store, register)
        else:
            store.sweep()
    except BaseException:
        book.close()
        raise
    return store, register


def open_run_ledger(root: Path) -> tuple[StoredLedger, Register]:
    """Open the ledger of a run that is there, as `open_ledger` does.

    Raises
    ------
    InputError
        If there is none.
    """
    check_ledger_exists(root)
    return open_ledger(root, open_run(root).ledger)


def read_ledger(root: Path) -> tuple[StoredLedger, Register]:
    """Open the ledger of a run to look at it: nothing is written, made good or removed.

    Parameters
    ----------
    root : Path
        The run directory; its disk may be full or read-only.

    Raises
    ------
    InputError
        If there is none.
    IntegrityError
        If it is damaged or an older copy.
    OblivionError
        If another process works on it.
    """
    check_ledger_exists(root)
    check_format(root)
    check_keys_exist(root)
    keys = Keys(root / "keys")
    book = Book(root / "ledger", keys, reading=True)
    try:
        store = StoredLedger(book, FolderBlobs(root / "ledger" / "blobs"), keys)
        register = Register(book)
        register.check_exclusions()
        if not book.find("federation"):
            raise InputError(f"{root}: its ledger was only begun; finish the run with `oblivion run --resume`")
    except BaseException:
        book.close()
        raise
    return store, register


def check_keys_exist(root: Path) -> None:
    """Raise `IntegrityError` where the keys of a ledger are not there; new ones would open nothing."""
    if not (root / "keys").is_dir():
        raise IntegrityError(f"{root / 'keys'} is missing: the ledger cannot be read; restore keys/ from its backup")


def check_ledger_exists(root: Path) -> None:
    """Raise `InputError` where a run directory has no ledger."""
    if not root.is_dir():
        raise InputError(f"{root} has no ledger: there is no such folder; give the directory of a run")
    if not (root / DATABASE).is_file():
        raise InputError(
            f"{root} has no ledger, so nothing can be forgotten from it: finish the run with `oblivion run --resume "
            f"--out {root}`; a run of a version before the ledger must be run again"
        )


def wait_until_free(root: Path, seconds: float, tell: Callable[[str], None]) -> None:
    """Wait until no other process works on a run; `tell` hears of it where there is one.

    Raises
    ------
    OblivionError
        If it has not ended after so many seconds.
    """
    path = root / "ledger" / "lock"
    try:
        Lock(path).release()
    except OblivionError as error:
        tell(str(error))
        Lock(path, seconds).release()
