"""The aggregation of one round: by hand, its limits, and what client-level privacy puts before the rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from rule_rounds import info, one, scalars, update

from oblivion.aggregation.gate import GateState
from oblivion.aggregation.round import Aggregation, RoundState, aggregate_round, scheme_error
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.aggregation.rules.fedavgm import FedAvgM
from oblivion.aggregation.rules.median import Median
from oblivion.aggregation.schemes.fedit import FedIT
from oblivion.types import ClientUpdate, GlobalState

PLAIN = Aggregation(rule=FedAvg(), scheme=FedIT())


def before(value: float = 1.0, **rule_state: torch.Tensor) -> RoundState:
    state = GlobalState(adapter=one(value))
    return RoundState(round=0, state=state, rule_state=rule_state, gate_state=GateState())


def value(state: RoundState) -> float:
    return float(state.state.adapter["w"])


def test_by_hand() -> None:
    # 1 + (3 * 2 + 1 * 6) / 4 = 4; the gate remembers both norms and the client whose update it refused.
    updates = [
        dataclasses.replace(update(0, one(2.0), 3), norms={"w": 2.0}),
        dataclasses.replace(update(1, one(6.0), 1), norms={"w": 6.0}),
    ]
    after = aggregate_round(before(), updates, info(5), PLAIN, {"client-2": "too large"})
    assert (value(after), after.round, after.rule_state) == (4.0, 5, {})
    assert after.gate_state.norms == ((("client-0", 2.0), ("client-1", 6.0)),)
    assert after.gate_state.strikes == (("client-2", 1, 5, "too large"),)


def test_examples_count_as_far_as_the_limit_allows_and_the_order_of_arrival_does_not() -> None:
    # The median number of examples is 1, so 98 count as 2: 1 + (1 * 0 + 1 * 0 + 2 * 4) / 4 = 3.
    updates = [update(0, one(0.0)), update(1, one(0.0)), update(2, one(4.0), 98)]
    limited = dataclasses.replace(PLAIN, max_influence=2.0)
    for given in (updates, updates[::-1]):
        assert value(aggregate_round(before(), given, info(), limited)) == 3.0


def test_with_client_level_privacy_the_rule_sees_the_noised_mean_and_the_gate_what_came() -> None:
    seen: list[Any] = []

    def noised(updates: Sequence[ClientUpdate], like: Any, told: Any) -> ClientUpdate:
        seen.append((len(updates), sorted(like), told.round))
        return ClientUpdate(client_id="", round=told.round, delta=one(0.25), num_examples=1, steps=0)

    private = dataclasses.replace(PLAIN, noised_mean=noised)
    assert value(aggregate_round(before(), scalars(5, 7), info(2), private)) == 1.25
    assert value(aggregate_round(before(), [], info(3), private)) == 1.25, "noise comes without an update, too"
    assert seen == [(2, ["w"], 2), (0, ["w"], 3)]


def test_without_a_contribution_the_states_stay_the_same_objects() -> None:
    start = before()
    after = aggregate_round(start, [], info(), dataclasses.replace(PLAIN, rule=FedAvgM()))
    assert after.state is start.state and after.rule_state is start.rule_state


@pytest.mark.parametrize("rule", [FedAvg(), Median()])
def test_the_error_of_a_scheme_is_that_of_the_plain_mean_whatever_the_rule(rule: Any) -> None:
    # Rank 1, from A = 1 and B = 0: the clients have (A, B) = (2, 1) and (0, 3). The mean of their products is 1, the
    # product of the means is 1 * 2 = 2, and both began at 0: the error is (2 - 1) / 1.
    adapter = {"x.lora_A": torch.ones(1, 1), "x.lora_B": torch.zeros(1, 1)}
    updates = [
        update(0, {"x.lora_A": torch.full((1, 1), 1.0), "x.lora_B": torch.full((1, 1), 1.0)}),
        update(1, {"x.lora_A": torch.full((1, 1), -1.0), "x.lora_B": torch.full((1, 1), 3.0)}),
    ]
    how = dataclasses.replace(PLAIN, rule=rule)
    start = RoundState(round=0, state=GlobalState(adapter=adapter), rule_state={}, gate_state=GateState())
    after = aggregate_round(start, updates, info(), how)
    assert scheme_error(start, updates, info(), how, after) == pytest.approx(1.0)
    assert scheme_error(start, [], info(), how, start) == 0.0
