"""Committing a removal: its branch becomes the head of the run, and what held the forgotten data goes.

One transaction moves the head and erases the records; then blobs, keys and the write-ahead log follow. A crash in
between is made good when the ledger is opened next: what has no record is swept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from oblivion.data.keyed_ids import destroy_key
from oblivion.errors import OblivionError
from oblivion.ledger.book import Record, Writer, stamp
from oblivion.ledger.contents import NAMING, unnamed, unnumbered
from oblivion.ledger.register import EXCLUSIONS, NAMES, SIMULATED, Register, RequestStatus, absences
from oblivion.ledger.store import StoredLedger, key_name

_ROUND_KINDS = ("selection", "cohort", "contribution", "state", "round")


def commit_removal(
    ledger: StoredLedger, register: Register, asked: RequestStatus, branch: str, facts: Mapping[str, Any]
) -> dict[str, int]:
    """Make a removal's branch the head of the run and erase what it invalidates.

    Parameters
    ----------
    ledger, register
        Open on the same book.
    asked : RequestStatus
        The request that the removal answers.
    branch : str
        The removal's branch, complete.
    facts : mapping
        What the removal's record says: ``guarantee``, ``from_round`` (t_u; 0 for never selected), ``before`` and
        ``after`` (SHA-256 of the adapter files), ``trial`` and what else evidence will need.

    Returns
    -------
    dict
        How many records were erased, by kind.

    Raises
    ------
    OblivionError
        If the ledger's time is far ahead of the machine's; nothing is changed then.
    """
    if ahead := ledger.book.ahead():  # it would be dated wrong for ever
        raise OblivionError(f"nothing was committed: {ahead}")
    request = asked.request
    gone = _invalidated(ledger, branch, facts)
    others = [other for other in register.all_asked() if other.request.id != request.id]
    void = void_requests(asked, others)
    gone += _personal(register, asked, void)
    naming = _naming(ledger, {request.client_id} if request.whole_client else set(), gone, _tainted(ledger, facts))
    erased = Counter(record.kind for record in gone)
    erased["key"] = len(_key_names(gone) - _key_names(_sealed_after(ledger, gone)))
    keys = {other.request.id: register.next_state_key(other.request.id) for other in [asked, *others]}
    content = {**facts, "request": request.id, "branch": branch, "committed_at": stamp(ledger.book.now())}
    with ledger.book.transaction(anchor=True) as writer:
        writer.erase([record.seq for record in gone], f"{request.id} was committed")
        _write_again(writer, naming, f"{request.id} was committed")
        writer.add("exclusion", request.id, {"client": request.client_id, "samples": request.sample_ids})
        writer.add(
            "removal",
            request.id,
            {**content, "erased": dict(erased)},
            facts={"request": request.id} | {key: facts[key] for key in ("guarantee", "before", "after")},
        )
        for other in others:
            if other.open and other not in void and other.state != "received":
                said_of = {"request": other.request.id, "state": "received", "ground": VOID}
                writer.add("request.state", keys[other.request.id], said_of)
        said_of = {"request": request.id, "state": "committed", "ground": ""}
        writer.add("request.state", keys[request.id], said_of)
    finish_erasure(ledger, register)
    return dict(erased)


VOID = "another removal was committed since; try one for it again"
"""What a request says that is open again after a commit."""


def _naming(
    ledger: StoredLedger, clients: Iterable[str], gone: Iterable[Record] = (), tainted: Iterable[int] = ()
) -> list[tuple[Record, dict[str, Any]]]:
    """The records that stay and name one of some clients, with what they say without it.

    Who was never selected may be named as well: a host may have claimed whatever it liked. Of rounds that are tainted
    (their records' numbers) neither losses nor tokens stay.
    """
    going, unsaid = {record.seq for record in gone}, set(tainted)
    naming = []
    for record in ledger.book.find(*NAMING) if clients or unsaid else ():
        content = dict(record.content) | (unnumbered(record.content) if record.seq in unsaid else {})
        for client in clients:
            content = unnamed(record.kind, content, client)
        if content != record.content and record.seq not in going:
            naming.append((record, content))
    return naming


def _write_again(writer: Writer, naming: Iterable[tuple[Record, dict[str, Any]]], why: str) -> None:
    """Put records in the place of those that name a client."""
    naming = list(naming)
    writer.erase([record.seq for record, _ in naming], why)
    for record, content in naming:
        place: dict[str, Any] = {
            "branch": record.branch,
            "round": record.round,
            "client": record.client,
            "blob": record.blob,
        }
        writer.add(record.kind, record.key, content, **place)


def _tainted(ledger: StoredLedger, facts: Mapping[str, Any]) -> list[int]:
    """The round records of what was computed at models that had seen the data; of an exact removal none stays."""
    t_u, exact = facts["from_round"], facts["guarantee"] == "exact"
    return [r.seq for r in ledger.book.find("round") if not exact and 0 < t_u <= r.round]


def void_requests(asked: RequestStatus, others: Iterable[RequestStatus]) -> list[RequestStatus]:
    """The other requests that go with a request: those of its client, where that leaves altogether."""
    request = asked.request
    return [other for other in others if request.whole_client and other.request.client_id == request.client_id]


def _key_names(records: Iterable[Record]) -> set[str]:
    return {key_name(record) for record in records if record.blob is not None}


def _sealed_after(ledger: StoredLedger, gone: Iterable[Record]) -> list[Record]:
    seqs = {record.seq for record in gone}
    return [record for record in ledger.book.find("contribution", "state") if record.seq not in seqs]


def _invalidated(ledger: StoredLedger, branch: str, facts: Mapping[str, Any]) -> list[Record]:
    """The records that go.

    What stays of the line are the rounds before t_u, and of an exact removal also its own. What an approximate one
    left behind from t_u on was computed at models that had seen the data; of it only the head stays.
    """
    kept = {number: (first, last) for number, first, last in ledger.line(branch)}
    head = ledger.records(branch)[-1].round if ledger.records(branch) else 0
    t_u, exact = facts["from_round"], facts["guarantee"] == "exact"
    gone: list[Record] = []
    for record in ledger.book.find(*_ROUND_KINDS):
        first, last = kept.get(record.branch, (1, 0))
        tainted = not exact and 0 < t_u <= record.round and record.kind != "round"
        if not first <= record.round <= last or (tainted and not (record.kind == "state" and record.round == head)):
            gone.append(record)
    gone += [record for record in ledger.book.find("branch") if record.seq not in kept]
    return gone


def _personal(register: Register, asked: RequestStatus, void: list[RequestStatus]) -> list[Record]:
    """What the register holds of a client that leaves altogether: its key, other requests, samples excluded before."""
    if not asked.request.whole_client:
        return []
    client = asked.request.client_id
    ids = {other.request.id for other in void}
    gone = register.book.find("client", client=client)
    gone += [record for record in register.book.find("exclusion") if record.content["client"] == client]
    gone += [r for r in register.book.find("request") if r.client == client and r.content["id"] in ids]
    return gone + [r for r in register.book.find("request.state") if r.content["request"] in ids]


def finish_erasure(ledger: StoredLedger, register: Register) -> None:
    """Remove blobs and keys without a record, and mentions of who was forgotten; leave no trace in the database.

    The exclusions are noted beside the keys.

    It can be repeated, and does nothing where all of it is done.
    """
    ledger.reload()
    keys, listed = ledger.keys, register.exclusions()
    gone = {absence.client for absence in listed if absence.samples is None}
    if naming := _naming(ledger, gone):  # a host may have named one after it had left
        with ledger.book.transaction(anchor=True) as writer:
            _write_again(writer, naming, "it named a client that was forgotten")
    ledger.sweep()
    if absences(keys.read_json(EXCLUSIONS) or []) != listed:
        keys.write_json(EXCLUSIONS, [asdict(absence) for absence in listed])
    for name in (SIMULATED, NAMES):
        own = keys.read_json(name) or {}
        if gone & own.keys():
            keys.write_json(name, {client: value for client, value in own.items() if client not in gone})
    for client in sorted(gone):  # last: who lists the exclusions knows why it is not there
        destroy_key(keys.folder.parent, client)
    ledger.book.scrub(max(record.seq for record in register.removals()))
