"""Verify a ledger: every entry, record, blob and key, what should be gone, and an earlier checkpoint.

Whoever changes the files without the keys is found out, and where: an entry that was edited, removed or moved fails its
authentication code or its number; a record that was edited, removed or swapped differs from its entry's digest; a
blob's name is its digest, and it opens with one key in one place only. Cutting off the end, or putting back an older
copy of everything, cannot be seen from within: it is found against a checkpoint that was kept elsewhere.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, RowMapping, select

from oblivion.errors import IntegrityError
from oblivion.ledger import schema
from oblivion.ledger.blobs import FolderBlobs, unseal
from oblivion.ledger.book import ANCHOR, authenticate, digest
from oblivion.ledger.checkpoint import Checkpoint, check_checkpoint
from oblivion.ledger.keys import Keys
from oblivion.ledger.merkle import Frontier, leaf_hash
from oblivion.ledger.register import EXCLUSIONS, SIMULATED
from oblivion.ledger.store import blob_context, key_name_of

_NAMING = ("selection", "cohort", "round", "contribution", "client")
"""Kinds of records in which a client that was forgotten must not be named."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be, and where."""

    where: str
    what: str


@dataclass(kw_only=True)
class Verification:
    """What was looked at, and what was found; the ledger is sound where `findings` is empty."""

    entries: int = 0
    records: int = 0
    blobs: int = 0
    findings: list[Finding] = field(default_factory=list)

    def find(self, where: str, what: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(where=where, what=what))


def verify_ledger(root: Path, checkpoint: Checkpoint | None = None) -> Verification:
    """Verify the ledger of a run; nothing is changed.

    Parameters
    ----------
    root : Path
        The run directory.
    checkpoint : Checkpoint, optional
        An earlier state of the log, kept elsewhere: the log must go on from it.

    Raises
    ------
    IntegrityError
        If the database cannot be read at all.
    OblivionError
        If another process works on it.
    """
    from oblivion.ledger.opening import check_ledger_exists

    check_ledger_exists(root)
    keys, path = Keys(root / "keys"), root / "ledger" / "ledger.db"
    lock = schema.Lock(root / "ledger" / "lock")
    try:
        engine = schema.connect(path)
        schema.check_version(engine, path)
        done = Verification()
        with schema.database_errors(path):
            entries = _check_log(engine, keys, done, checkpoint)
            rows = _check_records(engine, entries, done)
        _check_blobs(root, keys, rows, done)
        _check_forgotten(root, keys, rows, done)
        engine.dispose()
        return done
    finally:
        lock.release()


def _check_log(
    engine: Engine, keys: Keys, done: Verification, checkpoint: Checkpoint | None
) -> dict[int, dict[str, Any]]:
    """Authenticate the log entry by entry; return the entries by number."""
    anchor = keys.read_json(ANCHOR)
    known = {"keys/checkpoint.json": Checkpoint.from_json(anchor)} if anchor is not None else {}
    known |= {"the given checkpoint": checkpoint} if checkpoint is not None else {}
    frontier, entries, intact, expected = Frontier(), {}, True, 1
    log_key, public = keys.log(), keys.signing().public_key()
    with engine.connect() as connection:
        for seq, text, mac in connection.execute(select(schema.log).order_by(schema.log.c.seq)):
            if seq != expected:
                done.find(f"log entry {expected}", "is missing")
            expected = seq + 1
            frontier.append(leaf_hash(text.encode()))
            entry = _parse(text)
            if intact and entry.get("seq") != seq:
                done.find(f"log entry {seq}", f"stands in another's place: it says it is entry {entry.get('seq')}")
                intact = False
            # Each code covers the whole log up to it: after the first that fails, the others say nothing new.
            elif intact and not hmac.compare_digest(mac, authenticate(log_key, seq, frontier.root())):
                done.find(f"log entry {seq}", "was changed: its authentication code does not hold")
                intact = False
            for name, seen in known.items():
                if frontier.size == seen.size and frontier.root() != seen.root:
                    done.find(f"log entries 1 to {seq}", f"are not those of {name}")
            entries[seq] = entry
    for name, seen in known.items():
        if not check_checkpoint(public, seen):
            done.find(name, "is not signed by this run's key")
        elif seen.size > frontier.size:
            done.find(f"log entries {frontier.size + 1} to {seen.size}", f"of {name} are missing: an older copy?")
    done.entries = frontier.size
    return entries


