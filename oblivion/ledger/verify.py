"""Verify a ledger: every entry, record, blob and key, what should be gone, and an earlier checkpoint.

Whoever changes the files without the keys is found out, and where: an entry that was edited, removed or moved fails its
authentication code or its number; a record that was edited, removed or swapped differs from its entry's digest; a
blob's name is its digest, and it opens with one key in one place only. Cutting off the end, or putting back an older
copy of everything, cannot be seen from within: it is found against a checkpoint that was kept elsewhere.
"""

from __future__ import annotations

import hmac
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from oblivion.data.keyed_ids import FOLDER
from oblivion.errors import InputError, IntegrityError
from oblivion.files import is_partial
from oblivion.ledger import reading, schema
from oblivion.ledger.adapters import WEIGHTS, erased_adapters, find_adapters
from oblivion.ledger.blobs import FolderBlobs, unseal
from oblivion.ledger.book import ANCHOR, last_seen
from oblivion.ledger.checkpoint import Checkpoint, check_checkpoint
from oblivion.ledger.contents import unnamed
from oblivion.ledger.keys import Keys, noise_key
from oblivion.ledger.merkle import Frontier, leaf_hash
from oblivion.ledger.public_key import read_public_key
from oblivion.ledger.reading import authenticate
from oblivion.ledger.register import EXCLUSIONS, NAMES, SIMULATED, absences
from oblivion.ledger.store import blob_context, key_name_of
from oblivion.run_format import CLIENT_STORE, ORIGINAL, PUBLIC_KEY, check_format

