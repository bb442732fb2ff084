"""Server rules under what must not matter, and what must be conserved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.aggregation.gate import update_norm
from oblivion.aggregation.rule import Rule
from oblivion.aggregation.rules.bulyan import Bulyan
from oblivion.aggregation.rules.clipped_mean import ClippedMean
from oblivion.aggregation.rules.fedadagrad import FedAdagrad
from oblivion.aggregation.rules.fedadam import FedAdam
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.aggregation.rules.fedavgm import FedAvgM
from oblivion.aggregation.rules.fedyogi import FedYogi
from oblivion.aggregation.rules.geometric_median import GeometricMedian
from oblivion.aggregation.rules.krum import Krum
from oblivion.aggregation.rules.median import Median
from oblivion.aggregation.rules.multi_krum import MultiKrum
from oblivion.aggregation.rules.trimmed_mean import TrimmedMean
from oblivion.aggregation.sums import equal_mean, mean_update
from oblivion.types import ClientUpdate, GlobalState, RoundInfo

INFO = RoundInfo(branch="main", round=1, rounds=1, population=(), seed=0)
RULES = [FedAvg(), FedAvg(learning_rate=0.7), FedAdam(), FedAdagrad(), FedYogi(), FedAvgM()]
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
@settings(max_examples=30)
@given(round=rounds, data=st.data())
def test_the_order_of_arrival_changes_no_bit(rule: Rule, round: list, data: st.DataObject) -> None:
    updates = make(round)
    one, memory = rule.step(updates, STATE, rule.init(STATE), INFO)
    two, other = rule.step(data.draw(st.permutations(updates)), STATE, rule.init(STATE), INFO)
    assert torch.equal(flat(one), flat(two))
    assert all(torch.equal(memory[name], other[name]) for name in memory)


@pytest.mark.parametrize("rule", RULES, **ids)
@settings(max_examples=30)
@given(round=rounds, factor=st.integers(2, 50))
def test_only_the_ratios_of_the_example_counts_matter(rule: Rule, round: list, factor: int) -> None:
    one, _ = rule.step(make(round), STATE, rule.init(STATE), INFO)
    scaled = make([(value, n * factor) for value, n in round])
    two, _ = rule.step(scaled, STATE, rule.init(STATE), INFO)
    torch.testing.assert_close(flat(one), flat(two), rtol=1e-6, atol=1e-6)


@settings(max_examples=50)
@given(round=rounds)
def test_the_mean_lies_between_the_updates(round: list) -> None:
    mean = mean_update(make(round))
    stacked = torch.tensor([value for value, _ in round])
    result = torch.cat([mean["a"], mean["b"].reshape(-1)])
    assert bool((result >= stacked.min(0).values - 1e-4).all())
    assert bool((result <= stacked.max(0).values + 1e-4).all())


@settings(max_examples=50)
@given(value=values, counts=st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_when_all_clients_agree_the_average_is_what_they_agree_on(value: list, counts: list) -> None:
    state, _ = FedAvg().step(make([(value, n) for n in counts]), STATE, {}, INFO)
    expected = flat(STATE).double() + torch.tensor(value).double()
    torch.testing.assert_close(flat(state).double(), expected, rtol=1e-6, atol=1e-5)


@settings(max_examples=50)
@given(round=rounds, factor=st.floats(-8, 8, width=32))
def test_fedavg_is_linear_in_the_updates(round: list, factor: float) -> None:
    def moved(updates: list[ClientUpdate]) -> torch.Tensor:
        zero = GlobalState(adapter={name: torch.zeros_like(t) for name, t in STATE.adapter.items()})
        return flat(FedAvg().step(updates, zero, {}, INFO)[0])

    scaled = make([([factor * x for x in value], n) for value, n in round])
    torch.testing.assert_close(moved(scaled), factor * moved(make(round)), rtol=1e-5, atol=1e-3)


@settings(max_examples=50)
@given(round=rounds, beta1=st.floats(0, 0.99), beta2=st.floats(0, 0.99), tau=st.floats(1e-4, 1))
def test_the_first_adam_step_has_the_sign_of_the_mean_and_a_bound(
    round: list, beta1: float, beta2: float, tau: float
) -> None:
    rule = FedAdam(learning_rate=1.0, beta1=beta1, beta2=beta2, tau=tau)
    updates = make(round)
    state, moments = rule.step(updates, STATE, rule.init(STATE), INFO)
    mean = mean_update(updates)
    step = torch.cat([(state.adapter[n] - STATE.adapter[n]).reshape(-1) for n in mean])
    gradient = torch.cat([mean[n].reshape(-1) for n in mean])
    # |m| = (1 - beta1) |D| and sqrt(v) >= sqrt(1 - beta2) |D|.
    assert bool((step * gradient >= 0).all())
    assert bool((step.abs() <= (1 - beta1) / (1 - beta2) ** 0.5 + 1e-5).all())
    assert all(bool((moments[f"v/{n}"] >= beta2 * tau**2 * (1 - 1e-6)).all()) for n in mean)


@settings(max_examples=50)
@given(round=rounds, beta2=st.floats(0, 0.99), tau=st.floats(1e-3, 1))
def test_second_moments_stay_above_nought_and_adagrads_only_grows(round: list, beta2: float, tau: float) -> None:
    updates = make(round)
    for rule in (FedAdagrad(tau=tau), FedYogi(beta2=beta2, tau=tau)):
        state, memory = STATE, rule.init(STATE)
        for _ in range(3):
            before = memory
            state, memory = rule.step(updates, state, memory, INFO)
            for name in ("v/a", "v/b"):
                assert bool((memory[name] >= 0).all())
                if isinstance(rule, FedAdagrad):
                    assert bool((memory[name] >= before[name]).all())


@settings(max_examples=50)
@given(round=rounds, momentum=st.floats(0, 0.99), count=st.integers(1, 5))
def test_equal_rounds_give_a_geometric_sum_of_momentum(round: list, momentum: float, count: int) -> None:
    rule = FedAvgM(momentum=momentum)
    state, memory = STATE, rule.init(STATE)
    for _ in range(count):
        state, memory = rule.step(make(round), state, memory, INFO)
    mean = torch.cat([tensor.reshape(-1) for tensor in mean_update(make(round)).values()])
    expected = sum(momentum**k for k in range(count)) * mean
    torch.testing.assert_close(torch.cat([memory["m/a"], memory["m/b"].reshape(-1)]), expected, rtol=1e-5, atol=1e-5)


# Whole numbers and powers of two: what a rule compares is then exact, and no tie is broken by rounding.
whole = st.lists(st.integers(-64, 64).map(float), min_size=3, max_size=3)
crowds = st.lists(st.tuples(whole, st.integers(1, 100)), min_size=7, max_size=10)
ROBUST = [
    Median(),
    TrimmedMean(trim=1),
    Krum(byzantine=1),
    MultiKrum(byzantine=1),
    Bulyan(byzantine=1),
    GeometricMedian(weighted=False),
]
ZERO = GlobalState(adapter={name: torch.zeros_like(tensor) for name, tensor in STATE.adapter.items()})


def step(rule: Rule, round: list) -> torch.Tensor:
    return flat(rule.step(make(round), ZERO, rule.init(ZERO), INFO)[0])


@pytest.mark.parametrize("rule", [*ROBUST, GeometricMedian(), ClippedMean(bound=5.0)], **ids)
@settings(max_examples=30)
@given(round=crowds, data=st.data())
def test_the_order_of_arrival_changes_no_bit_of_a_robust_rule(rule: Rule, round: list, data: st.DataObject) -> None:
    updates = make(round)
    one, _ = rule.step(updates, STATE, {}, INFO)
    two, _ = rule.step(data.draw(st.permutations(updates)), STATE, {}, INFO)
    assert torch.equal(flat(one), flat(two))


@pytest.mark.parametrize("rule", ROBUST, **ids)
@settings(max_examples=30)
@given(round=crowds, counts=st.lists(st.integers(1, 10_000), min_size=10, max_size=10))
def test_one_client_is_one_vote(rule: Rule, round: list, counts: list[int]) -> None:
    other = [(value, count) for (value, _), count in zip(round, counts, strict=False)]
    assert torch.equal(step(rule, round), step(rule, other))


@pytest.mark.parametrize("rule", [*ROBUST, GeometricMedian()], **ids)
@settings(max_examples=30)
@given(round=crowds, by=whole, factor=st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_robust_rules_move_and_stretch_with_the_updates(
    rule: Rule, round: list, by: list[float], factor: float
) -> None:
    changed = [([factor * x + b for x, b in zip(value, by, strict=True)], n) for value, n in round]
    # The smoothing of the geometric median is an absolute length, and does not stretch.
    torch.testing.assert_close(step(rule, changed), factor * step(rule, round) + torch.tensor(by), rtol=0, atol=2e-3)


@pytest.mark.parametrize("rule", ROBUST, **ids)
@settings(max_examples=30)
@given(
    agreed=whole,
    honest=st.integers(6, 9),
    place=st.integers(0, 6),
    lie=st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3),
)
def test_one_hostile_client_does_not_move_what_the_others_agree_on(
    rule: Rule, agreed: list[float], honest: int, place: int, lie: list[float]
) -> None:
    round = [(agreed, 1)] * honest
    round.insert(place, (lie, 1))
    torch.testing.assert_close(step(rule, round), torch.tensor(agreed), rtol=0, atol=1e-3)


@pytest.mark.parametrize("rule", ROBUST[:4], **ids)
@settings(max_examples=30)
@given(round=crowds)
def test_no_coordinate_leaves_the_range_of_the_updates(rule: Rule, round: list) -> None:
    stacked = torch.tensor([value for value, _ in round])
    assert bool((step(rule, round) >= stacked.min(0).values).all())
    assert bool((step(rule, round) <= stacked.max(0).values).all())


@settings(max_examples=50)
@given(round=rounds, bound=st.floats(1e-2, 1e3))
def test_a_clipped_mean_is_no_longer_than_its_bound_and_the_mean_where_nothing_is_clipped(
    round: list, bound: float
) -> None:
    moved = step(ClippedMean(bound=bound), round)
    assert float(moved.norm()) <= bound * (1 + 1e-5)
    updates = make(round)
    if max(update_norm(update.delta) for update in updates) <= bound:
        mean = torch.cat([tensor.reshape(-1) for tensor in equal_mean(updates).values()])
        assert torch.equal(moved, mean.to(torch.float32))
