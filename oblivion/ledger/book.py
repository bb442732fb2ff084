"""Records, and the transparency log that says of each when it was written (RFC 6962, section 2.1).

Every record has an entry in the log with a salted digest of it; the salt lies with the record, so that an erased
record cannot be recognised by its digest. Entries are the leaves of a Merkle tree. With each, an authentication code
over the tree's root up to it is stored, so that a change is not only found but located; signed checkpoints of the root
are for those who do not have the key.
"""

from __future__ import annotations

import contextlib
import copy
import hmac
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError as UniqueError

from oblivion.errors import InputError, IntegrityError
from oblivion.files import durable_step, make_folder
from oblivion.ledger import reading, schema
from oblivion.ledger.binding import bind, check_binding, check_own_files
from oblivion.ledger.checkpoint import Checkpoint, check_checkpoint, sign_checkpoint
from oblivion.ledger.keys import Keys
from oblivion.ledger.merkle import Frontier, leaf_hash
from oblivion.ledger.reading import authenticate, canonical, digest
from oblivion.ledger.schema import database_errors

ANCHOR = "checkpoint.json"
_SALT_BYTES = 16
_BATCH = 500
_CLOCK_TOLERANCE = timedelta(days=1)
"""How far the log may be ahead of a clock that goes wrong a little, and is waited for."""


def utc_now() -> datetime:
    """Return what the machine's clock says, in UTC."""
    return datetime.now(UTC)


def stamp(time: datetime) -> str:
    """A time as text: ISO 8601 in UTC, to the second."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    """Read a time that `stamp` wrote."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Something that the ledger knows.

    Attributes
    ----------
    seq : int
        Its place in the log, counted from 1.
    kind, key : str
        What it is, and its name among those of its kind.
    branch, round, client
        What it belongs to; 0 and "" where it belongs to none.
    content : mapping
        Plain JSON values.
    blob : str or None
        The name of its sealed tensors.
    """

    seq: int
    kind: str
    key: str
    branch: int
    round: int
    client: str
    content: Mapping[str, Any]
    blob: str | None


def last_seen(keys: Keys) -> Checkpoint | None:
    """The log's checkpoint that keys/ has; None where it has none yet."""
    value = keys.read_json(ANCHOR)
    try:
        return None if value is None else Checkpoint.from_json(value)
    except InputError:
        raise IntegrityError(f"{keys.folder / ANCHOR} is not a checkpoint; restore keys/ from its backup") from None


