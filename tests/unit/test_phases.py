"""Phases: what they plan, what they commit, and that a run which was killed in any of them ends with the same bits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from fake_hosts import INITIAL, MAIN, SIZES
from hypothesis import given, settings
from hypothesis import strategies as st
from mortal import LEARNED, REQUEST, TRIAL, learned, run, survives

from oblivion.aggregation.round import RoundState
from oblivion.errors import FederationError, PlanRefusedError
from oblivion.ledger.rounds import RoundRecord
from oblivion.removal.checklist import ChecklistItem, checklist
from oblivion.removal.combinations import moved
from oblivion.removal.context import PlanningContext
from oblivion.removal.ledger_reader import LedgerReader
from oblivion.removal.phases import Phase, Restore, Rounds, ServerStep, Until, Visit, starts
from oblivion.removal.plan import RemovalPlan, plan_removal, plan_values
from oblivion.types import ForgetRequest


def halve(before: RoundState, history: LedgerReader) -> RoundState:
    """A step of the server that reads both the state and the history."""
    scale = 0.5 * len(history.contributions(1))
    return moved(before, {name: -scale * tensor.double() for name, tensor in before.state.adapter.items()})


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Stops as soon as a round's loss is at most `most`."""

    most: float
    name: ClassVar[str] = "loss"

    def __call__(self, line: LedgerReader, began: int, record: RoundRecord) -> bool:
        return record.loss <= self.most


@dataclass(frozen=True, kw_only=True)
class Far:
    """Stops as soon as the adapter has moved so far since the phase began."""

    distance: float
    name: ClassVar[str] = "far"

    def __call__(self, line: LedgerReader, began: int, record: RoundRecord) -> bool:
        here, there = (line.state(round).state.adapter for round in (record.round, began))
        return sum(float((here[name] - there[name]).square().sum()) for name in here) ** 0.5 >= self.distance


VISIT = Visit(clients=("d",), objective="npo", local_epochs=2, learning_rate=1e-3)
OTHERS = Visit(clients=("a", "b", "c"), rows="own", objective="lm", local_epochs=1, learning_rate=1e-3)
STEP = ServerStep(name="halve", function=halve, settings={"by": 2})
PLANS: dict[str, tuple[Phase, ...]] = {
    "rounds": (Rounds(rounds=2),),
    "visit": (VISIT, Rounds(rounds=1)),
    "visit of several": (OTHERS, OTHERS),
    "step": (STEP, Rounds(rounds=1), STEP),
    "restore": (Restore(1), Rounds(rounds=2, replay=True), STEP),
    "until": (Until(phases=(OTHERS, STEP), stop=Far(distance=1e-3), times=3), Rounds(rounds=1)),
    "until the end": (Until(phases=(Rounds(rounds=2),), stop=Loss(most=-1), times=2), VISIT),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_is_killed_in_any_phase_ends_with_the_same_bits(name: str, after: bool) -> None:
    survives(PLANS[name], after)


def test_a_visit_of_several_clients_adds_their_mean() -> None:
    made = learned()
    before = made.head("main").state.adapter
    run(made, (dataclasses.replace(OTHERS, reset_rule_state=False),))
    asked = made.hosts.asked[-1]
    assert (asked.kind, asked.objective, asked.local_epochs, asked.learning_rate) == ("train.visit", "lm", 1, 1e-3)
    assert [task.forget for cohort in asked.cohorts for task in cohort] == [(), (), ()]
    record = made.ledger.records(TRIAL)[-1]
    assert record.accepted == ("a", "b", "c") and record.unlearned and record.cost.client_steps == 3
    after = made.head(TRIAL).state.adapter
    assert all(not torch.equal(after[name], before[name]) for name in INITIAL)
    assert made.ledger.contributions(TRIAL, LEARNED + 1) == (), "the updates of a visit are not stored"


def test_every_client_of_a_visit_must_answer() -> None:
    made = learned()
    made.hosts.changes["b"] = lambda update: None
    with pytest.raises(FederationError, match="b could not train: it crashed"):
        run(made, (OTHERS,))
    assert made.ledger.records(TRIAL)[-1].branch == "main", "nothing was committed"


def test_a_step_of_the_server_costs_nothing_and_is_recorded() -> None:
    made = learned()
    before = made.head("main").state.adapter
    assert run(made, (STEP,)) == LEARNED + 1
    after = made.head(TRIAL)
    # 4 clients contributed to round 1: w - 2 w
    assert all(torch.equal(after.state.adapter[name], -before[name]) for name in INITIAL)
    record = made.ledger.records(TRIAL)[-1]
    assert record.selected == () and record.cost.client_steps == 0 and record.unlearned
    assert TRIAL in {branch.name for branch in made.ledger.branches()} and made.ledger.restorable(TRIAL)[-1] == 4


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda before, history: moved(before, {n: t.double() / 0 for n, t in before.state.adapter.items()}), "finite"),
        (
            lambda before, history: dataclasses.replace(
                before, state=dataclasses.replace(before.state, adapter={"other": torch.zeros(1)})
            ),
            "other names or shapes",
        ),
    ],
)
def test_a_step_that_gives_no_state_of_the_run_is_refused(function: Any, words: str) -> None:
    made = learned()
    with pytest.raises(FederationError, match=f"the step 'bad' .*{words}"):
        run(made, (ServerStep(name="bad", function=function),))
    assert made.ledger.records(TRIAL)[-1].branch == "main"


