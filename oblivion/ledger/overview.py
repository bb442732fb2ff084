"""What a ledger holds, for people and for files kept elsewhere."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from oblivion.errors import ConfigError, InputError, IntegrityError, nearest
from oblivion.files import write_atomically
from oblivion.ledger.opening import read_ledger
from oblivion.ledger.public_key import read_public_key
from oblivion.ledger.register import RequestStatus
from oblivion.ledger.verify_evidence import Check, UnreadableError, failed, in_words, verify
from oblivion.run_format import PUBLIC_KEY
from oblivion.untrusted import parse_json, read


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
            "requests": [_request(asked) for asked in register.all_asked()],
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


def _request(asked: RequestStatus) -> dict[str, Any]:
    samples = asked.request.sample_ids
    return {
        "id": asked.request.id,
        "client": asked.request.client_id,
        "samples": None if samples is None else len(samples),
        "state": asked.state,
        "ground": asked.ground,
        "received_at": asked.received_at,
        "due_at": asked.due_at,
    }


def requests(root: Path) -> list[dict[str, Any]]:
    """Return the requests of a run in their order, each with the trials that can be committed."""
    ledger, register = read_ledger(root)
    try:
        trials = [branch.name.partition("/") for branch in ledger.branches() if "/oracle" not in branch.name]
        listed = [_request(asked) for asked in register.all_asked()]
    finally:
        ledger.close()
    return [{**asked, "trials": [name for id, _, name in trials if id == asked["id"]]} for asked in listed]


def evidence(root: Path, request: str) -> tuple[Path, list[Check], list[str], Any]:
    """Check the evidence of the committed removal that answered a request.

    Returns
    -------
    tuple
        The file; the checks; what the evidence says in words, and its statement: empty and None if a check fails.

    Raises
    ------
    ConfigError
        If no removal was committed for the request.
    InputError
        If the evidence or the run's public key is not there, or neither can be read.
    IntegrityError
        If the public key is not the one that the run signs with.
    """
    ledger, register = read_ledger(root)
    try:
        known = [str(asked.request.id) for asked in register.all_asked()]
        trials = [str(r.content["branch"]) for r in register.removals() if r.content["request"] == request]
        signing = ledger.book.keys.signing().public_key().public_bytes_raw()
    finally:
        ledger.close()
    if request not in known:
        raise ConfigError(f"there is no request '{request}'; {nearest(request, known)}")
    if not trials:
        raise ConfigError(f"{request}: no removal was committed for it, so there is no evidence")
    path, expected = root / "forgets" / trials[-1] / "evidence.json", "what the commit wrote: give the commit again"
    data, key = read(path, expected), read(root / PUBLIC_KEY, expected)
    if read_public_key(root / PUBLIC_KEY) != signing:
        raise IntegrityError(
            f"{root / PUBLIC_KEY} is not the key that this run signs with; remove it and {path.name}, and give the "
            "commit again"
        )
    try:
        checks = verify(data, key)
    except UnreadableError as error:
        raise InputError(f"{path}: {error}") from None
    if failed(checks):
        return path, checks, [], None
    payload = base64.b64decode(parse_json(data, str(path), expected)["payload"])
    statement = parse_json(payload, str(path), expected)
    return path, checks, in_words(statement["predicate"]), statement
