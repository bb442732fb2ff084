"""The selection of a round and its cohorts, as pure functions.

Neither depends on the number of hosts or on the order in which anything arrives, and taking a client out of the
population changes the selection only in rounds that had selected it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence

from oblivion.seeding import derive_seed


def population(clients: Sequence[str], joins: Mapping[str, int], round: int) -> tuple[str, ...]:
    """Return the clients that have joined by `round` (counted from 1), sorted by id."""
    return tuple(sorted(client for client in clients if joins.get(client, 1) <= round))


def select_clients(population: Sequence[str], count: int, seed: int, round: int) -> tuple[str, ...]:
    """Return the `count` clients with the smallest keyed hash of (seed, round, client), sorted by id."""
    ranked = sorted(population, key=lambda client: (derive_seed(seed, "selection", round, client), client))
    return tuple(sorted(ranked[:count]))


def client_steps(
    steps: Mapping[str, int], joins: Mapping[str, int], count: int, seed: int, first: int, last: int
) -> int:
    """Count the client-steps of rounds `first` to `last`.

    Parameters
    ----------
    steps : mapping of str to int
        Client id to the optimizer steps of one visit.
    joins : mapping of str to int
        The first round of each client that joins late.
    count : int
        Clients per round.
    seed : int
        The seed of the selection.
    first, last : int
        Rounds, counted from 1.
    """
    return sum(
        steps[client]
        for number in range(first, last + 1)
        for client in select_clients(population(tuple(steps), joins, number), count, seed, number)
    )


def form_cohorts(selected: Sequence[str], sizes: Mapping[str, int], count: int) -> tuple[tuple[str, ...], ...]:
    """Deal clients into cohorts of equal work, at most `count` in each.

    Clients are dealt by size, the largest first, to the first cohort up to the last and then back to the first; then
    the most and the least loaded cohort swap clients while that narrows the gap.
    """
    ordered = sorted(selected, key=lambda client: (-sizes[client], client))
    places = range(math.ceil(len(ordered) / count))
    cohorts: list[list[str]] = [[] for _ in places]
    for client, place in zip(ordered, itertools.cycle([*places, *reversed(places)])):
        cohorts[place].append(client)
    while _trade(cohorts, sizes):
        pass
    return tuple(map(tuple, cohorts))


def _trade(cohorts: list[list[str]], sizes: Mapping[str, int]) -> bool:
    """Swap the two clients that bring the most and the least work closest to each other; False if none do."""
    if len(cohorts) < 2:
        return False
    by_work = sorted(cohorts, key=lambda cohort: sum(sizes[client] for client in cohort))
    least, most = by_work[0], by_work[-1]
    apart = sum(sizes[client] for client in most) - sum(sizes[client] for client in least)
    swaps = [(x, y) for x in most for y in least if 0 < sizes[x] - sizes[y] < apart]
    if not swaps:
        return False
    x, y = min(swaps, key=lambda swap: abs(apart - 2 * (sizes[swap[0]] - sizes[swap[1]])))
    most[most.index(x)], least[least.index(y)] = y, x
    return True


def without(cohorts: Sequence[Sequence[str]], absent: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Return the cohorts without some clients; the others stay with the clients that they were with."""
    left = (tuple(client for client in cohort if client not in absent) for cohort in cohorts)
    return tuple(cohort for cohort in left if cohort)


def servable(cohorts: Sequence[Sequence[str]], serves: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Split cohorts that no single host serves into single clients."""
    whole: list[tuple[str, ...]] = []
    for cohort in cohorts:
        if set.intersection(*(set(serves.get(client, ())) for client in cohort)):
            whole.append(tuple(cohort))
        else:
            whole += [(client,) for client in cohort]
    return tuple(whole)


def assign(
    cohorts: Sequence[Sequence[str]], sizes: Mapping[str, int], serves: Mapping[str, Sequence[str]]
) -> dict[str, list[tuple[str, ...]]]:
    """Give whole cohorts to hosts: largest first, each to the least loaded host that serves all its clients.

    Parameters
    ----------
    cohorts : sequence of sequence of str
        The result of `form_cohorts`; a cohort that no single host serves is split into single clients.
    sizes : mapping of str to int
        The number of rows of each client.
    serves : mapping of str to sequence of str
        Client id to the hosts that serve it.

    Returns
    -------
    dict
        Host to its cohorts; a cohort that no host serves is left out. The assignment changes the time of a round and
        nothing of its result.
    """
    load: dict[str, int] = {host: 0 for hosts in serves.values() for host in hosts}
    given: dict[str, list[tuple[str, ...]]] = {host: [] for host in load}
    for cohort in sorted(servable(cohorts, serves), key=lambda c: (-sum(sizes[x] for x in c), c)):
        able = set.intersection(*(set(serves.get(client, ())) for client in cohort))
        if not able:
            continue
        host = min(able, key=lambda h: (load[h], h))
        given[host].append(cohort)
        load[host] += sum(sizes[client] for client in cohort)
    return {host: mine for host, mine in sorted(given.items()) if mine}