@pytest.mark.parametrize(("most", "rounds"), [(1e9, 1), (-1.0, 4)])
def test_a_rule_stops_between_rounds(most: float, rounds: int) -> None:
    made = learned()
    phases = (Until(phases=(Rounds(rounds=2),), stop=Loss(most=most), times=2), STEP)
    assert run(made, phases) == LEARNED + rounds + 1
    kinds = [record.unlearned for record in made.ledger.records(TRIAL) if record.branch == TRIAL]
    assert kinds == [False] * rounds + [True]


def test_a_rule_stands_around_rounds_alone() -> None:
    inner = Until(phases=(Rounds(rounds=1),), stop=Loss(most=0))
    for phase in (inner, Restore(0)):
        with pytest.raises(ValueError, match="neither stand around"):
            Until(phases=(phase,), stop=Loss(most=0))
    with pytest.raises(ValueError, match="at least 1"):
        Until(phases=(), stop=Loss(most=0), times=0)


# Plans


def context(**changes: Any) -> PlanningContext:
    from oblivion.aggregation.rules.fedavg import FedAvg
    from oblivion.aggregation.schemes.fedit import FedIT

    values: dict[str, Any] = {
        "rounds": 4, "head": 4, "aggregator": FedAvg(), "scheme": FedIT(), "seed": 0, "clients_per_round": 4,
        "steps": {"a": 2, "b": 3, "c": 5}, "usable": {"a": 8, "b": 9, "c": 20}, "forgotten": 3, "batch_size": 8,
    }  # fmt: skip
    return PlanningContext(**{**values, **changes})


@dataclass(frozen=True)
class Given:
    """A removal with given phases."""

    phases: tuple[Phase, ...]
    requires: ClassVar[frozenset[str]] = frozenset()

    def plan(self, request: ForgetRequest, context: PlanningContext) -> RemovalPlan:
        items = checklist(context, {"global adapter": ("cleaned", "why"), "a lake": ("not covered", "it is deep")})
        return RemovalPlan(label="given", guarantee="approximate", phases=self.phases, checklist=items)


