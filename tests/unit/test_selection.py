"""Selection, cohorts and assignment by hand."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

from oblivion.provenance import code_fingerprint
from oblivion.selection import assign, form_cohorts, population, select_clients, servable

CLIENTS = [f"client-{k}" for k in range(12)]


def test_population_counts_rounds_from_one() -> None:
    joins = {"b": 3}
    assert population(["c", "a", "b"], joins, 2) == ("a", "c")
    assert population(["c", "a", "b"], joins, 3) == ("a", "b", "c")


def test_ids_are_ordered_as_strings() -> None:
    assert population(["client-2", "client-10"], {}, 1) == ("client-10", "client-2")


def test_selected_are_those_with_the_smallest_hash() -> None:
    # the same hash written out: SHA-256 over the canonical JSON of (seed, purpose, round, client)
    def key(client: str) -> bytes:
        return hashlib.sha256(json.dumps([5, "selection", 2, client], separators=(",", ":")).encode()).digest()

    assert select_clients(CLIENTS, 4, 5, 2) == tuple(sorted(sorted(CLIENTS, key=key)[:4]))


def test_seed_and_round_change_the_selection() -> None:
    chosen = {select_clients(CLIENTS, 4, seed, round) for seed in range(3) for round in range(1, 4)}
    assert len(chosen) > 6
    assert select_clients(CLIENTS, 12, 0, 1) == tuple(sorted(CLIENTS))
    assert select_clients([], 4, 0, 1) == ()


def test_every_client_is_selected_about_equally_often() -> None:
    # 600 rounds of 4 out of 12: binomial with mean 200 and standard deviation 11.5; 5 deviations are 58
    counts = dict.fromkeys(CLIENTS, 0)
    for round in range(1, 601):
        for client in select_clients(CLIENTS, 4, 0, round):
            counts[client] += 1
    assert sum(counts.values()) == 2400 and all(abs(n - 200) < 58 for n in counts.values())


def test_cohorts_by_hand() -> None:
    sizes = {"a": 1, "b": 9, "c": 5, "d": 5, "e": 2}
    # from the largest on: b c d to the three cohorts, then back: e to the last, a to the one before
    assert form_cohorts(["a", "b", "c", "d", "e"], sizes, 2) == (("b",), ("c", "a"), ("d", "e"))
    assert form_cohorts(["a", "b", "c", "d", "e"], sizes, 3) == (("b", "e", "a"), ("c", "d"))
    assert form_cohorts(["a", "b"], sizes, 8) == (("b", "a"),)
    assert form_cohorts([], sizes, 2) == ()


def test_cohorts_trade_clients_until_none_brings_them_closer() -> None:
    sizes = {"a": 31, "b": 31, "c": 24, "d": 24, "e": 19, "f": 18, "g": 13}
    # dealt: a d e and b c f g, 74 and 86 rows. b for d (7 rows) leaves 81 and 79, and then e for f (1 row) 80 and 80
    assert form_cohorts(sorted(sizes), sizes, 4) == (("a", "b", "f"), ("d", "c", "e", "g"))


def test_assignment_by_hand() -> None:
    # loads: 9 to h0, 5 to h1, 4 to h1 (5 < 9), 1: both carry 9, the name decides
    sizes = {"a": 9, "b": 5, "c": 4, "d": 1}
    serves = {client: ["h0", "h1"] for client in sizes}
    assert assign([("a",), ("b",), ("c",), ("d",)], sizes, serves) == {
        "h0": [("a",), ("d",)],
        "h1": [("b",), ("c",)],
    }


def test_cohort_that_no_host_serves_whole_is_split() -> None:
    serves = {"a": ["silo-a"], "b": ["silo-b"]}
    assert assign([("a", "b")], {"a": 1, "b": 1}, serves) == {"silo-a": [("a",)], "silo-b": [("b",)]}
    both = {"a": ["silo-a", "silo-c"], "b": ["silo-b", "silo-c"]}
    assert assign([("a", "b")], {"a": 1, "b": 1}, both) == {"silo-c": [("a", "b")]}


def test_servable_cohorts_by_hand() -> None:
    serves = {"a": ["h1", "h2"], "b": ["h2"], "c": ["h3"], "d": ["h1", "h2", "h3"]}
    # h2 has a, b and d; a and c share none, and neither do a, b and c
    assert servable([("a", "b", "d"), ("c", "d")], serves) == (("a", "b", "d"), ("c", "d"))
    assert servable([("b", "a"), ("d", "c", "a")], serves) == (("b", "a"), ("d",), ("c",), ("a",))
    assert servable([("c",)], serves) == (("c",),) and servable([], serves) == ()


def test_what_is_servable_is_assigned_as_it_is() -> None:
    """The ledger knows a cohort by its place among the servable ones, so assigning must split nothing more."""
    sizes = {"a": 5, "b": 4, "c": 3, "d": 2}
    serves = {"a": ["h1"], "b": ["h1", "h2"], "c": ["h2"], "d": ["h1", "h2"]}
    cohorts = servable(form_cohorts(sizes, sizes, 2), serves)
    assert cohorts == (("a", "d"), ("b", "c")) and servable(cohorts, serves) == cohorts
    alone = servable(form_cohorts(sizes, sizes, 4), serves)
    assert alone == (("a",), ("b",), ("c",), ("d",)) and servable(alone, serves) == alone
    for formed in (cohorts, alone):
        given = assign(formed, sizes, serves)
        assert sorted(cohort for mine in given.values() for cohort in mine) == sorted(formed)
        assert all(host in serves[client] for host, mine in given.items() for cohort in mine for client in cohort)


def test_hosts_without_work_get_no_message() -> None:
    assert assign([("a",)], {"a": 1}, {"a": ["h0", "h1"], "b": ["h2"]}) == {"h0": [("a",)]}


def test_selection_and_fingerprint_are_the_same_in_another_process() -> None:
    code = (
        "from oblivion.selection import select_clients; from oblivion.provenance import code_fingerprint; import sys;"
        "print(select_clients([f'client-{k}' for k in range(12)], 4, 5, 2), code_fingerprint(), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == f"{select_clients(CLIENTS, 4, 5, 2)} {code_fingerprint()} False"
