"""The ledger's idea of the time, and how it is set right where a machine's clock was ahead once.

Nothing in the log is dated before what it follows, so that a clock that goes backwards revives nothing. A clock that
was ahead once would so decide for ever. Setting it back is an entry of the log like everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from oblivion.errors import ConfigError
from oblivion.ledger import reading
from oblivion.ledger.book import Book, moment, stamp
from oblivion.ledger.register import Register
from oblivion.ledger.requests import due_at


@dataclass(frozen=True, kw_only=True)
class Clock:
    """What a ledger and its machine say of the time; times are ISO 8601 in UTC.

    Attributes
    ----------
    machine, ledger : str
        The machine's clock, and the time of the log's last entry.
    wrong : bool
        Whether the ledger is so far ahead that a clock must have been wrong.
    to_come : int
        How many of the last entries are dated later than the machine's clock.
    repairs : tuple of (str, str)
        From when to when the ledger was set back before.
    """

    machine: str
    ledger: str
    wrong: bool
    to_come: int
    repairs: tuple[tuple[str, str], ...]


def look(book: Book) -> Clock:
    """Compare the ledger's time with the machine's."""
    entries = [reading.parse(text) for text in book.entries()]
    machine = stamp(book.machine_time())
    to_come = next((place for place, entry in enumerate(reversed(entries)) if entry["time"] <= machine), len(entries))
    return Clock(
        machine=machine,
        ledger=entries[-1]["time"] if entries else machine,
        wrong=book.ahead() is not None,
        to_come=to_come,
        repairs=tuple((entry["was"], entry["time"]) for entry in entries if entry["kind"] == "clock"),
    )


def set_back(book: Book, register: Register) -> Clock:
    """Set the ledger's time back to the machine's clock, and say so in the log.

    Open requests that are dated later were received between the last entry that is not and now: they count as
    received at the earlier time, so that they are due no later than the law has it. Nonces stay used, and what has
    expired by the machine's clock stays expired.

    Returns
    -------
    Clock
        As it is afterwards.

    Raises
    ------
    ConfigError
        If the ledger is not ahead, or the machine's clock is before the ledger's first entry.
    """
    entries = [reading.parse(text) for text in book.entries()]
    now = book.machine_time()
    if book.ahead() is None:
        raise ConfigError(f"the ledger's time, {entries[-1]['time']}, is not ahead of this machine's; nothing is to do")
    if stamp(now) < entries[0]["time"]:
        raise ConfigError(
            f"this machine's clock says {stamp(now)}, but the ledger was begun at {entries[0]['time']}: set the clock "
            "right"
        )
    again = []
    for record in book.find("request"):
        asked = register.asked(record.content["id"])
        if asked.open and asked.received_at > stamp(now):
            before = [entry["time"] for entry in entries[: record.seq] if entry["time"] <= stamp(now)]
            received: datetime = moment(before[-1])
            times = {"received_at": stamp(received), "due_at": stamp(due_at(received))}
            again.append((record, {**record.content, **times}))
    with book.transaction(anchor=True, at=now) as writer:
        writer.note("clock", {"was": entries[-1]["time"], "requests": len(again)})
        writer.erase([record.seq for record, _ in again], "the clock was set back")
        for record, content in again:
            writer.add("request", record.key, content, client=record.client)
    return look(book)
