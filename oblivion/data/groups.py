"""Choose the rows of a federation on which models are evaluated, in groups."""

from __future__ import annotations

from collections.abc import Sequence

from oblivion.data.corpus import FederatedData
from oblivion.types import ForgetRequest, Sample


def evenly(samples: Sequence[Sample], limit: int) -> tuple[Sample, ...]:
    """Return at most `limit` samples, spread evenly over the sequence; with 0, return all."""
    if not limit or len(samples) <= limit:
        return tuple(samples)
    return tuple(samples[i * len(samples) // limit] for i in range(limit))


def central_groups(data: FederatedData, request: ForgetRequest | None) -> dict[str, tuple[Sample, ...]]:
    """Return the groups of rows that a federation has.

    ``forget`` are the rows of the request and ``retain`` the rows of everybody else (those with a paraphrase and
    wrong answers, if there are any); the others are the server's own. Rows of the request that also stand among those
    that stay are ``shared``: neither they nor their likes are in ``forget`` or ``retain``.
    """
    groups = {name: rows for name, rows in data.groups.items() if name != "retain"}
    shared = {_content(row) for row in shared_rows(data, request)} if request else set()
    kept: list[Sample] = []
    for client, rows in data.clients.items():
        asked = asked_rows(rows, request) if request and client == request.client_id else ()
        if asked:
            groups["forget"] = tuple(row for row in asked if _content(row) not in shared)
            groups["shared"] = tuple(row for row in asked if _content(row) in shared)
        ids = {row.id for row in asked}
        kept += [row for row in rows if row.id not in ids and _content(row) not in shared]
    groups["retain"] = tuple([row for row in kept if row.paraphrase and row.wrong_answers] or kept)
    return {name: tuple(rows) for name, rows in sorted(groups.items()) if rows}


def shared_rows(data: FederatedData, request: ForgetRequest) -> tuple[Sample, ...]:
    """Return the rows of a request of which an exact copy stays, at another client or among the client's other rows.

    A copy has the same question and answer, to the letter, whatever its id; paraphrases are not found. No removal of
    the request forgets such rows: the oracle learns them, too.
    """
    asked = asked_rows(data.clients[request.client_id], request)
    contents, ids = {_content(row) for row in asked}, {row.id for row in asked}
    stay = {
        _content(row)
        for client, rows in data.clients.items()
        for row in rows
        if _content(row) in contents and not (client == request.client_id and row.id in ids)
    }
    return tuple(row for row in asked if _content(row) in stay)


def _content(row: Sample) -> tuple[str, str]:
    return row.prompt, row.answer


def asked_rows(rows: Sequence[Sample], request: ForgetRequest) -> tuple[Sample, ...]:
    """Return the rows of the client that a request is about."""
    if request.sample_ids is None:
        return tuple(rows)
    asked = set(request.sample_ids)
    return tuple(row for row in rows if row.id in asked)
