"""Removals that work with stored updates: puf, msa and federaser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from fake_hosts import INITIAL, SIZES
from hypothesis import given, settings
from hypothesis import strategies as st
from mortal import LEARNED, REQUEST, TRIAL, learned, run, survives
from torch import Tensor

from oblivion.aggregation.gate import GateState, tensor_norms
from oblivion.aggregation.round import RoundState
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.aggregation.rules.scaffold import Scaffold
from oblivion.aggregation.schemes.fedit import FedIT
from oblivion.aggregation.schemes.flora import FLoRA
from oblivion.aggregation.schemes.rolora import RoLoRA
from oblivion.errors import ConfigError, PlanRefusedError
from oblivion.federation.rounds import Federation
from oblivion.ledger.rounds import RoundRecord
from oblivion.removal.context import PlanningContext
from oblivion.removal.federaser import FedEraser, calibrate
from oblivion.removal.msa import Msa, combine_states
from oblivion.removal.plan import Removal, RemovalPlan, plan_removal
from oblivion.removal.puf import Puf, negate
from oblivion.removal.settings import removal_from
from oblivion.types import ClientUpdate, ForgetRequest, GlobalState

EVERY: tuple[Removal, ...] = (Puf(), Msa(), FedEraser())
HAS = frozenset({"target_online", "updates", "norms", "checkpoints"})


def context(**changes: Any) -> PlanningContext:
    """What `learned` came to: three rounds of a, b, c and d, of which d is to be forgotten."""
    everybody = tuple(SIZES)
    values: dict[str, Any] = {
        "rounds": LEARNED, "head": LEARNED, "aggregator": FedAvg(), "scheme": FedIT(), "seed": 0,
        "clients_per_round": 8, "steps": {"a": 4, "b": 4, "c": 4}, "usable": {"a": 4, "b": 3, "c": 2}, "forgotten": 1,
        "local_epochs": 4, "restorable": tuple(range(LEARNED + 1)), "available": HAS,
        "stored": {number: frozenset(SIZES) for number in range(1, LEARNED + 1)},
        "records": [
            RoundRecord(branch="main", round=number, selected=everybody, accepted=everybody)
            for number in range(1, LEARNED + 1)
        ],
    }  # fmt: skip
    return PlanningContext(**{**values, **changes})


def planned(removal: Removal, request: ForgetRequest = REQUEST, **changes: Any) -> RemovalPlan:
    return plan_removal(removal, type(removal).__name__.lower(), request, context(**changes))


def update(client: str, values: Sequence[float], examples: int = 1) -> ClientUpdate:
    delta = {"x.lora_A": torch.tensor(values)}
    return ClientUpdate(client_id=client, round=1, delta=delta, num_examples=examples, steps=1)


def state(values: Sequence[float]) -> RoundState:
    adapter = {"x.lora_A": torch.tensor(values)}
    return RoundState(round=3, state=GlobalState(adapter=adapter), rule_state={}, gate_state=GateState())


class Past:
    """A history of one round."""

    def __init__(self, *updates: ClientUpdate) -> None:
        self.updates = updates

    def contributions(self, round: int) -> tuple[ClientUpdate, ...]:
        return self.updates

    def contribution(self, client: str, round: int) -> ClientUpdate:
        return next(one for one in self.updates if one.client_id == client)


def of(after: RoundState) -> Tensor:
    return after.state.adapter["x.lora_A"]


def as_numpy(adapter: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.double().numpy() for name, tensor in adapter.items()}


# By hand


def test_puf_by_hand() -> None:
    # (1, 1) - 0.5 * (2, -4) = (0, 3)
    after = negate(state([1.0, 1.0]), Past(update("d", [2.0, -4.0])), client="d", round=1, scale=0.5)
    assert of(after).tolist() == [0.0, 3.0]


def test_msa_by_hand() -> None:
    # others: (1 * (4, 0) + 3 * (0, 4)) / 4 = (1, 3); (1, 1) - 2 * (1, 1) + 0.5 * (1, 3) = (-0.5, 0.5)
    past = Past(update("a", [4.0, 0.0], 1), update("b", [0.0, 4.0], 3), update("d", [1.0, 1.0]))
    after = combine_states(state([1.0, 1.0]), past, client="d", round=1, alpha=2.0, beta=0.5)
    assert of(after).tolist() == [-0.5, 0.5]


def test_federaser_by_hand() -> None:
    # the new direction (3, 4) / 5 at the old length |(0, 10)| = 10
    assert calibrate(update("a", [3.0, 4.0]), update("a", [0.0, 10.0])).delta["x.lora_A"].tolist() == [6.0, 8.0]
    still = calibrate(update("a", [0.0, 0.0]), update("a", [0.0, 10.0]))
    assert still.delta["x.lora_A"].tolist() == [0.0, 0.0], "a factor that is frozen stays"


def test_plans_by_hand() -> None:
    step, recovery = planned(Puf(recovery_rounds=2)).phases
    assert (step.kind, recovery.kind, step.values()["settings"]) == (
        "server-step",
        "rounds",
        {"round": 3, "scale": 0.5},
    )
    assert planned(Msa(beta=0.0)).phases[0].values()["settings"] == {"round": 1, "alpha": 0.5, "beta": 0.0}
    # back to round 0; round 1 without d; round 3 is calibrated with 2 of 4 passes, a batch each: 3 * 2; 2 * 12 more
    plan = planned(FedEraser())
    assert [phase.kind for phase in plan.phases] == ["restore", "server-step", "visit", "rounds"]
    assert plan.fork == 0 and plan.client_steps == 6 + 24 and plan.fraction == pytest.approx(30 / 36)
    assert [len(planned(FedEraser(interval=interval)).phases) for interval in (1, 2, 3)] == [5, 4, 3]
    for removal in EVERY:
        assert planned(removal).guarantee == "approximate" and planned(removal).from_round == 1
        assert planned(removal).client_steps == (30 if isinstance(removal, FedEraser) else 0)


# Parity: the same from what the ledger holds, written with NumPy


def deltas(made: Federation, round: int) -> dict[str, tuple[int, dict[str, Any]]]:
    stored = made.ledger.contributions("main", round)
    return {one.client_id: (one.num_examples, as_numpy(one.delta)) for one in stored}


def same(made: Federation, expected: Mapping[str, Any]) -> None:
    found = as_numpy(made.head(TRIAL).state.adapter)
    for name in INITIAL:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5)


def test_puf_is_the_last_state_less_the_last_update() -> None:
    made = learned()
    run(made, planned(Puf(scale=2.0)).phases)
    _, own = deltas(made, LEARNED)["d"]
    before = as_numpy(made.head("main").state.adapter)
    same(made, {name: before[name] - 2 * own[name] for name in INITIAL})


def test_msa_is_the_last_state_with_the_first_round_taken_apart() -> None:
    made = learned()
    run(made, planned(Msa(alpha=0.25, beta=0.75)).phases)
    first = deltas(made, 1)
    _, own = first.pop("d")
    total = sum(count for count, _ in first.values())
    before = as_numpy(made.head("main").state.adapter)
    mean = {name: sum(count * delta[name] for count, delta in first.values()) / total for name in INITIAL}
    same(made, {name: before[name] - 0.25 * own[name] + 0.75 * mean[name] for name in INITIAL})


def test_federaser_is_the_first_round_without_the_client_and_calibrated_ones() -> None:
    made = learned()
    new: dict[str, tuple[int, dict[str, Any]]] = {}

    def seen(one: ClientUpdate) -> ClientUpdate:
        new[one.client_id] = (one.num_examples, as_numpy(one.delta))
        return one

    made.hosts.changes = dict.fromkeys("abc", seen)
    run(made, planned(FedEraser(recovery_rounds=0)).phases)
    first, third = deltas(made, 1), deltas(made, 3)
    del first["d"]
    total = sum(count for count, _ in first.values())
    expected = {}
    for name in INITIAL:
        moved = sum(count * delta[name] for count, delta in first.values()) / total
        for client, (count, delta) in new.items():
            length = np.linalg.norm(third[client][1][name]) / np.linalg.norm(delta[name])
            moved = moved + count / total * length * delta[name]
        expected[name] = moved
    assert set(new) == {"a", "b", "c"}
    same(made, expected)


# Limits


def test_without_the_others_msa_is_the_negated_first_update() -> None:
    past = Past(update("d", [2.0, -4.0]))
    alone = combine_states(state([1.0, 1.0]), past, client="d", round=1, alpha=0.5, beta=0.7)
    assert torch.equal(of(alone), of(negate(state([1.0, 1.0]), past, client="d", round=1, scale=0.5)))


def test_puf_of_an_update_that_is_zero_changes_no_bit() -> None:
    zero = negate(state([0.1, 0.2]), Past(update("d", [0.0, 0.0])), client="d", round=1, scale=3.0)
    assert torch.equal(of(zero), torch.tensor([0.1, 0.2]))


def test_calibrating_an_update_with_itself_changes_nothing() -> None:
    one = update("a", [0.3, -0.7])
    torch.testing.assert_close(calibrate(one, one).delta["x.lora_A"], one.delta["x.lora_A"])


def test_federaser_that_retains_one_round_is_that_round_without_the_client() -> None:
    made = learned()
    run(made, planned(FedEraser(interval=LEARNED, recovery_rounds=0)).phases)
    others = [one for one in made.ledger.contributions("main", 1) if one.client_id != "d"]
    total = sum(one.num_examples for one in others)
    same(made, {n: sum(o.num_examples * o.delta[n].double().numpy() for o in others) / total for n in INITIAL})


# Properties

numbers = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3)
scales = st.floats(0.125, 4, width=32)


@settings(max_examples=40, deadline=None)
@given(start=numbers, delta=numbers, scale=scales)
def test_what_puf_takes_back_can_be_added_again(start: list[float], delta: list[float], scale: float) -> None:
    gone = negate(state(start), Past(update("d", delta)), client="d", round=1, scale=scale)
    again = of(gone) + scale * torch.tensor(delta)
    torch.testing.assert_close(again, torch.tensor(start), rtol=0, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(start=numbers, own=numbers, other=numbers, alpha=scales, beta=scales)
def test_msa_does_not_depend_on_the_order_of_clients(
    start: list[float], own: list[float], other: list[float], alpha: float, beta: float
) -> None:
    ones = (update("a", other, 2), update("b", own, 1), update("d", own))
    settings_ = {"client": "d", "round": 1, "alpha": alpha, "beta": beta}
    one = combine_states(state(start), Past(*ones), **settings_)
    torch.testing.assert_close(of(one), of(combine_states(state(start), Past(*ones[::-1]), **settings_)))


@settings(max_examples=40, deadline=None)
@given(new=numbers, old=numbers, factor=scales)
def test_a_calibrated_update_has_the_old_length_whatever_the_new_one(
    new: list[float], old: list[float], factor: float
) -> None:
    one = calibrate(update("a", new), update("a", old))
    longer = calibrate(update("a", [factor * value for value in new]), update("a", old))
    length = tensor_norms(update("a", old).delta)["x.lora_A"] if any(new) else 0.0
    assert tensor_norms(one.delta)["x.lora_A"] == pytest.approx(length, rel=1e-3, abs=1e-6)
    torch.testing.assert_close(one.delta["x.lora_A"], longer.delta["x.lora_A"], rtol=1e-3, atol=1e-4)


# Killed, and refused


@pytest.mark.parametrize(
    "removal", [Puf(recovery_rounds=1), Msa(recovery_rounds=1), FedEraser(interval=1, recovery_rounds=1)]
)
@pytest.mark.parametrize("after", [False, True])
def test_a_removal_that_is_killed_in_any_phase_ends_with_the_same_bits(removal: Removal, after: bool) -> None:
    survives(planned(removal).phases, after)


def test_federaser_goes_through_the_rule_of_the_run() -> None:
    phases = planned(FedEraser(interval=1, recovery_rounds=0)).phases
    made = survives(phases, after=False, federation__aggregator="fedadam")
    assert made.head(TRIAL).rule_state, "its moments are those of the rounds without the client"


def test_what_the_stored_updates_cannot_answer_is_refused() -> None:
    some = ForgetRequest(id="r", client_id="d", sample_ids=("s",))
    for removal in EVERY:
        with pytest.raises(PlanRefusedError, match="whole client"):
            planned(removal, some)
        with pytest.raises(PlanRefusedError, match="new factors in every round"):
            planned(removal, scheme=FLoRA())
        with pytest.raises(PlanRefusedError, match=r"requires (norms, )?updates, which this federation does not have"):
            planned(removal, available=HAS - {"updates", "norms"})
    late = {3: frozenset(SIZES)}
    with pytest.raises(PlanRefusedError, match="that of round 1 is not kept"):
        planned(Msa(), stored=late)
    assert planned(Puf(), stored=late).phases[0].values()["settings"]["round"] == 3
    with pytest.raises(PlanRefusedError, match="round 1, whose contributions are not all kept"):
        planned(FedEraser(), stored=late)
    with pytest.raises(PlanRefusedError, match="round 0, whose state is not kept"):
        planned(FedEraser(), restorable=(1, 2, 3), stored=context().stored)
    with pytest.raises(PlanRefusedError, match="control variates"):
        planned(FedEraser(), aggregator=Scaffold())
    with pytest.raises(PlanRefusedError, match="by turns; choose an odd interval"):
        planned(FedEraser(), scheme=RoLoRA())
    assert planned(FedEraser(interval=1), scheme=RoLoRA()).guarantee == "approximate"


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("puf", {"scale": 0}), ("puf", {"scale": "x"}), ("msa", {"alpha": -1}), ("msa", {"recovery-rounds": -1}),
        ("federaser", {"interval": 0}), ("federaser", {"ratio": 1.5}), ("federaser", {"ratio": 0}),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_line(name: str, table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        removal_from(name, table)
    assert f"forget.methods.{name}: '{name}' with" in str(caught.value) and "\n" not in str(caught.value)
