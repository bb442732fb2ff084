"""Tell what happens in a run, as it happens, to ``events.jsonl`` and to whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from oblivion.ledger.rounds import RoundRecord

Event = dict[str, Any]
Sink = Callable[[Event], None]


def round_entry(record: RoundRecord) -> Event:
    """Return what is told of a committed round, and kept in the history of ``metrics.json``."""
    return {
        "branch": record.branch,
        "round": record.round,
        "loss": record.loss,
        "scheme_error": record.scheme_error,
        "clients": len(record.accepted),
        "refused": len(record.refused),
        "failed": len(record.failed),
        "seconds": record.seconds,
    }


class Observer:
    """Passes every event on to its sinks.

    Parameters
    ----------
    sinks : Sink
        They are called with every event, in order. Events hold ids and numbers, never text of samples.
    """

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def event(self, name: str, **fields: Any) -> None:
        """Tell that something happened."""
        event = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": name, **fields}
        for sink in self._sinks:
            sink(event)

    def round_committed(self, record: RoundRecord, rounds: int) -> None:
        """Tell that a round is over."""
        entry = round_entry(record)
        self.event("round_committed", rounds=rounds, **entry)
        for client, reason in record.refused.items():
            self.event("update.refused", branch=record.branch, round=record.round, client=client, reason=reason)
        for client, reason in record.failed.items():
            self.event("client.failed", branch=record.branch, round=record.round, client=client, reason=reason)
