"""The in-memory ledger: order, single contributions, rounds that follow each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from oblivion.aggregation.gate import GateState
from oblivion.errors import IntegrityError
from oblivion.ledger.memory import MemoryLedger, RoundRecord, RoundState, first_selected
from oblivion.types import ClientUpdate, GlobalState


def state(round: int, value: float = 0.0) -> RoundState:
    adapter = {"x": torch.full((2,), value)}
    return RoundState(round=round, state=GlobalState(adapter=adapter), rule_state={}, gate_state=GateState())


def update(client: str, round: int = 1) -> ClientUpdate:
    return ClientUpdate(client_id=client, round=round, delta={"x": torch.ones(2)}, num_examples=1, steps=1)


def record(round: int, branch: str = "main", selected: tuple[str, ...] = ("a", "b")) -> RoundRecord:
    return RoundRecord(branch=branch, round=round, selected=selected, accepted=selected)


@pytest.fixture
def ledger() -> MemoryLedger:
    made = MemoryLedger()
    made.branch("main", state(0))
    return made


def test_contributions_come_in_client_id_order(ledger: MemoryLedger) -> None:
    for client in ("client-2", "client-10", "client-1"):
        ledger.append("main", update(client))
    assert [u.client_id for u in ledger.contributions("main", 1)] == ["client-1", "client-10", "client-2"]
    assert ledger.contributions("main", 2) == ()


def test_a_client_contributes_once_a_round(ledger: MemoryLedger) -> None:
    first = update("a")
    ledger.append("main", first)
    with pytest.raises(IntegrityError, match="a contributed twice to round 1"):
        ledger.append("main", dataclasses.replace(first, num_examples=9))
    assert ledger.contributions("main", 1) == (first,)
    ledger.append("main", update("a", round=2))


def test_commit_moves_the_head_and_drops_the_rounds_contributions(ledger: MemoryLedger) -> None:
    ledger.append("main", update("a"))
    after = state(1, 5.0)
    ledger.commit(record(1), after)
    assert ledger.head("main") is after and ledger.records("main") == (record(1),)
    assert ledger.contributions("main", 1) == ()
    ledger.commit(record(2), state(2))
    assert [r.round for r in ledger.records("main")] == [1, 2]


@pytest.mark.parametrize(("recorded", "after"), [(2, 2), (0, 0), (1, 2), (2, 1)])
def test_rounds_must_follow_each_other(ledger: MemoryLedger, recorded: int, after: int) -> None:
    with pytest.raises(IntegrityError, match="does not follow round 0"):
        ledger.commit(record(recorded), state(after))
    assert ledger.head("main").round == 0 and ledger.records("main") == ()


def test_the_same_round_is_not_committed_twice(ledger: MemoryLedger) -> None:
    ledger.commit(record(1), state(1))
    with pytest.raises(IntegrityError, match="round 1 of 'main' does not follow round 1"):
        ledger.commit(record(1), state(1))


def test_branches_are_apart(ledger: MemoryLedger) -> None:
    ledger.commit(record(1), state(1))
    ledger.branch("removal", ledger.head("main"), ledger.records("main"))
    ledger.append("removal", update("a", 2))
    ledger.append("main", update("a", 2))
    ledger.commit(record(2, "removal"), state(2, 9.0))
    assert ledger.head("main").round == 1 and ledger.head("removal").round == 2
    assert len(ledger.records("main")) == 1 and len(ledger.records("removal")) == 2
    assert len(ledger.contributions("main", 2)) == 1


@pytest.mark.parametrize("ask", ["head", "records"])
def test_unknown_branch_is_named_with_the_known_ones(ledger: MemoryLedger, ask: str) -> None:
    with pytest.raises(IntegrityError, match=r"no branch 'x'; it has \['main'\]"):
        getattr(ledger, ask)("x")


def test_a_branch_name_is_used_once(ledger: MemoryLedger) -> None:
    with pytest.raises(IntegrityError, match="'main' exists already"):
        ledger.branch("main", state(0))


def test_reset_rule_changes_nothing_but_the_rule(ledger: MemoryLedger) -> None:
    before = ledger.head("main")
    fresh: Any = {"m/x": torch.zeros(2)}
    ledger.reset_rule("main", fresh)
    after = ledger.head("main")
    assert after.rule_state is fresh and after.state is before.state and after.round == before.round
    assert before.rule_state == {}, "values are never changed in place"


def test_first_selected_counts_selection_also_without_a_contribution() -> None:
    records = [record(1, selected=("a",)), RoundRecord(branch="main", round=2, selected=("b",), accepted=())]
    assert first_selected(records, "a") == 1 and first_selected(records, "b") == 2
    assert first_selected(records, "c") is None
