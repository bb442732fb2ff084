"""Selection and cohorts are pure functions, and one client's absence moves nobody who was not beside it."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.selection import assign, form_cohorts, population, select_clients

ids = st.sets(st.integers(0, 99).map(lambda k: f"client-{k}"), min_size=1, max_size=15)
seeds = st.integers(0, 2**63 - 1)


@settings(max_examples=100)
@given(clients=ids, count=st.integers(1, 20), seed=seeds, round=st.integers(1, 50), data=st.data())
def test_removing_a_client_replaces_it_by_at_most_one(
    clients: set[str], count: int, seed: int, round: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(clients)))
    before = set(select_clients(sorted(clients), count, seed, round))
    after = set(select_clients(sorted(clients - {gone}), count, seed, round))
    if gone not in before:
        assert after == before
    else:
        assert before - after == {gone}
        assert len(after - before) == (1 if len(clients) > count else 0)


@settings(max_examples=60)
@given(clients=ids, count=st.integers(1, 20), seed=seeds, round=st.integers(1, 50), data=st.data())
def test_order_of_the_population_does_not_matter(
    clients: set[str], count: int, seed: int, round: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(sorted(clients)))
    selected = select_clients(shuffled, count, seed, round)
    assert selected == select_clients(sorted(clients), count, seed, round)
    assert list(selected) == sorted(selected) and set(selected) <= clients
    assert len(selected) == min(count, len(clients))


@settings(max_examples=60)
@given(clients=ids, small=st.integers(1, 8), more=st.integers(0, 8), seed=seeds)
def test_a_larger_selection_contains_the_smaller(clients: set[str], small: int, more: int, seed: int) -> None:
    assert set(select_clients(sorted(clients), small, seed, 1)) <= set(
        select_clients(sorted(clients), small + more, seed, 1)
    )


@settings(max_examples=60)
@given(clients=ids, data=st.data())
def test_population_grows_and_holds_who_has_joined(clients: set[str], data: st.DataObject) -> None:
    joins = data.draw(st.dictionaries(st.sampled_from(sorted(clients)), st.integers(1, 6)))
    sizes = [population(sorted(clients), joins, round) for round in range(1, 8)]
    for earlier, later in itertools.pairwise(sizes):
        assert set(earlier) <= set(later)
    for round, there in enumerate(sizes, start=1):
        assert list(there) == sorted(c for c in clients if joins.get(c, 1) <= round)


@settings(max_examples=80)
@given(clients=ids, count=st.integers(1, 6), data=st.data())
def test_cohorts_partition_the_selected_and_ignore_their_order(
    clients: set[str], count: int, data: st.DataObject
) -> None:
    sizes = {c: data.draw(st.integers(1, 9)) for c in sorted(clients)}
    shuffled = data.draw(st.permutations(sorted(clients)))
    cohorts = form_cohorts(shuffled, sizes, count)
    assert cohorts == form_cohorts(sorted(clients), dict(reversed(sizes.items())), count)
    assert sorted(c for cohort in cohorts for c in cohort) == sorted(clients)
    assert len(cohorts) == -(-len(clients) // count)
    members = [len(cohort) for cohort in cohorts]
    assert max(members) <= count and max(members) - min(members) <= 1
    work = [sum(sizes[c] for c in cohort) for cohort in cohorts]
    apart = max(work) - min(work)
    assert apart <= max(sizes.values())
    if work.count(max(work)) == work.count(min(work)) == 1:  # else the pair that was tried last is one of several
        most, least = cohorts[work.index(max(work))], cohorts[work.index(min(work))]
        assert not any(0 < sizes[x] - sizes[y] < apart for x in most for y in least)


@settings(max_examples=100)
@given(clients=ids, hosts=st.integers(1, 4), count=st.integers(1, 4), data=st.data())
def test_assignment_covers_every_cohort_once_on_hosts_that_serve_it(
    clients: set[str], hosts: int, count: int, data: st.DataObject
) -> None:
    names = [f"host-{k}" for k in range(hosts)]
    sizes = {c: data.draw(st.integers(1, 9)) for c in sorted(clients)}
    serves = {c: data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True)) for c in sorted(clients)}
    cohorts = form_cohorts(sorted(clients), sizes, count)
    given_out = assign(cohorts, sizes, serves)
    assert sorted(c for mine in given_out.values() for cohort in mine for c in cohort) == sorted(clients)
    for host, mine in given_out.items():
        assert mine and all(host in serves[c] for cohort in mine for c in cohort)
    handed = {cohort for mine in given_out.values() for cohort in mine}
    for cohort in cohorts:
        common = set.intersection(*(set(serves[c]) for c in cohort))
        assert (cohort in handed) if common else all((c,) in handed for c in cohort)
    assert given_out == assign(list(reversed(cohorts)), sizes, {c: list(reversed(h)) for c, h in serves.items()})