class Book:
    """The database of one ledger, open for this process alone.

    Parameters
    ----------
    folder : Path
        ``ledger/`` of a run; an empty ledger is made where there is none.
    keys : Keys
        The run's secrets.
    now : callable, optional
        The clock.
    wait : float, default 0
        Seconds to wait for another process to leave it.
    reading : bool, default False
        Whether it is only looked at: nothing is written, also not what a crash left unfinished.

    Raises
    ------
    IntegrityError
        If it is damaged, another version's, not of these keys, or an older copy than these keys have seen.
    OblivionError
        If another process has it, or it lies on a network file system.
    """

    def __init__(
        self,
        folder: Path,
        keys: Keys,
        now: Callable[[], datetime] = utc_now,
        wait: float = 0.0,
        reading: bool = False,
    ) -> None:
        self.path = folder / "ledger.db"
        self.keys = keys
        self._clock = now
        if not reading:
            check_own_files(folder, keys.folder)
            with database_errors(self.path):
                make_folder(folder, mode=0o700)
            schema.refuse_network(folder)
        self._locks = contextlib.ExitStack()
        try:
            for place in (folder, keys.folder):
                self._locks.callback(schema.Lock(place / "lock", wait, reading).release)
            here = None if reading else check_binding(keys, folder)
            if not self.path.exists():
                keys.create()  # only here: new keys for a ledger that is there would hide that its own are missing
                schema.create(self.path)
            self._engine = (schema.connect_to_read if reading else schema.connect)(self.path)
            try:
                schema.check_version(self._engine, self.path)
                self._frontier, self._time, seen = self._read_log()
                if here is not None:
                    bind(keys, here)
                if seen < self._frontier.size and not reading:  # a crash came between a commit and this
                    self._anchor()
            except BaseException:
                self._engine.dispose()
                raise
        except BaseException:
            self._locks.close()
            raise

    def _read_log(self) -> tuple[Frontier, str, int]:
        """The log, checked; the time of its last entry; how many of its entries keys/ has seen."""
        frontier, last, entries = Frontier(), (b"", b""), {}
        seen = last_seen(self.keys)
        with self._reading() as connection:
            for seq, entry, mac in reading.log_rows(connection):
                frontier.append(leaf_hash(entry))
                last, entries[seq] = (entry, mac), reading.parse(entry)
                if seen is not None and frontier.size == seen.size and frontier.root() != seen.root:
                    raise self._damaged("it is not the one that keys/ has seen")
        if seen is None and frontier.size > 1:  # the first entry alone is older than it
            raise IntegrityError(
                f"{self.keys.folder / ANCHOR} is missing, so an older copy of the ledger would go unnoticed; restore "
                "keys/ from its backup"
            )
        if seen is not None and frontier.size < seen.size:
            raise IntegrityError(
                f"{self.path} is an older copy: it has {frontier.size} entries, keys/{ANCHOR} has seen {seen.size}. "
                "What was erased since would come back; restore the newer ledger"
            )
        if seen is not None and not check_checkpoint(self.keys.signing().public_key(), seen):
            raise IntegrityError(f"{self.keys.folder / ANCHOR} is not signed by this run's key; restore keys/")
        if frontier.size and not hmac.compare_digest(last[1], self._mac(frontier)):
            raise self._damaged("its last entry was changed, or keys/ is another run's")
        self._check_records(entries)
        return frontier, json.loads(last[0])["time"] if frontier.size else "", seen.size if seen is not None else 0

    def _check_records(self, entries: Mapping[int, Mapping[str, Any]]) -> None:
        """Refuse records that the log does not know: keys of clients, exclusions and the head are taken from them."""
        gone, there = reading.erased(entries), set()
        with self._reading() as connection:
            for row in reading.record_rows(connection):
                there.add(row["seq"])
                what = reading.fault(row, entries, gone)
                if what is not None:
                    raise self._damaged(f"{reading.name(row)} {what}")
        for name in reading.missing(entries, there, gone):
            raise self._damaged(f"{name} is missing")

    def _damaged(self, what: str) -> IntegrityError:
        return IntegrityError(f"{self.path}: {what}; `oblivion ledger verify` says where, restore it from its backup")

    def _mac(self, frontier: Frontier) -> bytes:
        return authenticate(self.keys.log(), frontier.size, frontier.root())

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        with database_errors(self.path), self._engine.connect() as connection:
            yield connection

    def now(self) -> datetime:
        """The time, never before the log's last entry: a clock that went backwards revives nothing."""
        now = self._clock()
        return max(now, moment(self._time)) if self._time else now

    def machine_time(self) -> datetime:
        """What the machine's clock says, whatever the log does."""
        return self._clock()

    def ahead(self) -> str | None:
        """What to say where the log is so far ahead of the machine's clock that one of the two must be wrong."""
        now = self._clock()
        if not self._time or moment(self._time) - now <= _CLOCK_TOLERANCE:
            return None
        return (
            f"the ledger's last entry is of {self._time}, and this machine's clock says {stamp(now)}: set the clock "
            f"right; if it is right, it was ahead once: `oblivion ledger clock {self.path.parent.parent} --set-back`"
        )

    @contextlib.contextmanager
    def transaction(self, anchor: bool = False, at: datetime | None = None) -> Iterator[Writer]:
        """Write several records at once, or none.

        Parameters
        ----------
        anchor : bool, default False
            Whether keys/ shall know of it, so that an older copy of the ledger is refused from now on.
        at : datetime, optional
            The time that its entries have; `now` by default. Only `clock.set_back` may go back.
        """
        with database_errors(self.path), self._engine.connect() as connection, connection.begin() as database:
            writer = Writer(connection, self.keys.log(), copy.deepcopy(self._frontier), stamp(at or self.now()))
            yield writer
            writer.flush()
            with durable_step("commit"):
                database.commit()
        self._frontier, self._time = writer.frontier, writer.time
        if anchor:
            self._anchor()

    def _anchor(self) -> None:
        self.keys.write_json(ANCHOR, self.checkpoint().to_json(), personal=False)

    def checkpoint(self) -> Checkpoint:
        """A signed statement of the log's size and root."""
        return sign_checkpoint(self.keys.signing(), self._frontier.size, self._frontier.root())

    def find(
        self,
        *kinds: str,
        key: str | None = None,
        branch: int | None = None,
        round: int | None = None,
        client: str | None = None,
    ) -> list[Record]:
        """The records of some kinds that have what is given, in the order in which they were written."""
        columns = schema.records.c
        query = select(*(column for column in columns if column.name != "salt")).order_by(columns.seq)
        if kinds:
            query = query.where(columns.kind.in_(kinds))
        for column, value in (("key", key), ("branch", branch), ("round", round), ("client", client)):
            if value is not None:
                query = query.where(columns[column] == value)
        with self._reading() as connection:
            return [
                Record(**{**row, "content": json.loads(row["content"])}) for row in connection.execute(query).mappings()
            ]

    def entries(self) -> list[str]:
        """The whole log."""
        with self._reading() as connection:
            return list(connection.execute(select(schema.log.c.entry).order_by("seq")).scalars())

    def scrub(self, removal: int) -> None:
        """Leave no trace of erased records in the database file and the write-ahead log.

        A deleted row is overwritten where it stood, but not the copies that stay in the unused part of a page when
        SQLite moves rows to another: they go when the file is written anew, once for each removal.

        Parameters
        ----------
        removal : int
            The number of the last removal's record.
        """
        with database_errors(self.path), self._engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            if raw.execute("PRAGMA user_version").fetchone()[0] != removal:
                with durable_step("write"):
                    raw.execute("VACUUM")
                with durable_step("commit"):
                    raw.execute(f"PRAGMA user_version={removal:d}")
            with durable_step("checkpoint"):
                busy = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise self._damaged("its write-ahead log could not be emptied, another process reads it")

    def close(self) -> None:
        """Leave the ledger to others; SQLite moves its write-ahead log into the database file."""
        try:
            with database_errors(self.path), durable_step("checkpoint"):
                self._engine.dispose()
        finally:
            self._locks.close()


