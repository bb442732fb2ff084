"""Asking hosts: which clients each serves, and what the cohorts of a round came to, through the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oblivion.aggregation.gate import FOR_OTHERS, Gate
from oblivion.errors import FederationError
from oblivion.federation.absence import told
from oblivion.federation.hosts import Hosts
from oblivion.ledger.rounds import CohortOutcome
from oblivion.replies import heard, served
from oblivion.run.events import Observer
from oblivion.selection import assign
from oblivion.types import ClientTask, DescribeRequest, TrainRequest


def ask_for_clients(
    hosts: Hosts, settings: Mapping[str, Any], observer: Observer, known: Mapping[str, int] | None = None
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Ask every host which clients it serves.

    Where the run's data is known, it alone says who the clients are and how many rows they have. Where it is not and
    two hosts say different numbers for one client, the larger one counts: it is only a bound on what the client may
    claim, and a smaller one would have its honest updates refused.

    Parameters
    ----------
    hosts : Hosts
        The engine.
    settings : mapping
        The resolved run config, as plain JSON values.
    observer : Observer
        Told what of a host's answer was left out, and why.
    known : mapping of str to int, optional
        The clients of the run's data, each with its number of rows.

    Returns
    -------
    tuple
        Client id to its number of samples, and client id to the names of the hosts that serve it, sorted.

    Raises
    ------
    FederationError
        If no host says that it serves a client.
    """
    sizes: dict[str, int] = {}
    serves: dict[str, list[str]] = {}
    asked = [DescribeRequest(host=name, config=settings) for name in hosts.names()]
    replies = sorted(heard(hosts.ask(asked), asked), key=lambda r: r.host)
    disagreed = set()
    for reply in replies:
        taken, dropped = served(reply.clients, known)
        for text in [*dropped, *reply.failures.values()]:
            observer.event("warning", text=f"host {reply.host}: {text}", host=reply.host)
        for client, rows in taken.items():
            if sizes.get(client, rows) != rows:
                disagreed.add(client)
            sizes[client] = max(rows, sizes.get(client, 0))
            serves.setdefault(client, []).append(reply.host)
    for client in sorted(disagreed):
        names = ", ".join(serves[client])
        text = f"hosts {names} say different numbers of rows for {client}; the largest, {sizes[client]}, is its bound"
        observer.event("warning", text=text, client=client)
    if not sizes:
        reasons = told({f"host {reply.host}": why for reply in replies for why in reply.failures.values()})
        raise FederationError(f"no host says that it serves a client. {reasons}".strip())
    return sizes, serves


def dispatch(
    hosts: Hosts,
    common: TrainRequest,
    tasks: Mapping[int, tuple[ClientTask, ...]],
    gate: Gate,
    sizes: Mapping[str, int],
    serves: Mapping[str, Sequence[str]],
    most: Mapping[str, int],
) -> Iterator[CohortOutcome]:
    """Send cohorts to the hosts that serve them; yield what each came to, through the gate, as hosts answer.

    A host speaks for the clients of its message alone. Where it says something of another, that is dropped, nothing of
    the other is written anywhere, and whatever else the host sent in this round is refused.

    Parameters
    ----------
    hosts : Hosts
        The engine.
    common : TrainRequest
        What all are told; its `info` is the round.
    tasks : mapping of int to tuple of ClientTask
        The cohorts, by their place in the selection.
    gate : Gate
        That of the round.
    sizes, serves : mapping
        What `described` returned.
    most : mapping of str to int
        Client id to the most examples that its update can have.
    """
    places = {tuple(task.client_id for task in cohort): index for index, cohort in tasks.items()}
    given = {h: [c for c in mine if c in places] for h, mine in assign(list(places), sizes, serves).items()}
    unserved = [cohort for cohort in places if not any(cohort in mine for mine in given.values())]
    requests = [
        dataclasses.replace(common, host=host, cohorts=tuple(tasks[places[cohort]] for cohort in mine))
        for host, mine in given.items()
        if mine
    ]
    silent = dict(given)
    for reply in heard(hosts.ask(requests), requests):
        mine = silent.pop(reply.host, [])
        asked = {client: most[client] for cohort in mine for client in cohort}
        accepted, refused = gate.admit(reply.updates, asked, common.info.round)
        if any(client not in asked for client in reply.failures):
            accepted, refused = (), dict.fromkeys(asked, FOR_OTHERS)
        updates = {update.client_id: update for update in accepted}
        for cohort in mine:
            yield CohortOutcome(
                branch=common.info.branch,
                round=common.info.round,
                cohort=places[cohort],
                updates=tuple(updates[client] for client in sorted(cohort) if client in updates),
                refused={client: refused[client] for client in sorted(cohort) if client in refused},
                failed={
                    client: reply.failures.get(client, "its host answered without it")
                    for client in cohort
                    if client not in updates and client not in refused
                },
            )
    lost = {cohort: "no reply from its host" for mine in silent.values() for cohort in mine}
    for cohort, why in (lost | dict.fromkeys(unserved, "no host serves it")).items():
        yield CohortOutcome(
            branch=common.info.branch,
            round=common.info.round,
            cohort=places[cohort],
            failed=dict.fromkeys(cohort, why),
        )
