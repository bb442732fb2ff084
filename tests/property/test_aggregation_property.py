"""Server rules under what must not matter, and what must be conserved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.aggregation.fedadam import FedAdam
from oblivion.aggregation.fedavg import FedAvg
from oblivion.aggregation.rule import mean_update
from oblivion.types import ClientUpdate, GlobalState, RoundInfo

INFO = RoundInfo(branch="main", round=1, rounds=1, population=(), seed=0)
RULES = [FedAvg(), FedAvg(learning_rate=0.7), FedAdam()]
ids = {"ids": lambda rule: repr(rule)}

values = st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3)
rounds = st.lists(st.tuples(values, st.integers(1, 10_000)), min_size=1, max_size=8)
STATE = GlobalState(adapter={"a": torch.tensor([0.5, -2.0]), "b": torch.tensor([[1e-3]])})


def make(round: list[tuple[list[float], int]]) -> list[ClientUpdate]:
    return [
        ClientUpdate(
            client_id=f"client-{k}",
            round=1,
            delta={"a": torch.tensor(value[:2]), "b": torch.tensor([value[2:]])},
            num_examples=n,
            steps=1,
        )
        for k, (value, n) in enumerate(round)
    ]


def flat(state: GlobalState) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in state.adapter.values()])


@pytest.mark.parametrize("rule", RULES, **ids)
@settings(max_examples=30, deadline=None)
@given(round=rounds, data=st.data())
def test_the_order_of_arrival_changes_no_bit(rule: FedAvg | FedAdam, round: list, data: st.DataObject) -> None:
    updates = make(round)
    one, memory = rule.apply(updates, STATE, rule.init(STATE), INFO)
    two, other = rule.apply(data.draw(st.permutations(updates)), STATE, rule.init(STATE), INFO)
    assert torch.equal(flat(one), flat(two))
    assert all(torch.equal(memory[name], other[name]) for name in memory)


@pytest.mark.parametrize("rule", RULES, **ids)
@settings(max_examples=30, deadline=None)
@given(round=rounds, factor=st.integers(2, 50))
def test_only_the_ratios_of_the_example_counts_matter(rule: FedAvg | FedAdam, round: list, factor: int) -> None:
    one, _ = rule.apply(make(round), STATE, rule.init(STATE), INFO)
    scaled = make([(value, n * factor) for value, n in round])
    two, _ = rule.apply(scaled, STATE, rule.init(STATE), INFO)
    torch.testing.assert_close(flat(one), flat(two), rtol=1e-6, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(round=rounds)
def test_the_mean_lies_between_the_updates(round: list) -> None:
    mean = mean_update(make(round))
    stacked = torch.tensor([value for value, _ in round])
    result = torch.cat([mean["a"], mean["b"].reshape(-1)])
    assert bool((result >= stacked.min(0).values - 1e-4).all())
    assert bool((result <= stacked.max(0).values + 1e-4).all())


@settings(max_examples=50, deadline=None)
@given(value=values, counts=st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_when_all_clients_agree_the_average_is_what_they_agree_on(value: list, counts: list) -> None:
    state, _ = FedAvg().apply(make([(value, n) for n in counts]), STATE, {}, INFO)
    expected = flat(STATE).double() + torch.tensor(value).double()
    torch.testing.assert_close(flat(state).double(), expected, rtol=1e-6, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(round=rounds, factor=st.floats(-8, 8, width=32))
def test_fedavg_is_linear_in_the_updates(round: list, factor: float) -> None:
    def moved(updates: list[ClientUpdate]) -> torch.Tensor:
        zero = GlobalState(adapter={name: torch.zeros_like(t) for name, t in STATE.adapter.items()})
        return flat(FedAvg().apply(updates, zero, {}, INFO)[0])

    scaled = make([([factor * x for x in value], n) for value, n in round])
    torch.testing.assert_close(moved(scaled), factor * moved(make(round)), rtol=1e-5, atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(round=rounds, beta1=st.floats(0, 0.99), beta2=st.floats(0, 0.99), tau=st.floats(1e-4, 1))
def test_the_first_adam_step_has_the_sign_of_the_mean_and_a_bound(
    round: list, beta1: float, beta2: float, tau: float
) -> None:
    rule = FedAdam(learning_rate=1.0, beta1=beta1, beta2=beta2, tau=tau)
    updates = make(round)
    state, moments = rule.apply(updates, STATE, rule.init(STATE), INFO)
    mean = mean_update(updates)
    step = torch.cat([(state.adapter[n] - STATE.adapter[n]).reshape(-1) for n in mean])
    gradient = torch.cat([mean[n].reshape(-1) for n in mean])
    # |m| = (1 - beta1) |D| and sqrt(v) >= sqrt(1 - beta2) |D|.
    assert bool((step * gradient >= 0).all())
    assert bool((step.abs() <= (1 - beta1) / (1 - beta2) ** 0.5 + 1e-5).all())
    assert all(bool((moments[f"v/{n}"] >= beta2 * tau**2 * (1 - 1e-6)).all()) for n in mean)
