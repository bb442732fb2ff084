"""Server rules and the FedIT scheme: by hand, against Flower and NumPy, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.rules.fedadam import FedAdam
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.aggregation.schemes import schemes
from oblivion.aggregation.schemes.fedit import FedIT
from oblivion.aggregation.sums import mean_update
from oblivion.errors import ConfigError
from oblivion.parameters import build
from oblivion.types import Adapter, ClientUpdate, GlobalState, RoundInfo

SHAPES = {"layer.lora_A": (4, 3), "layer.lora_B": (2, 4)}
SIZES = (3, 40, 17, 1, 128, 9, 60)


def info(round: int = 1) -> RoundInfo:
    return RoundInfo(branch="main", round=round, rounds=3, population=(), seed=0)


def update(client: int, delta: Adapter, num_examples: int = 1, round: int = 1) -> ClientUpdate:
    return ClientUpdate(client_id=f"client-{client}", round=round, delta=delta, num_examples=num_examples, steps=1)


def one(value: float, *more: float) -> Adapter:
    return {"w": torch.tensor([value, *more], dtype=torch.float32)}


def random_round(generator: np.random.Generator, round: int) -> list[ClientUpdate]:
    """Seven clients of unequal size."""
    return [
        update(
            client,
            {n: torch.from_numpy(generator.normal(scale=0.1, size=s).astype(np.float32)) for n, s in SHAPES.items()},
            size,
            round,
        )
        for client, size in enumerate(SIZES)
    ]


def start(generator: np.random.Generator) -> GlobalState:
    return GlobalState(
        adapter={n: torch.from_numpy(generator.normal(size=s).astype(np.float32)) for n, s in SHAPES.items()}
    )


def arrays(adapter: Adapter) -> list[np.ndarray]:
    return [tensor.numpy().astype(np.float64) for tensor in adapter.values()]


def equal(one: Adapter, two: Adapter) -> bool:
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


class TestFedAvg:
    def test_by_hand(self) -> None:
        # (1 * 2 + 3 * (-6)) / 4 = -4; 10 + 0.5 * (-4) = 8.
        updates = [update(0, one(2.0), 1), update(1, one(-6.0), 3)]
        state, rule_state = FedAvg(learning_rate=0.5).step(updates, GlobalState(adapter=one(10.0)), {}, info())
        assert state.adapter["w"].tolist() == [8.0]
        assert rule_state == {}

    def test_one_client_is_the_identity(self) -> None:
        delta = one(0.25, -1.5)
        state, _ = FedAvg().step([update(0, delta, 7)], GlobalState(adapter=one(1.0, 2.0)), {}, info())
        assert state.adapter["w"].tolist() == [1.25, 0.5]

    def test_three_rounds_of_flower(self) -> None:
        from flwr.server.strategy.aggregate import aggregate

        generator = np.random.default_rng(0)
        state, rule = start(generator), FedAvg()
        rule_state = rule.init(state)
        theirs = arrays(state.adapter)
        for round in (1, 2, 3):
            updates = random_round(generator, round)
            # Flower averages models: each client's is Flower's own global model plus the client's update.
            models = [[x + d for x, d in zip(theirs, arrays(u.delta), strict=True)] for u in updates]
            theirs = aggregate([(m, u.num_examples) for m, u in zip(models, updates, strict=True)])
            state, rule_state = rule.step(updates, state, rule_state, info(round))
            for ours, flower in zip(arrays(state.adapter), theirs, strict=True):
                np.testing.assert_allclose(ours, flower, rtol=0, atol=5e-7)  # fp32 is stored between rounds


class TestFedAdam:
    def test_by_hand(self) -> None:
        # D = 2, m = 0.1 * 2 = 0.2, v = 0.75 * 0.0625 + 0.25 * 4 = 1.046875 (v starts at tau^2 = 0.0625).
        rule = FedAdam(learning_rate=0.5, beta1=0.9, beta2=0.75, tau=0.25)
        state = GlobalState(adapter=one(1.0))
        assert {n: t.tolist() for n, t in rule.init(state).items()} == {"m/w": [0.0], "v/w": [0.0625]}
        after, moments = rule.step([update(0, one(2.0))], state, rule.init(state), info())
        assert moments["m/w"].tolist() == pytest.approx([0.2], rel=1e-6)
        assert moments["v/w"].tolist() == [1.046875]
        assert after.adapter["w"].tolist() == pytest.approx([1 + 0.5 * 0.2 / (math.sqrt(1.046875) + 0.25)], rel=1e-7)
        # Second round, D = -1: m = 0.9 * 0.2 - 0.1 = 0.08, v = 0.75 * 1.046875 + 0.25 = 1.03515625.
        again, moments = rule.step([update(0, one(-1.0))], after, moments, info(2))
        assert moments["v/w"].tolist() == [1.03515625]
        moved = float(again.adapter["w"]) - float(after.adapter["w"])
        assert moved == pytest.approx(0.5 * 0.08 / (math.sqrt(1.03515625) + 0.25), rel=1e-5)

    def test_three_rounds_of_algorithm_2_in_numpy(self) -> None:
        generator = np.random.default_rng(1)
        rule = FedAdam(learning_rate=0.05, beta1=0.8, beta2=0.95, tau=0.01)
        state = start(generator)
        rule_state = rule.init(state)
        x = np.concatenate([a.ravel() for a in arrays(state.adapter)])
        m, v = np.zeros_like(x), np.full_like(x, 0.01**2)
        for round in (1, 2, 3):
            updates = random_round(generator, round)
            deltas = np.stack([np.concatenate([a.ravel() for a in arrays(u.delta)]) for u in updates])
            gradient = np.average(deltas, axis=0, weights=SIZES)
            m = 0.8 * m + 0.2 * gradient
            v = 0.95 * v + 0.05 * gradient**2
            x = x + 0.05 * m / (np.sqrt(v) + 0.01)
            state, rule_state = rule.step(updates, state, rule_state, info(round))
        np.testing.assert_allclose(np.concatenate([a.ravel() for a in arrays(state.adapter)]), x, rtol=0, atol=5e-7)
        for moment, expected in (("m", m), ("v", v)):
            ours = np.concatenate([rule_state[f"{moment}/{name}"].numpy().ravel() for name in SHAPES])
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-9)

    def test_three_rounds_of_flower_with_its_two_differences_undone(self) -> None:
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
        from flwr.server.strategy import FedAdam as FlowerFedAdam

        generator = np.random.default_rng(2)
        state = start(generator)
        flower = FlowerFedAdam(
            initial_parameters=ndarrays_to_parameters(arrays(state.adapter)),
            eta=0.05,
            beta_1=0.9,
            beta_2=0.99,
            tau=1e-3,
        )
        names = sorted(state.adapter)
        zeros = {f"{m}/{n}": torch.zeros(SHAPES[n]) for m in "mv" for n in names}
        ours, moments, as_published = state, dict(zeros), state
        published = FedAdam(learning_rate=0.05)
        published_moments = published.init(state)
        for round in (1, 2, 3):
            updates = random_round(generator, round)
            # Their results carry models, made here from their own global model.
            results = [
                (
                    None,
                    FitRes(
                        Status(Code.OK, ""),
                        ndarrays_to_parameters(
                            [x + d for x, d in zip(flower.current_weights, arrays(u.delta), strict=True)]
                        ),
                        u.num_examples,
                        {},
                    ),
                )
                for u in updates
            ]
            flower.aggregate_fit(round, results, [])  # type: ignore[arg-type]
            corrected = 0.05 * math.sqrt(1 - 0.99 ** (round + 1)) / (1 - 0.9 ** (round + 1))
            ours, moments = FedAdam(learning_rate=corrected).step(updates, ours, moments, info(round))
            as_published, published_moments = published.step(updates, as_published, published_moments, info(round))
        for mine, theirs in zip(arrays(ours.adapter), flower.current_weights, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)
        gap = max(
            np.abs(mine - theirs).max()
            for mine, theirs in zip(arrays(as_published.adapter), flower.current_weights, strict=True)
        )
        assert gap > 1e-3  # the two differences are real ones

    def test_without_memory_and_with_a_large_tau_it_is_a_scaled_fedavg(self) -> None:
        # beta1 = beta2 = 0: m = D, v = D^2, step = lr D / (|D| + tau) -> (lr / tau) D for tau >> |D|.
        updates = [update(0, one(0.5, -2.0), 3), update(1, one(-1.0, 1.0), 1)]
        state = GlobalState(adapter=one(0.0, 0.0))
        rule = FedAdam(learning_rate=1e6, beta1=0.0, beta2=0.0, tau=1e6)
        adam, _ = rule.step(updates, state, rule.init(state), info())
        average, _ = FedAvg().step(updates, state, {}, info())
        torch.testing.assert_close(adam.adapter["w"], average.adapter["w"], rtol=1e-5, atol=0)


RULES = [FedAvg(), FedAvg(learning_rate=0.3), FedAdam()]


@pytest.mark.parametrize("rule", RULES)
def test_no_updates_leave_everything_as_it_is(rule: FedAvg | FedAdam) -> None:
    state = start(np.random.default_rng(3))
    rule_state = rule.init(state)
    after, after_rule = rule.step([], state, rule_state, info())
    assert after is state
    assert after_rule is rule_state


@pytest.mark.parametrize("rule", RULES)
def test_nothing_that_comes_in_is_changed_and_everything_that_comes_out_can_be_stored(
    rule: FedAvg | FedAdam,
) -> None:
    generator = np.random.default_rng(4)
    state, updates = start(generator), random_round(generator, 1)
    state = GlobalState(adapter=state.adapter, residual=one(1.0))
    rule_state = rule.init(state)
    tensors = [*state.adapter.values(), *rule_state.values(), *(t for u in updates for t in u.delta.values())]
    before = [tensor.clone() for tensor in tensors]
    after, after_rule = rule.step(updates, state, rule_state, info())
    assert all(torch.equal(one, two) for one, two in zip(tensors, before, strict=True))
    assert not equal(after.adapter, state.adapter)
    assert list(after.adapter) == sorted(state.adapter)
    assert after.residual is state.residual
    assert set(after_rule) == set(rule_state)
    inputs = {tensor.data_ptr() for tensor in tensors}
    for tensor in (*after.adapter.values(), *after_rule.values()):
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor.data_ptr() not in inputs


def test_what_the_rules_say_about_themselves() -> None:
    assert FedAvg().of_weights and FedAvg().of_mean
    assert FedAdam().of_mean and not FedAdam().of_weights
    assert FedAvg().state_fields == ()
    assert len(FedAdam().state_fields) == 2
    for rule in RULES:
        assert not rule.needs_client_state
        assert rule.needed() == 1
        assert rule.needed(1) == math.inf  # a mean bears no hostile client


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("fedavg", {"learning-rate": 0}, "learning_rate = 0 is not allowed"),
        ("fedavg", {"learning_rate": math.inf}, "learning_rate = inf"),
        ("fedavg", {"learning_rate": True}, "learning_rate = True"),
        ("fedavg", {"momentum": 0.9}, "'fedavg' has no parameter 'momentum'"),
        ("fedadam", {"tau": 0.0}, "tau = 0.0 is not allowed; it must be above 0"),
        ("fedadam", {"beta1": 1.0}, "beta1 = 1.0 is not allowed; it must be at least 0 and below 1"),
        ("fedadam", {"beta2": math.nan}, "beta2 = nan"),
        ("fedadam", {"learning_rate": "big"}, "federation.parameters"),
        ("fedadm", {}, "did you mean 'fedadam'"),
    ],
)
def test_wrong_parameters_are_config_errors(name: str, parameters: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(aggregators, name, parameters, "federation.parameters")


def test_the_tables_name_what_exists() -> None:
    assert build(aggregators, "fedavg", {}, "k") == FedAvg(learning_rate=1.0)
    assert build(aggregators, "fedadam", {}, "k") == FedAdam(learning_rate=0.01, beta1=0.9, beta2=0.99, tau=1e-3)
    assert build(schemes, "fedit", {}, "k") == FedIT()


def test_mean_update_by_hand() -> None:
    mean = mean_update([update(1, one(4.0, 0.0), 3), update(0, one(0.0, 8.0), 1)])
    assert mean["w"].tolist() == [3.0, 2.0]
