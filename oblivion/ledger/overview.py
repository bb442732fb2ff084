"""What a ledger holds, for people and for files kept elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oblivion.errors import ConfigError
from oblivion.files import write_atomically
from oblivion.ledger.opening import read_ledger


def overview(root: Path) -> dict[str, Any]:
    """What the ledger of a run holds: ids, counts and times, no tensors.

    Returns
    -------
    dict
        ``federation``, ``head``, ``checkpoint``, ``branches``, ``requests``, ``exclusions``, ``bytes`` on disk.
    """
    ledger, register = read_ledger(root)
    try:
        return {
            "federation": register.federation,
            "head": register.head(),
            "checkpoint": ledger.book.checkpoint().to_json(),
            "branches": [
                {
                    "name": branch.name,
                    "parent": branch.parent,
                    "fork": branch.fork,
                    "rounds": [r.round for r in ledger.records(branch.name) if r.branch == branch.name],
                    "restorable": ledger.restorable(branch.name),
                    "contributions": len(ledger.book.find("contribution", branch=ledger.number(branch.name))),
                }
                for branch in ledger.branches()
            ],
            "requests": [
                {
                    "id": asked.request.id,
                    "client": asked.request.client_id,
                    "samples": None if asked.request.sample_ids is None else len(asked.request.sample_ids),
                    "state": asked.state,
                    "ground": asked.ground,
                    "received_at": asked.received_at,
                    "due_at": asked.due_at,
                }
                for asked in register.all_asked()
            ],
            "exclusions": [
                {"client": absence.client, "samples": None if absence.samples is None else len(absence.samples)}
                for absence in register.exclusions()
            ],
            "bytes": sum(path.stat().st_size for path in (root / "ledger").rglob("*") if path.is_file()),
        }
    finally:
        ledger.close()


def export(root: Path, log: Path | None, checkpoint: Path | None) -> dict[str, Any]:
    """Write the log (one entry a line) and a signed checkpoint, to be kept away from the run.

    Returns
    -------
    dict
        The checkpoint.
    """
    if log is not None and checkpoint is not None and log.absolute() == checkpoint.absolute():
        raise ConfigError(f"--out and --checkpoint both name {log}; give them two names")
    ledger, _ = read_ledger(root)
    try:
        entries, now = ledger.book.entries(), ledger.book.checkpoint().to_json()
    finally:
        ledger.close()
    if log is not None:
        write_atomically(log, "".join(entry + "\n" for entry in entries).encode())
    if checkpoint is not None:
        write_atomically(checkpoint, json.dumps(now).encode() + b"\n")
    return now