_OWNED = ("contribution", "client")
"""Kinds of records that are about one client."""
_OWN_FILES = ("ledger.db", "ledger.db-wal", "ledger.db-shm", "lock")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be, and where."""

    where: str
    what: str


@dataclass(kw_only=True)
class Verification:
    """What was looked at, what was found, and what could not be looked at; it is sound where `findings` is empty."""

    entries: int = 0
    records: int = 0
    blobs: int = 0
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

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
    from oblivion.ledger.opening import check_keys_exist, check_ledger_exists

    check_ledger_exists(root)
    check_format(root)
    check_keys_exist(root)
    keys, path = Keys(root / "keys"), root / "ledger" / "ledger.db"
    lock = schema.Lock(root / "ledger" / "lock", reading=True)
    try:
        with schema.database_errors(path):
            engine = schema.connect_to_read(path)
            try:
                schema.check_version(engine, path)
                done = Verification()
                entries, broken = _check_log(engine, keys, done, checkpoint)
                rows = _check_records(engine, entries, done)
            finally:
                engine.dispose()
        _check_blobs(root, keys, rows, done)
        # What stands behind a changed entry may be anything: it is compared with the log, and not believed.
        sure = [row for row in rows if row["seq"] < broken]
        _check_forgotten(keys, sure, done)
        _check_public_key(root, keys, done)
        _check_adapters(root, {seq: entry for seq, entry in entries.items() if seq < broken}, done)
        return done
    finally:
        lock.release()


def _check_log(
    engine: Engine, keys: Keys, done: Verification, checkpoint: Checkpoint | None
) -> tuple[dict[int, dict[str, Any]], float]:
    """Authenticate the log entry by entry; return the entries by number, and the first that is not authentic."""
    anchor = last_seen(keys)
    known = {f"keys/{ANCHOR}": anchor} if anchor is not None else {}
    known |= {"the given checkpoint": checkpoint} if checkpoint is not None else {}
    frontier, broken, expected = Frontier(), math.inf, 1
    entries: dict[int, dict[str, Any]] = {}
    log_key, public = keys.log(), keys.signing().public_key()
    with engine.connect() as connection:
        for seq, text, mac in reading.log_rows(connection):
            if seq < 1:
                done.find(f"log entry {seq}", "was added: entries are counted from 1")
                continue
            if seq != expected:
                gap = f"log entry {expected}" if seq == expected + 1 else f"log entries {expected} to {seq - 1}"
                done.find(gap, f"missing: entry {seq} follows")
                broken = min(broken, expected)
            expected = seq + 1
            frontier.append(leaf_hash(text))
            entry = entries[seq] = reading.parse(text)
            # Each code covers the whole log up to it: after the first that fails, the others say nothing new.
            if broken == math.inf:
                what, said = None, entry.get("seq")
                if type(said) is int and said != seq:
                    what = f"stands in another's place: it says it is entry {reading.shown(said)}"
                elif not hmac.compare_digest(mac, authenticate(log_key, seq, frontier.root())):
                    what = "was changed: its authentication code does not hold"
                if what is not None:
                    done.find(f"log entry {seq}", what)
                    broken = seq
            for name, seen in known.items():
                if frontier.size == seen.size and frontier.root() != seen.root:
                    done.find(f"log entries 1 to {seq}", f"are not those of {name}")
    if anchor is None and frontier.size > 1:
        done.find(f"keys/{ANCHOR}", "is missing: an older copy of the ledger would go unnoticed")
    for name, seen in known.items():
        if not check_checkpoint(public, seen):
            done.find(name, "is not signed by this run's key")
        elif seen.size > frontier.size:
            done.find(f"log entries {frontier.size + 1} to {seen.size}", f"of {name} are missing: an older copy?")
    done.entries = frontier.size
    return entries, broken


def _check_records(
    engine: Engine, entries: Mapping[int, Mapping[str, Any]], done: Verification
) -> list[Mapping[str, Any]]:
    """Compare every record with its entry; return the records that hold."""
    gone, seen = reading.erased(entries), set()
    rows: list[Mapping[str, Any]] = []
    with engine.connect() as connection:
        for row in reading.record_rows(connection):
            seen.add(row["seq"])
            what = reading.fault(row, entries, gone)
            if what is not None:
                done.find(reading.name(row), what)
            else:
                rows.append({**row, "content": reading.parse(row["content"])})
    for name in reading.missing(entries, seen, gone):
        done.find(name, "is missing, and the log does not say that it was erased")
    done.records = len(seen)
    return rows


def _check_blobs(root: Path, keys: Keys, rows: list[Mapping[str, Any]], done: Verification) -> None:
    """Open every blob; look for files and keys that belong to nothing."""
    blobs = FolderBlobs(root / "ledger" / "blobs")
    needed: set[str] = set()
    used = {noise_key(row["seq"]) for row in rows if row["kind"] == "branch"}
    for row in rows:
        if row["blob"] is None:
            continue
        needed.add(row["blob"])
        try:
            key = key_name_of(row["kind"], row["branch"], row["round"], row["client"])
            used.add(key)
            data = blobs.get(row["blob"])
            unseal(keys.get(key), data, blob_context(row["kind"], row["branch"], row["round"], row["client"]))
        except (IntegrityError, OSError, ValueError) as error:
            done.find(reading.name(row), reading.shown(str(error), 400))
    own = {*_OWN_FILES, *(f"blobs/{name[:2]}/{name}" for name in needed)}
    for path in sorted((root / "ledger").rglob("*")):
        place = path.relative_to(root / "ledger").as_posix()
        if place in own or (path.is_dir() and not path.is_symlink()):
            continue
        if is_partial(path.name) or is_partial(path.parent.name):
            what = "was left by an interrupted write; it goes when the run is opened next"
        else:
            what = "belongs to no record" if place.startswith("blobs/") else "does not belong to a ledger"
        done.find(reading.shown(f"ledger/{place}"), what)
    for key in keys.names():
        if key not in used:
            done.find(f"keys/{key}.key", "serves nothing that is kept")
    done.blobs = len(needed)


def _check_forgotten(keys: Keys, rows: list[Mapping[str, Any]], done: Verification) -> None:
    """Look for what was forgotten: records and keys."""
    known = absences(row["content"] for row in rows if row["kind"] == "exclusion")
    listed = absences(keys.read_json(EXCLUSIONS) or [])
    for absence in known:
        if absence not in listed:
            done.find(f"keys/{EXCLUSIONS}", f"does not name '{absence.client}', as the ledger does")
    whole = {absence.client for absence in known + listed if absence.samples is None}
    for row in rows:
        for client in sorted(whole):
            owned = row["kind"] in _OWNED and row["client"] == client
            if owned or unnamed(row["kind"], row["content"], client) != row["content"]:
                done.find(reading.name(row), f"is about '{client}', which was forgotten")
    for client in sorted(whole):
        if (keys.folder / "contributions" / client).is_dir() and any(
            (keys.folder / "contributions" / client).glob("*.key")
        ):
            done.find(f"keys/contributions/{client}", "is a key of a client that was forgotten")
        if os.path.lexists(keys.folder.parent / FOLDER / f"{client}.key"):
            done.find(f"{FOLDER}/{client}.key", "is a key of a client that was forgotten")
        if os.path.lexists(keys.folder.parent / CLIENT_STORE / client):
            done.find(f"{CLIENT_STORE}/{client}", "is what a client kept that was forgotten")
        if client in (keys.read_json(SIMULATED) or {}):
            done.find(f"keys/{SIMULATED}", f"has the key of '{client}', which was forgotten")
        if client in (keys.read_json(NAMES) or {}):
            done.find(f"keys/{NAMES}", f"has the name of '{client}', which was forgotten")
    _check_samples(rows, done)


def _check_public_key(root: Path, keys: Keys, done: Verification) -> None:
    """Compare the key with which the run's evidence is checked with the one that signs it."""
    if os.path.lexists(root / PUBLIC_KEY):
        try:
            same = read_public_key(root / PUBLIC_KEY) == keys.signing().public_key().public_bytes_raw()
        except InputError:
            same = False
        if not same:
            done.find(PUBLIC_KEY, "is not the key that this run signs with")


def _check_adapters(root: Path, entries: Mapping[int, Mapping[str, Any]], done: Verification) -> None:
    """Look for every adapter that the log knows as erased, anywhere in the run directory."""
    found: set[Path] = set()
    for path, place, why in find_adapters(root, erased_adapters(entries)):
        name = reading.shown(path.relative_to(root).as_posix(), 400)
        if place is None:
            done.unchecked.append(f"{name}: {reading.shown(why)}")
        else:
            done.find(name, f"is an adapter that a removal erased ({reading.shown(place)})")
            found.add(path)
    original = root / ORIGINAL
    removed = any(entry.get("kind") == "removal" for entry in entries.values())
    if removed and os.path.lexists(original) and original / WEIGHTS not in found:
        done.find(ORIGINAL, "stands where the model before a committed removal was")


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
                done.find(reading.name(row), f"may hold samples that {removal['request']} had forgotten")
