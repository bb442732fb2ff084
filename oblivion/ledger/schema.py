"""The database of a ledger: two tables, one schema under alembic, one writer.

``records`` holds what is known; ``log`` says of every record, for ever, that it was written when it was. A record can
be erased, its log entry stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    StaticPool,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    text,
)
from sqlalchemy.exc import DBAPIError

from oblivion.errors import IntegrityError, OblivionError
from oblivion.files import durable_step, staging_path, sync_folder

VERSION = "r0001"
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "9p", "fuse.sshfs", "fuse.s3fs"}
)
_PARTS = {
    *(("table", name) for name in ("alembic_version", "log", "records")),
    *(("index", f"sqlite_autoindex_{name}_1") for name in ("alembic_version", "records")),
    ("index", "records_by_place"),
}
metadata = MetaData()

log = Table(
    "log",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("entry", Text, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)
records = Table(
    "records",
    metadata,
    Column("seq", Integer, ForeignKey("log.seq"), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("branch", Integer, nullable=False),
    Column("round", Integer, nullable=False),
    Column("client", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("blob", Text),
    UniqueConstraint("kind", "key"),
    Index("records_by_place", "kind", "branch", "round", "client"),
)


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogateescape")  # whoever changed the file need not have written UTF-8


def connect(path: Path) -> Engine:
    """An engine with one connection: durable commits, erased rows overwritten, no temporary files."""
    engine = create_engine(f"sqlite:///{path}", poolclass=StaticPool, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def settings(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where this module says so
        connection.text_factory = _text
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "secure_delete=ON",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            "busy_timeout=5000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def connect_to_read(path: Path) -> Engine:
    """An engine that changes nothing, for a ledger that nobody works on; the disk may be full or read-only.

    Raises
    ------
    OblivionError
        If a process that was killed left a write-ahead log, and it cannot be taken in here.
    """
    log = path.with_name(f"{path.name}-wal")
    if log.is_file() and log.stat().st_size:  # SQLite takes it in; looking past it would be looking at an older ledger
        if not all(os.access(place, os.W_OK) for place in (path, log, path.parent)):
            raise OblivionError(
                f"{path} was left by a process that was killed, and {log.name} cannot be taken in on a disk that is "
                "read-only; copy the run to where you can write, and look at the copy"
            )
        return connect(path)

    def opened() -> sqlite3.Connection:
        address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        connection = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None)
        connection.text_factory = _text
        return connection

    return create_engine("sqlite://", creator=opened, poolclass=StaticPool)


def create(path: Path) -> None:
    """Make an empty database; it is there whole or not at all."""
    staging = staging_path(path)
    with database_errors(path):
        try:
            with durable_step("write"):
                os.close(os.open(staging, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # its WAL takes the same mode
                _migrate(staging)
            with durable_step("rename"):
                os.replace(staging, path)
        except BaseException:
            with contextlib.suppress(OSError):
                staging.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _migrate(path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA synchronous=FULL")
        settings.attributes["connection"] = connection
        command.upgrade(settings, "head")
    engine.dispose()


def check_version(engine: Engine, path: Path) -> None:
    """Refuse a database that this version does not know.

    Raises
    ------
    IntegrityError
        If it is no ledger, or another version's.
    """
    try:
        with engine.connect() as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
            parts = {tuple(row) for row in connection.execute(text("SELECT type, name FROM sqlite_master"))}
    except DBAPIError as error:
        if _is_damage(error):
            raise IntegrityError(f"{path} is not a ledger: {_reason(error)}; restore it from its backup") from None
        with database_errors(path):
            raise
    if found != VERSION:
        raise IntegrityError(
            f"{path} has the format {str(found)[:20]!r}, this version reads {VERSION!r}; use the version of oblivion "
            "that manifest.json of the run names"
        )
    strange = sorted(parts ^ _PARTS)
    if strange:  # a trigger would keep what is erased
        kind, name = strange[0]
        raise IntegrityError(
            f"{path} {'has' if strange[0] in parts else 'lacks'} the {kind} {ascii(name)[:80]}, unlike any ledger; "
            "restore it from its backup"
        )


def _reason(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def _is_damage(error: BaseException) -> bool:
    signs = ("malformed", "not a database", "no such table", "no such column")
    return any(sign in _reason(error) for sign in signs)


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn the database's errors into ones that say what to do."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        reason = _reason(error)
        if _is_damage(error):
            raise IntegrityError(f"{path} is damaged: {reason}; restore it from its backup") from None
        raise OblivionError(
            f"{path} could not be written: {reason}; nothing is lost: free some space or make it writable, and give "
            "the same command again (a run: with --resume)"
        ) from None
    except OSError as error:
        raise OblivionError(
            f"{path} could not be written: {error.strerror}; free some space or make it writable"
        ) from None


def refuse_network(folder: Path) -> None:
    """Refuse a folder on a network file system, where SQLite's locks and WAL do not hold.

    Raises
    ------
    OblivionError
        Naming the file system.
    """
    import psutil

    target = folder.resolve()
    mounts = [(Path(part.mountpoint), part.fstype) for part in psutil.disk_partitions(all=True)]
    inside = [(mount, kind) for mount, kind in mounts if target.is_relative_to(mount)]
    kind = max(inside, key=lambda item: len(item[0].parts))[1] if inside else ""
    if kind in NETWORK:
        raise OblivionError(
            f"{folder} lies on a network file system ({kind}), where a ledger can be damaged; choose an --out on a "
            "local disk"
        )


class Lock:
    """One process at a time works on a ledger, or several look at it.

    Parameters
    ----------
    path : Path
        The file that is locked. Who works makes it where it is missing; who looks writes nothing.
    wait : float, default 0
        Seconds to wait for another process.
    reading : bool, default False
        Whether this process only looks.

    Raises
    ------
    OblivionError
        If another process works on it, and it does not end within `wait` seconds.
    """

    def __init__(self, path: Path, wait: float = 0.0, reading: bool = False) -> None:
        self._handle = -1
        self._reading = reading
        if reading and not path.exists():
            return
        with database_errors(path):
            flags = os.O_RDONLY if reading else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            self._handle = os.open(path, flags | os.O_NONBLOCK, 0o600)  # of a pipe, that would wait
        if not stat.S_ISREG(os.fstat(self._handle).st_mode):
            self.release()
            raise OblivionError(f"{path} is no file, as every run has it there; remove it")
        self._take(path, time.monotonic() + wait)
        if reading:
            return
        try:
            with database_errors(path):
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, str(os.getpid()).encode(), 0)
        except BaseException:
            self.release()
            raise

    def _take(self, path: Path, end: float) -> None:
        while True:
            try:
                fcntl.flock(self._handle, (fcntl.LOCK_SH if self._reading else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() < end:
                    time.sleep(0.1)
                    continue
                owner = os.pread(self._handle, 20, 0).decode(errors="replace").strip()
                os.close(self._handle)
                raise OblivionError(
                    f"{path.parent} is in use by process {owner or '(unknown)'}; wait until it has ended"
                ) from None

    def release(self) -> None:
        """Let others in."""
        if self._handle >= 0:
            if not self._reading:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, 0)  # a later message must not name a process that has ended
            os.close(self._handle)
            self._handle = -1