def _parse(text: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _check_records(
    engine: Engine, entries: Mapping[int, Mapping[str, Any]], done: Verification
) -> list[Mapping[str, Any]]:
    """Compare every record with its entry; return the records that hold."""
    gone = {
        seq
        for entry in entries.values()
        if entry.get("kind") == "erased"
        for first, last in entry.get("seqs", [])
        for seq in range(first, last + 1)
    }
    rows: list[Mapping[str, Any]] = []
    seen: set[int] = set()
    with engine.connect() as connection:
        for row in connection.execute(select(schema.records).order_by(schema.records.c.seq)).mappings():
            seq, entry = row["seq"], entries.get(row["seq"], {})
            seen.add(seq)
            name = _name(row)
            parts = (row[column] for column in ("kind", "key", "branch", "round", "client", "content", "blob"))
            if entry.get("digest") != digest(row["salt"], *parts):
                done.find(name, "is not what the log says: it was changed, or stands in another's place")
            elif seq in gone:
                done.find(name, "was erased, and is back")
            else:
                rows.append({**row, "content": json.loads(row["content"])})
    for seq, entry in entries.items():
        if "digest" in entry and seq not in seen and seq not in gone:
            done.find(f"record {seq} ({entry.get('kind')})", "is missing, and the log does not say that it was erased")
    done.records = len(seen)
    return rows


def _name(row: RowMapping | Mapping[str, Any]) -> str:
    return f"record {row['seq']} ({str(row['kind'])[:20]} {str(row['key'])[:80]})"


def _check_blobs(root: Path, keys: Keys, rows: list[Mapping[str, Any]], done: Verification) -> None:
    blobs = FolderBlobs(root / "ledger" / "blobs")
    needed: set[str] = set()
    used: set[str] = set()
    for row in rows:
        if row["blob"] is None:
            continue
        needed.add(row["blob"])
        key = key_name_of(row["kind"], row["branch"], row["round"], row["client"])
        used.add(key)
        try:
            data = blobs.get(row["blob"])
            unseal(keys.get(key), data, blob_context(row["kind"], row["branch"], row["round"], row["client"]))
        except IntegrityError as error:
            done.find(_name(row), str(error))
    for name in sorted(blobs.names() - needed):
        done.find(f"blob {name}", "belongs to no record")
    for path in sorted((root / "ledger").rglob("*.partial")):
        done.find(str(path.relative_to(root)), "was left by an interrupted write; it goes when the run is opened next")
    for key in keys.names():
        if key not in used:
            done.find(f"keys/{key}.key", "seals nothing that is kept")
    done.blobs = len(needed)


def _check_forgotten(root: Path, keys: Keys, rows: list[Mapping[str, Any]], done: Verification) -> None:
    """Look for what was forgotten: records, keys and adapters."""
    listed = [row["content"] for row in rows if row["kind"] == "exclusion"] + (keys.read_json(EXCLUSIONS) or [])
    whole = {absence["client"] for absence in listed if absence["samples"] is None}
    for row in rows:
        if row["kind"] in _NAMING:
            named = whole & ({row["client"]} | set(_clients(row["content"])))
            for client in sorted(named):
                done.find(_name(row), f"is about '{client}', which was forgotten")
    for client in sorted(whole):
        if (keys.folder / "contributions" / client).is_dir() and any(
            (keys.folder / "contributions" / client).glob("*.key")
        ):
            done.find(f"keys/contributions/{client}", "is a key of a client that was forgotten")
        if client in (keys.read_json(SIMULATED) or {}):
            done.find(f"keys/{SIMULATED}", f"has the key of '{client}', which was forgotten")
    _check_samples(rows, done)
    removals = [row["content"] for row in rows if row["kind"] == "removal"]
    if removals and (root / "adapters" / "original").exists():
        done.find("adapters/original", "is the model before a removal that was committed")


def _check_samples(rows: list[Mapping[str, Any]], done: Verification) -> None:
    """After a client's samples were forgotten, no contribution of it from t_u on may be one that trained on them."""
    asked = {row["content"]["id"]: row["content"] for row in rows if row["kind"] == "request"}
    branches = {row["seq"]: row["content"] for row in rows if row["kind"] == "branch"}
    for removal in (row["content"] for row in rows if row["kind"] == "removal"):
        request = asked.get(removal["request"])
        if request is None or request["samples"] is None:
            continue
        for row in rows:
            if row["kind"] != "contribution" or row["client"] != request["client"]:
                continue
            absent = branches.get(row["branch"], {}).get("absent", [])
            left_out = {s for a in absent if a["client"] == row["client"] for s in a["samples"] or ()}
            if not set(request["samples"]) <= left_out:
                done.find(_name(row), f"may hold samples that {removal['request']} had forgotten")


def _clients(content: Mapping[str, Any]) -> Iterator[str]:
    """The clients that a selection, cohort or round names."""
    for part in ("selected", "accepted", "refused", "failed"):
        yield from content.get(part, ())
    for cohort in content.get("cohorts", ()):
        yield from cohort