def test_the_cost_of_a_plan_is_that_of_its_phases() -> None:
    # the visits: 2 passes over 3 rows, and one over 8, 9 and 20 rows in batches of 8: 2 + (1 + 2 + 3); a round: 10
    plan = plan_removal(Given((VISIT, OTHERS, Rounds(rounds=2), STEP)), "given", REQUEST, context())
    assert plan.client_steps == 2 + 6 + 20 and plan.fraction == pytest.approx(28 / 40)
    until = Until(phases=(VISIT, Rounds(rounds=1)), stop=Loss(most=0), times=3)
    assert plan_removal(Given((until,)), "given", REQUEST, context()).client_steps == 3 * 12
    assert (plan.fork, plan.last_round) == (4, 9)


def test_a_plan_is_told_in_plain_values() -> None:
    import json

    phases = (Restore(1), STEP, VISIT, Until(phases=(Rounds(rounds=1),), stop=Loss(most=0.5), times=2))
    values = plan_values(plan_removal(Given(phases), "given", REQUEST, context()))
    assert json.loads(json.dumps(values)) == values
    restore, step, visit, until = values["phases"]
    assert restore == {"kind": "restore", "round": 1}
    assert step == {
        "kind": "server-step", "first": 2, "last": 2, "name": "halve", "settings": {"by": 2}, "reset_rule_state": True
    }  # fmt: skip
    assert visit["combine"] == {"name": "add", "scale": 1.0, "max_norm": 100.0} and visit["clients"] == ["d"]
    assert (until["first"], until["last"], until["stop"]) == (4, 5, {"name": "loss", "most": 0.5})
    assert until["phases"] == [{"kind": "rounds", "replay": False}]


def test_a_plan_names_the_objectives_of_its_visits() -> None:
    until = Until(phases=(Rounds(rounds=1), OTHERS), stop=Loss(most=0), times=2)
    named = [name for phase in (Restore(0), STEP, VISIT, until) for name, _ in phase.objectives()]
    assert named == ["npo", "lm"]


def test_only_the_first_phase_goes_back() -> None:
    with pytest.raises(PlanRefusedError, match="given: its phase 'restore' goes back, which only the first"):
        plan_removal(Given((Rounds(rounds=1), Restore(1))), "given", REQUEST, context())


def test_a_method_has_items_and_verdicts_of_its_own() -> None:
    plan = plan_removal(Given(()), "given", REQUEST, context())
    assert ChecklistItem("a lake", "not covered", "it is deep") in plan.checklist
    found = {one.item: one for one in plan.checklist}
    assert found["global adapter"].status == "cleaned"
    assert found["other clients' later updates"].status == "not covered", "what a method does not name is not covered"
    own = checklist(context(), {"selection": ("not covered", "mine")})
    assert next(one for one in own if one.item == "selection").why == "mine"


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 3), max_size=4), head=st.integers(0, 5))
def test_phases_follow_one_another_without_a_gap(counts: list[int], head: int) -> None:
    phases = [Rounds(rounds=count) for count in counts]
    placed = starts(phases, head)
    assert [at for _, at in placed] == [head + sum(counts[:place]) for place in range(len(counts))]
    assert sum(phase.cost(context(head=head), at) for phase, at in placed) == 10 * sum(counts)


def test_the_main_branch_is_the_history_of_every_plan() -> None:
    made = learned()
    seen: list[Any] = []

    def look(before: RoundState, history: LedgerReader) -> RoundState:
        seen.append((history.of_client("d"), {c: len(r) for c, r in history.stored().items()}))
        norms = history.norms("d", 2)
        assert norms == history.contribution("d", 2).norms and history.record(2).round == 2
        assert history.state(1).round == 1
        again = history.aggregate(history.state(1), history.contributions(2), 2)
        assert torch.equal(again.state.adapter["x.lora_A"], history.state(2).state.adapter["x.lora_A"])
        return before

    run(made, (Restore(0), ServerStep(name="look", function=look)))
    assert seen == [((1, 2, 3), dict.fromkeys((1, 2, 3), len(SIZES)))]
    assert MAIN.rounds == LEARNED
