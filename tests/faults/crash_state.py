"""What a run has on disk, in a form in which two runs can be compared, and what must not be there."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from oblivion.ledger.book import Book
from oblivion.ledger.opening import DATABASE, open_ledger
from oblivion.ledger.register import EXCLUSIONS, SIMULATED
from oblivion.ledger.store import StoredLedger, key_name
from oblivion.ledger.verify_evidence import verify
from oblivion.run.directory import RunDirectory

_VOLATILE = {"seconds", "time", "issued_at", "received_at", "due_at", "committed_at", "key_id", "log", "signatures"}
"""What is another in every run: times, and what is made of them or of random keys."""
_NOT_COMPARED = {"events.jsonl", "public-key.pem"}


def state_of(root: Path) -> dict[str, str]:
    """Everything that a run is, by name; requests are called R1, R2, ... in the order of receipt.

    The run directory's files and the ledger's records with their tensors; without times and random bits.
    """
    _, config = RunDirectory.open(root)
    ledger, register = open_ledger(root, config.ledger)
    try:
        ids = [asked.request.id for asked in register.all_asked()]
        ids += [removal.key for removal in register.removals() if removal.key not in ids]
        numbers = {request: f"R{number}" for number, request in enumerate(ids, start=1)}
        found = {**_records(ledger), **_files(root, numbers)}
        found["head"] = register.head()
        found["exclusions"] = json.dumps([dataclasses.asdict(absence) for absence in register.exclusions()])
        found["clients"] = ", ".join(register.clients())
        for asked in register.all_asked():
            samples = asked.request.sample_ids
            found[f"request {asked.request.id}"] = f"{asked.request.client_id} {samples} {asked.state} {asked.ground}"
    finally:
        ledger.close()
    return dict(sorted((_numbered(key, numbers), _numbered(value, numbers)) for key, value in found.items()))


def _numbered(text: str, numbers: dict[str, str]) -> str:
    for request, name in numbers.items():
        text = text.replace(request, name)
    return text


def _records(ledger: StoredLedger) -> dict[str, str]:
    names = {ledger.number(branch.name): branch.name for branch in ledger.branches()}
    found = {}
    for record in ledger.book.find("branch", "selection", "cohort", "contribution", "state", "round", "removal"):
        where = [record.kind, names.get(record.branch, record.key), record.round, record.client]
        if record.kind == "cohort":
            where.append(record.key.rpartition("/")[2])
        content = json.dumps(_steady(record.content), sort_keys=True)
        if record.blob is not None:
            content += " " + hashlib.sha256(ledger.open_blob(record)).hexdigest()
        name = " ".join(map(str, where))
        assert name not in found, f"{name} is in the ledger twice"
        found[name] = content
    return found


def _files(root: Path, numbers: dict[str, str]) -> dict[str, str]:
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or name in _NOT_COMPARED or name.split("/")[0] in ("ledger", "keys"):
            continue
        if path.suffix == ".json":
            value = json.loads(_numbered(path.read_text(), numbers))
            if path.name == "evidence.json":
                value = json.loads(base64.b64decode(value["payload"]))
            if path.name == "metrics.json" and "history" in value:
                value["history"].sort(key=lambda entry: (entry["branch"], entry["round"]))
            found[name] = json.dumps(_steady(value), sort_keys=True)
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        steady = {key: _steady(item) for key, item in value.items() if key not in _VOLATILE}
        if set(steady) == {"name", "digest"} and steady["name"].endswith("adapter_config.json"):
            steady["digest"] = ""  # it names the folder of the base model
        return steady
    return [_steady(item) for item in value] if isinstance(value, (list, tuple)) else value


def difference(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """How two states differ, in words."""
    lines = [f"lacks {key}: {expected[key][:300]}" for key in expected.keys() - found.keys()]
    lines += [f"has {key}: {found[key][:300]}" for key in found.keys() - expected.keys()]
    for key in expected.keys() & found.keys():
        if expected[key] != found[key]:
            start = next((i for i, (a, b) in enumerate(zip(expected[key], found[key], strict=False)) if a != b), 0)
            start = max(0, start - 60)
            lines.append(f"{key}: ...{expected[key][start : start + 200]}, now {found[key][start : start + 200]}")
    return sorted(lines)


def orphans(root: Path, erased_blobs: Iterable[str]) -> list[str]:
    """What lies in a run directory that nothing needs, found without opening the ledger (that would sweep it)."""
    wrong = [f"left over: {path}" for path in sorted(root.parent.rglob("*oblivion-partial*"))]
    wrong += [f"left over: {path}" for path in sorted(root.parent.iterdir()) if path != root]
    for number, line in enumerate((root / "events.jsonl").read_text().splitlines(), start=1):
        if not line.startswith("{") or not line.endswith("}"):
            wrong.append(f"line {number} of events.jsonl was cut: {line[-80:]}")
    wal = root / f"{DATABASE}-wal"
    if wal.exists() and wal.stat().st_size:
        wrong.append(f"{wal} has {wal.stat().st_size} bytes")
    connection = sqlite3.connect(f"file:{root / DATABASE}?mode=ro&immutable=1", uri=True)
    rows = connection.execute("SELECT seq, kind, key, branch, round, client, content, blob FROM records").fetchall()
    connection.close()
    sealed = [row for row in rows if row[-1] is not None]
    blobs = {path.name for path in (root / "ledger/blobs").rglob("*") if path.is_file()}
    wrong += [f"blob without a record: {name}" for name in sorted(blobs - {row[-1] for row in sealed})]
    wrong += [f"record without its blob: {row[:6]}" for row in sealed if row[-1] not in blobs]
    keys = {
        path.relative_to(root / "keys").as_posix().removesuffix(".key")
        for part in ("contributions", "states")
        for path in (root / "keys" / part).rglob("*")
        if path.is_file()
    }
    opened = {
        f"states/{row[3]}/{row[4]}" if row[1] == "state" else f"contributions/{row[5]}/{row[3]}" for row in sealed
    }
    wrong += [f"key without a record: {name}" for name in sorted(keys - opened)]
    wrong += [f"record without its key: {name}" for name in sorted(opened - keys)]
    database = (root / DATABASE).read_bytes()
    wrong += [f"the database still names the erased blob {name}" for name in erased_blobs if name.encode() in database]
    for client in _forgotten(root):
        wrong += [f"of {client}, who was forgotten: {row[:6]}" for row in rows if client in _mentions(row)]
        if client in json.loads((root / "keys" / SIMULATED).read_text()):
            wrong.append(f"the request key of {client}, who was forgotten")
    return wrong


def _forgotten(root: Path) -> list[str]:
    path = root / "keys" / EXCLUSIONS
    listed = json.loads(path.read_text()) if path.is_file() else []
    return [absence["client"] for absence in listed if absence["samples"] is None]


def _mentions(row: tuple[Any, ...]) -> str:
    """Where a record must not speak of a forgotten client; its request and exclusion, and branches, name it."""
    _, kind, key, _, _, client, content, _ = row
    return "" if kind in ("request", "exclusion", "removal", "branch") else f"{key} {client} {content}"


def unverified(root: Path) -> list[str]:
    """The checks of evidence that fail."""
    failed = []
    for path in sorted(root.glob("forgets/*/*/evidence.json")):
        checks = verify(path.read_bytes(), (root / "public-key.pem").read_bytes())
        failed += [f"{path}: {check}" for check in checks if check.status == "FAILED"]
    return failed


def blobs_of(root: Path) -> set[str]:
    """The names of a run's blobs."""
    return {path.name for path in (root / "ledger/blobs").rglob("*") if path.is_file()}


def lost(book: Book, store: StoredLedger, acknowledged: Iterable[int]) -> list[str]:
    """Which records that were acknowledged are neither there, whole, nor erased for a reason that the log has."""
    entries = [json.loads(entry) for entry in book.entries()]
    erased = {n for e in entries if e["kind"] == "erased" for first, last in e["seqs"] for n in range(first, last + 1)}
    there = {record.seq: record for record in book.find()}
    wrong = []
    for seq in acknowledged:
        if seq > len(entries):
            wrong.append(f"log entry {seq} was acknowledged, and is lost")
        elif "digest" not in entries[seq - 1] or seq in erased:
            continue
        elif seq not in there:
            wrong.append(f"{entries[seq - 1]} was acknowledged, and its record is lost")
        elif there[seq].blob is not None:
            assert key_name(there[seq]) and store.open_blob(there[seq])  # IntegrityError if it cannot be opened
    return wrong