class Writer:
    """One transaction of a `Book`."""

    def __init__(self, connection: Connection, key: bytes, frontier: Frontier, time: str) -> None:
        self._connection = connection
        self._key = key
        self._log: list[dict[str, Any]] = []
        self._records: list[dict[str, Any]] = []
        self.frontier = frontier
        self.time = time

    def add(
        self,
        kind: str,
        key: str,
        content: Mapping[str, Any],
        *,
        branch: int = 0,
        round: int = 0,
        client: str = "",
        blob: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> int:
        """Write a record and its log entry.

        Parameters
        ----------
        kind, key, content, branch, round, client, blob
            See `Record`.
        facts : mapping, optional
            What the log entry says for ever beside the digest; nothing personal.

        Returns
        -------
        int
            The record's `seq`.
        """
        text, salt = canonical(content), secrets.token_bytes(_SALT_BYTES)
        said = digest(salt, kind, key, branch, round, client, text, blob)
        seq = self.note(kind, {"digest": said, "branch": branch, "round": round, **(facts or {})})
        self._records.append(
            {"seq": seq, "kind": kind, "key": key, "branch": branch, "round": round, "client": client}
            | {"content": text, "salt": salt, "blob": blob}
        )
        return seq

    def note(self, kind: str, facts: Mapping[str, Any]) -> int:
        """Write a log entry without a record."""
        seq = self.frontier.size + 1
        entry = canonical({**facts, "seq": seq, "kind": kind, "time": self.time})
        self.frontier.append(leaf_hash(entry.encode()))
        self._log.append({"seq": seq, "entry": entry, "mac": authenticate(self._key, seq, self.frontier.root())})
        return seq

    def erase(self, seqs: Sequence[int], why: str) -> None:
        """Erase records; the log says which places are empty, and why."""
        self.flush()
        for start in range(0, len(seqs), _BATCH):
            self._connection.execute(
                delete(schema.records).where(schema.records.c.seq.in_(seqs[start : start + _BATCH]))
            )
        if seqs:
            self.note("erased", {"why": why, "seqs": ranges(seqs)})

    def flush(self) -> None:
        """Hand everything to the database."""
        try:
            for table, rows in ((schema.log, self._log), (schema.records, self._records)):
                if rows:
                    self._connection.execute(insert(table), rows)
        except UniqueError:
            kinds = ", ".join(sorted({f"{row['kind']} {row['key']}" for row in self._records}))
            raise IntegrityError(f"one of these is in the ledger already: {kinds[:400]}") from None
        self._log, self._records = [], []


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Whole numbers as [first, last] pairs, sorted."""
    pairs: list[list[int]] = []
    for number in sorted(numbers):
        if pairs and number == pairs[-1][1] + 1:
            pairs[-1][1] = number
        else:
            pairs.append([number, number])
    return pairs
