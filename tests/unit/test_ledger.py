"""What every ledger keeps to: the one in memory and the stored one, by the same tests; and the words of a round."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from oblivion.aggregation.gate import GateState
from oblivion.config import LedgerConfig
from oblivion.errors import IntegrityError
from oblivion.ledger.contents import unnamed
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.rounds import (
    Absence,
    Branch,
    CohortOutcome,
    Ledger,
    RoundRecord,
    RoundState,
    Selection,
    first_selected,
    line,
    reachable,
)
from oblivion.types import ClientUpdate, GlobalState

MAIN = Branch(name="main", seed=7, rounds=10)


def state(round: int, value: float = 0.0) -> RoundState:
    adapter = {"x": torch.full((2,), value)}
    return RoundState(round=round, state=GlobalState(adapter=adapter), rule_state={}, gate_state=GateState())


def update(client: str, round: int = 1, value: float = 1.0) -> ClientUpdate:
    return ClientUpdate(client_id=client, round=round, delta={"x": torch.full((2,), value)}, num_examples=1, steps=1)


def cohort(place: int, *clients: str, round: int = 1, branch: str = "main", value: float = 1.0) -> CohortOutcome:
    updates = tuple(update(client, round, value) for client in clients)
    return CohortOutcome(branch=branch, round=round, cohort=place, updates=updates)


def record(round: int, branch: str = "main", clients: tuple[str, ...] = ("a", "b"), **changes: object) -> RoundRecord:
    made = RoundRecord(branch=branch, round=round, selected=clients, accepted=clients, loss=0.5)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def run_round(ledger: Ledger, round: int, branch: str = "main", keep: bool = False, value: float = 1.0) -> None:
    """One whole round of two clients, each a cohort of its own."""
    ledger.begin(Selection(branch=branch, round=round, selected=("a", "b"), cohorts=(("a",), ("b",))))
    ledger.append(cohort(0, "a", round=round, branch=branch, value=value))
    ledger.append(cohort(1, "b", round=round, branch=branch, value=-value))
    ledger.commit(record(round, branch), state(round, value), keep)


@pytest.fixture(params=["memory", "stored"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "memory":
        memory = MemoryLedger()
        memory.open_branch(MAIN, state(0))
        yield memory
        return
    stored, _ = open_ledger(tmp_path, LedgerConfig())
    stored.open_branch(MAIN, state(0))
    yield stored
    stored.close()


def test_contributions_come_in_client_id_order(ledger: Ledger) -> None:
    ledger.append(cohort(1, "client-2", "client-10"))
    ledger.append(cohort(0, "client-1"))
    assert [u.client_id for u in ledger.contributions("main", 1)] == ["client-1", "client-10", "client-2"]
    assert ledger.contributions("main", 2) == ()
    assert [outcome.cohort for outcome in ledger.outcomes("main", 1)] == [0, 1]


def test_outcomes_say_who_was_refused_and_who_failed_and_carry_no_update(ledger: Ledger) -> None:
    said = dataclasses.replace(cohort(0, "a"), refused={"b": "too large"}, failed={"c": "no reply"})
    ledger.append(said)
    assert ledger.outcomes("main", 1) == (dataclasses.replace(said, updates=()),)
    assert ledger.outcomes("main", 2) == ()


def test_a_client_contributes_once_a_round(ledger: Ledger) -> None:
    ledger.append(cohort(0, "a"))
    for again in (cohort(1, "a", value=9.0), cohort(0, "b")):
        with pytest.raises(IntegrityError):
            ledger.append(again)
    (only,) = ledger.contributions("main", 1)
    assert only.client_id == "a" and only.delta["x"].tolist() == [1.0, 1.0]
    assert [outcome.cohort for outcome in ledger.outcomes("main", 1)] == [0]
    ledger.append(cohort(0, "a", round=2))


def test_a_selection_is_there_from_its_beginning(ledger: Ledger) -> None:
    assert ledger.selection("main", 1) is None
    selection = Selection(branch="main", round=1, selected=("a", "b", "c"), cohorts=(("b",), ("a", "c")))
    ledger.begin(selection)
    assert ledger.selection("main", 1) == selection and ledger.selection("main", 2) is None
    with pytest.raises(IntegrityError):
        ledger.begin(dataclasses.replace(selection, selected=("z",)))
    assert ledger.selection("main", 1) == selection


def test_commit_ends_a_round_and_keeps_its_contributions(ledger: Ledger) -> None:
    run_round(ledger, 1)
    run_round(ledger, 2)
    assert ledger.records("main") == (record(1), record(2))
    assert [u.delta["x"].tolist() for u in ledger.contributions("main", 1)] == [[1.0, 1.0], [-1.0, -1.0]]


@pytest.mark.parametrize("round", [0, 2, -1])
def test_rounds_must_follow_each_other(ledger: Ledger, round: int) -> None:
    with pytest.raises(IntegrityError, match=f"round {round} of 'main' does not follow round 0"):
        ledger.commit(record(round), state(round), keep=True)
    with pytest.raises(IntegrityError, match="does not follow round 0"):
        ledger.begin(Selection(branch="main", round=round, selected=(), cohorts=()))
    assert ledger.records("main") == () and ledger.last_state("main", 10).round == 0


def test_the_same_round_is_not_committed_twice(ledger: Ledger) -> None:
    ledger.commit(record(1, clients=()), state(1), keep=False)
    with pytest.raises(IntegrityError, match="round 1 of 'main' does not follow round 1"):
        ledger.commit(record(1, clients=()), state(1), keep=False)


def test_checkpoints_are_those_that_were_to_be_kept(ledger: Ledger) -> None:
    for round in range(1, 6):
        run_round(ledger, round, keep=round == 3, value=float(round))
    found = {at_most: ledger.last_state("main", at_most) for at_most in (0, 2, 3, 5, 99)}
    assert {at_most: kept.round for at_most, kept in found.items()} == {0: 0, 2: 0, 3: 3, 5: 3, 99: 3}
    assert found[5].state.adapter["x"].tolist() == [3.0, 3.0]
    assert ledger.restorable("main") == (0, 1, 2, 3, 4, 5)
    with pytest.raises(IntegrityError, match="no state of 'main' is kept at or before round -1"):
        ledger.last_state("main", -1)


def test_an_unlearning_visit_is_not_aggregated_again(ledger: Ledger) -> None:
    run_round(ledger, 1)
    ledger.commit(record(2, clients=("a",), unlearned=True), state(2), keep=False)
    run_round(ledger, 3)
    assert ledger.restorable("main") == (0, 1), "rounds 2 and 3 follow the visit, whose update nobody has"
    run_round(ledger, 4, keep=True)
    run_round(ledger, 5)
    assert ledger.restorable("main") == (0, 1, 4, 5)


def test_a_round_without_anyone_can_be_had_again(ledger: Ledger) -> None:
    ledger.begin(Selection(branch="main", round=1, selected=("b",), cohorts=()))
    ledger.commit(record(1, clients=(), selected=("b",), failed={"b": "was unavailable"}), state(1), keep=False)
    assert ledger.restorable("main") == (0, 1) and ledger.contributions("main", 1) == ()


@pytest.fixture
def forked(ledger: Ledger) -> Ledger:
    """main to round 4; r/one leaves it after round 2; r/two leaves r/one after its round 3, and nobody else."""
    for round in range(1, 5):
        run_round(ledger, round, keep=round in (2, 4), value=float(round))
    absent: tuple[Absence, ...] = (Absence(client="c"),)
    ledger.open_branch(Branch(name="r/one", seed=7, rounds=5, parent="main", fork=2, absent=absent))
    for round in range(3, 6):
        run_round(ledger, round, "r/one", keep=round == 5, value=10.0 * round)
    absent += (Absence(client="b", samples=("s2", "s1")),)
    ledger.open_branch(Branch(name="r/two", seed=7, rounds=4, parent="r/one", fork=3, absent=absent))
    run_round(ledger, 4, "r/two", value=400.0)
    return ledger


def test_a_line_goes_through_its_forks(forked: Ledger) -> None:
    where = {name: [(r.branch, r.round) for r in forked.records(name)] for name in ("main", "r/one", "r/two")}
    assert where["main"] == [("main", 1), ("main", 2), ("main", 3), ("main", 4)]
    assert where["r/one"] == [("main", 1), ("main", 2), ("r/one", 3), ("r/one", 4), ("r/one", 5)]
    assert where["r/two"] == [("main", 1), ("main", 2), ("r/one", 3), ("r/two", 4)]
    values = {name: [forked.contributions(name, r)[0].delta["x"][0].item() for r in range(1, 5)] for name in where}
    assert values == {"main": [1, 2, 3, 4], "r/one": [1, 2, 30, 40], "r/two": [1, 2, 30, 400]}
    assert forked.contributions("r/two", 5) == (), "the later rounds of the parent are not on the line"


def test_states_are_found_through_forks(forked: Ledger) -> None:
    assert forked.last_state("r/two", 9).state.adapter["x"].tolist() == [2.0, 2.0]  # main's checkpoint of round 2
    assert forked.last_state("r/one", 9).state.adapter["x"].tolist() == [50.0, 50.0]
    assert forked.last_state("r/one", 4).round == 2 and forked.last_state("r/one", 1).round == 0
    assert {name: forked.restorable(name) for name in ("main", "r/one", "r/two")} == {
        "main": (0, 1, 2, 3, 4),
        "r/one": (0, 1, 2, 3, 4, 5),
        "r/two": (0, 1, 2, 3, 4),
    }


def test_selection_and_outcomes_are_of_the_branchs_own_rounds(forked: Ledger) -> None:
    """They are there to go on with a round that was begun; a round of the parent is over."""
    assert forked.selection("r/two", 4) is not None and len(forked.outcomes("r/two", 4)) == 2
    assert forked.selection("r/two", 3) is None and forked.outcomes("r/two", 3) == ()


def test_branches_come_back_as_they_were_begun(forked: Ledger) -> None:
    assert [branch.name for branch in forked.branches()] == ["main", "r/one", "r/two"]
    two = forked.branch("r/two")
    assert (two.parent, two.fork, two.seed, two.rounds, two.history) == ("r/one", 3, 7, 4, True)
    assert two.absent == (Absence(client="c"), Absence(client="b", samples=("s2", "s1")))


def test_a_branch_continues_after_its_fork(forked: Ledger) -> None:
    with pytest.raises(IntegrityError, match="round 3 of 'r/x' does not follow round 3"):
        forked.open_branch(Branch(name="r/x", seed=7, rounds=9, parent="r/one", fork=3))
        forked.commit(record(3, "r/x"), state(3), keep=False)


def test_a_dropped_branch_leaves_the_others_as_they_were(forked: Ledger) -> None:
    before = forked.records("r/one"), forked.restorable("r/one"), forked.restorable("main")
    forked.drop("r/two")
    assert [branch.name for branch in forked.branches()] == ["main", "r/one"]
    assert (forked.records("r/one"), forked.restorable("r/one"), forked.restorable("main")) == before
    for ask in (forked.records, forked.restorable, forked.drop, forked.branch):
        with pytest.raises(IntegrityError, match="no branch 'r/two'"):
            ask("r/two")
    forked.open_branch(Branch(name="r/two", seed=1, rounds=3, parent="main", fork=2))
    assert [r.branch for r in forked.records("r/two")] == ["main", "main"], "the name is free, and nothing came back"
    run_round(forked, 3, "r/two", value=9.0)
    assert forked.contributions("r/two", 3)[0].delta["x"].tolist() == [9.0, 9.0]


def test_an_unknown_branch_is_named_with_the_known_ones(ledger: Ledger) -> None:
    for ask in (ledger.records, ledger.restorable, ledger.branch, ledger.drop):
        with pytest.raises(IntegrityError, match=r"no branch 'x'; it has \['main'\]"):
            ask("x")
    for ask_round in (ledger.contributions, ledger.last_state, ledger.selection, ledger.outcomes):
        with pytest.raises(IntegrityError, match="no branch 'x'"):
            ask_round("x", 1)
    with pytest.raises(IntegrityError, match="no branch 'x'"):
        ledger.append(cohort(0, "a", branch="x"))
    with pytest.raises(IntegrityError, match="no branch 'x'"):
        ledger.commit(record(1, "x"), state(1), keep=True)


def test_a_branch_name_is_used_once(ledger: Ledger) -> None:
    with pytest.raises(IntegrityError, match="'main' exists already"):
        ledger.open_branch(MAIN, state(0))


def test_values_that_were_given_are_not_changed(ledger: Ledger) -> None:
    given = cohort(0, "a")
    before = {name: tensor.clone() for name, tensor in given.updates[0].delta.items()}
    ledger.append(given)
    ledger.commit(record(1, clients=("a",)), state(1), keep=True)
    assert all(torch.equal(given.updates[0].delta[name], tensor) for name, tensor in before.items())


# The words of a round, apart from any ledger


def test_first_selected_counts_selection_also_without_a_contribution() -> None:
    records = [record(1, clients=("a",)), record(2, clients=(), selected=("b",))]
    assert first_selected(records, "a") == 1 and first_selected(records, "b") == 2
    assert first_selected(records, "c") is None


def test_a_line_by_hand() -> None:
    branches = {
        "main": MAIN,
        "one": Branch(name="one", seed=0, rounds=8, parent="main", fork=4),
        "two": Branch(name="two", seed=0, rounds=8, parent="one", fork=6),
        "low": Branch(name="low", seed=0, rounds=8, parent="two", fork=2),
    }
    assert line(branches, "main", 3) == [("main", 0, 3)]
    assert line(branches, "two", 9) == [("main", 0, 4), ("one", 5, 6), ("two", 7, 9)]
    assert line(branches, "two", 5) == [("main", 0, 4), ("one", 5, 5), ("two", 7, 5)]
    # a fork before the parent's own: nothing of the parent is on the line
    assert line(branches, "low", 9) == [("main", 0, 2), ("one", 5, 2), ("two", 7, 2), ("low", 3, 9)]


def test_reachable_by_hand() -> None:
    # 0 is kept; 1 and 2 follow; 3 is lost, and with it 4; 5 is kept, 6 follows; 8 follows nothing
    assert reachable([0, 5], [1, 2, 4, 6, 8]) == (0, 1, 2, 5, 6)
    assert reachable([], [1, 2]) == () and reachable([3], []) == (3,)


def test_absence_by_hand() -> None:
    absent = (Absence(client="a"), Absence(client="b", samples=("2", "1")), Absence(client="b", samples=("3", "2")))
    branch = dataclasses.replace(MAIN, absent=absent)
    assert branch.leaves("a") and not branch.leaves("b") and not branch.leaves("c")
    assert branch.excluded("b") == ("1", "2", "3") and branch.excluded("a") == branch.excluded("c") == ()


def test_a_record_without_a_client_says_nothing_of_it() -> None:
    whole = {
        "selected": ["a", "b", "c", "d"],
        "accepted": ["a", "d"],
        "refused": {"b": "too large", "d": "it claims to be 'a'"},
        "failed": {"c": "no reply"},
        "loss": 1.5,
        "scheme_error": 0.5,
        "cost": {"a": 3},
    }
    assert unnamed("round", whole, "a") == {
        "selected": ["b", "c", "d"],
        "accepted": ["d"],
        "refused": {"b": "too large", "d": "it claims to be a client that was forgotten"},
        "failed": {"c": "no reply"},
        "loss": None,
        "scheme_error": 0.0,
        "cost": {"a": 3, "tokens": None},
    }
    assert unnamed("round", whole, "z") == whole, "the loss had no part of it"
    assert unnamed("contribution", {"selected": ["a"]}, "a") == {"selected": ["a"]}
    selection = {"selected": ["a", "b"], "cohorts": [["a", "b"], ["a"]], "charged": {"a": 1, "b": 1}}
    assert unnamed("selection", selection, "a") == {"selected": ["b"], "cohorts": [["b"], []], "charged": {"b": 1}}
    state = {
        "gate": [[["a", 1.0], ["b", 2.0]], [["a", 1.0]]],
        "trained": ["AB", "a"],
        "strikes": [["a", 1, 2, "why"], ["b", 1, 2, "not 'a'"]],
    }
    assert unnamed("state", state, "a") == {
        "gate": [[["b", 2.0]], []],
        "trained": ["AB", "a"],
        "strikes": [["b", 1, 2, "not a client that was forgotten"]],
    }
