"""Rules with a memory on the server, and learning rate schedules: by hand, against NumPy, limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rule_rounds import SHAPES, SIZES, check_purity, flat, info, matrix, one, random_round, start, update, value

from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.rules.fedadagrad import FedAdagrad
from oblivion.aggregation.rules.fedadam import FedAdam
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.aggregation.rules.fedavgm import FedAvgM
from oblivion.aggregation.rules.fedyogi import FedYogi
from oblivion.aggregation.schedule import scheduled
from oblivion.errors import ConfigError, FederationError
from oblivion.parameters import build
from oblivion.types import GlobalState

RULES = [FedAvgM(), FedAdagrad(), FedAdagrad(beta1=0.9), FedYogi(), FedYogi(schedule="linear"), FedAvgM(momentum=0.0)]


def follow(rule: Any, *values: float) -> tuple[list[float], dict[str, float]]:
    """Where an adapter that starts at 0 is after each round of one client, and what the rule then remembers."""
    state = GlobalState(adapter=one(0.0))
    memory = rule.init(state)
    path = []
    for round, moved in enumerate(values, start=1):
        state, memory = rule.step([update(0, one(moved))], state, memory, info(round, len(values)))
        path.append(float(state.adapter["w"]))
    return path, {name: float(tensor) for name, tensor in memory.items()}


class TestFedAvgM:
    def test_by_hand(self) -> None:
        # D = (1 * 2 + 3 * (-6)) / 4 = -4: m = -4, x = 10 - 0.5 * 4 = 8. Then D = 2: m = 0.75 * -4 + 2 = -1, x = 7.5.
        rule = FedAvgM(learning_rate=0.5, momentum=0.75)
        state = GlobalState(adapter=one(10.0))
        memory = rule.init(state)
        assert {n: t.tolist() for n, t in memory.items()} == {"m/w": [0.0]}
        state, memory = rule.step([update(0, one(2.0), 1), update(1, one(-6.0), 3)], state, memory, info())
        assert (state.adapter["w"].tolist(), memory["m/w"].tolist()) == ([8.0], [-4.0])
        state, memory = rule.step([update(0, one(2.0))], state, memory, info(2))
        assert (state.adapter["w"].tolist(), memory["m/w"].tolist()) == ([7.5], [-1.0])

    def test_three_rounds_in_numpy(self) -> None:
        generator = np.random.default_rng(0)
        rule = FedAvgM(learning_rate=0.7, momentum=0.8)
        state = start(generator)
        memory, x, m = rule.init(state), flat(state.adapter), 0.0
        for round in (1, 2, 3):
            updates = random_round(generator, round)
            m = 0.8 * m + np.average(matrix(updates), axis=0, weights=SIZES)
            x = x + 0.7 * m
            state, memory = rule.step(updates, state, memory, info(round))
        np.testing.assert_allclose(flat(state.adapter), x, rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.concatenate([memory[f"m/{n}"].numpy().ravel() for n in SHAPES]), m, atol=1e-6)

    def test_without_momentum_it_is_fedavg(self) -> None:
        generator = np.random.default_rng(1)
        state, updates = start(generator), random_round(generator)
        ours, _ = FedAvgM(momentum=0.0).step(updates, state, FedAvgM(momentum=0.0).init(state), info())
        average, _ = FedAvg().step(updates, state, {}, info())
        np.testing.assert_array_equal(flat(ours.adapter), flat(average.adapter))

    def test_a_constant_update_grows_to_its_sum(self) -> None:
        _, memory = follow(FedAvgM(momentum=0.9), *[1.0] * 200)
        assert memory["m/w"] == pytest.approx(10, rel=1e-6)


class TestFedAdagrad:
    def test_by_hand(self) -> None:
        # v = 0.0625, D = 2: v = 4.0625, x = 0.5 * 2 / (sqrt(4.0625) + 0.25). Then D = -1: v = 5.0625, sqrt(v) = 2.25.
        rule = FedAdagrad(learning_rate=0.5, tau=0.25)
        first = 0.5 * 2 / (math.sqrt(4.0625) + 0.25)
        path, memory = follow(rule, 2.0, -1.0)
        assert path == pytest.approx([first, first - 0.5 / 2.5])
        assert memory == {"m/w": -1.0, "v/w": 5.0625}

    def test_it_never_forgets_a_square(self) -> None:
        _, memory = follow(FedAdagrad(tau=0.5), 3.0, *[0.0] * 50)
        assert memory["v/w"] == 9.25


class TestFedYogi:
    def test_by_hand(self) -> None:
        # v = 0.0625, D = 2: sign(v - 4) = -1, v = 0.0625 + 0.25 * 4 = 1.0625; m = 0.5 * 2 = 1.
        # Then D = 0.5: sign(v - 0.25) = 1, v = 1.0625 - 0.25 * 0.25 = 1; m = 0.5 * 1 + 0.5 * 0.5 = 0.75.
        rule = FedYogi(learning_rate=1.0, beta1=0.5, beta2=0.75, tau=0.25)
        first = 1 / (math.sqrt(1.0625) + 0.25)
        path, memory = follow(rule, 2.0, 0.5)
        assert path == pytest.approx([first, first + 0.75 / 1.25])
        assert memory == {"m/w": 0.75, "v/w": 1.0}

    def test_after_a_large_update_it_stays_careful_longer_than_adam(self) -> None:
        values = [10.0, *[0.1] * 100]
        yogi, adam = follow(FedYogi(beta2=0.9), *values)[1], follow(FedAdam(beta2=0.9), *values)[1]
        assert yogi["v/w"] > 9
        assert adam["v/w"] < 0.02


def adam(v: Any, d: Any) -> Any:
    return 0.95 * v + 0.05 * d**2


def yogi(v: Any, d: Any) -> Any:
    return v - 0.05 * d**2 * np.sign(v - d**2)


def adagrad(v: Any, d: Any) -> Any:
    return v + d**2


@pytest.mark.parametrize(
    ("rule", "second"), [(FedAdam(beta2=0.95), adam), (FedYogi(beta2=0.95), yogi), (FedAdagrad(beta1=0.9), adagrad)]
)
def test_three_rounds_of_algorithm_2_in_numpy(rule: Any, second: Callable[[Any, Any], Any]) -> None:
    generator = np.random.default_rng(2)
    state = start(generator)
    memory, x = rule.init(state), flat(state.adapter)
    m, v = np.zeros_like(x), np.full_like(x, 1e-6)
    for round in (1, 2, 3):
        updates = random_round(generator, round)
        gradient = np.average(matrix(updates), axis=0, weights=SIZES)
        m = 0.9 * m + 0.1 * gradient
        v = second(v, gradient)
        x = x + 0.01 * m / (np.sqrt(v) + 1e-3)
        state, memory = rule.step(updates, state, memory, info(round))
    np.testing.assert_allclose(flat(state.adapter), x, rtol=0, atol=1e-6)
    for moment, expected in (("m", m), ("v", v)):
        ours = np.concatenate([memory[f"{moment}/{name}"].numpy().ravel() for name in SHAPES])
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("rule", [FedAdagrad, FedYogi])
def test_with_a_large_tau_they_are_a_scaled_fedavg(rule: Any) -> None:
    # v stays near tau^2: the step is lr D / (sqrt(tau^2) + tau).
    updates = [update(0, one(0.5, -2.0), 3), update(1, one(-1.0, 1.0), 1)]
    expected = value(FedAvg(), updates)
    assert value(rule(learning_rate=2e6, beta1=0.0, tau=1e6), updates) == pytest.approx(expected, rel=1e-5)


class TestSchedule:
    def test_by_hand(self) -> None:
        assert [scheduled(2.0, "linear", info(r, 4)) for r in (1, 2, 3, 4)] == [2.0, 1.5, 1.0, 0.5]
        half = math.sqrt(0.5)
        expected = [2.0, 1 + half, 1.0, 1 - half]
        assert [scheduled(2.0, "cosine", info(r, 4)) for r in (1, 2, 3, 4)] == pytest.approx(expected)
        assert [scheduled(0.3, "constant", info(r, 4)) for r in (1, 4)] == [0.3, 0.3]

    @pytest.mark.parametrize("schedule", ["linear", "cosine"])
    def test_it_falls_from_the_full_rate_and_never_to_nought(self, schedule: Any) -> None:
        rates = [scheduled(0.1, schedule, info(r, 50)) for r in range(1, 51)]
        assert rates[0] == 0.1
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] > 0
        assert scheduled(0.1, schedule, info(1, 1)) == 0.1

    @pytest.mark.parametrize("rule", [FedAvg, FedAvgM, FedAdam, FedAdagrad, FedYogi])
    def test_the_step_of_each_rule_is_stretched_by_it(self, rule: Any) -> None:
        generator = np.random.default_rng(3)
        state, updates = start(generator), random_round(generator)
        memory = rule().init(state)
        plain, kept = rule().step(updates, state, memory, info(3, 4))
        slowed, also_kept = rule(schedule="linear").step(updates, state, memory, info(3, 4))
        np.testing.assert_allclose(
            flat(slowed.adapter) - flat(state.adapter), (flat(plain.adapter) - flat(state.adapter)) / 2, atol=3e-7
        )
        assert all(torch.equal(kept[name], also_kept[name]) for name in kept)

    def test_a_constant_rate_does_not_look_at_the_round(self) -> None:
        updates = [update(0, one(0.25))]
        state = GlobalState(adapter=one(0.0))
        for rule in (FedAvg(), FedAdam(), FedAvgM()):
            early, _ = rule.step(updates, state, rule.init(state), info(1, 4))
            late, _ = rule.step(updates, state, rule.init(state), info(9, 4))
            assert torch.equal(early.adapter["w"], late.adapter["w"])

    @pytest.mark.parametrize(("round", "rounds"), [(0, 4), (5, 4), (1, 0)])
    def test_a_round_that_does_not_exist_has_no_rate(self, round: int, rounds: int) -> None:
        with pytest.raises(FederationError, match=f"round {round} is not one of the {rounds} rounds of branch 'main'"):
            scheduled(1.0, "cosine", info(round, rounds))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_purity(rule: Any) -> None:
    generator = np.random.default_rng(4)
    check_purity(rule, random_round(generator), start(generator), info())


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_what_the_rules_say_about_themselves(rule: Any) -> None:
    assert rule.of_mean and not rule.of_weights
    assert not rule.needs_client_state
    kinds = {name.split("/")[0] for name in rule.init(start(np.random.default_rng(5)))}
    assert {field.split(":")[0].split()[-1] for field in rule.state_fields} == kinds
    assert (rule.needed(), rule.needed(1)) == (1, math.inf)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("fedavgm", {"learning_rate": 0}, "learning_rate = 0"),
        ("fedavgm", {"momentum": 1.0}, "momentum = 1.0 is not allowed; it must be at least 0 and below 1"),
        (
            "fedavgm",
            {"schedule": "steps"},
            "schedule = 'steps' is not allowed; it must be one of constant, cosine, lin",
        ),
        ("fedavg", {"schedule": ""}, "schedule = ''"),
        ("fedadam", {"schedule": "Linear"}, "schedule = 'Linear'"),
        ("fedyogi", {"beta2": 1.0}, "beta2 = 1.0"),
        ("fedyogi", {"beta1": -0.1}, "beta1 = -0.1"),
        ("fedadagrad", {"tau": 0.0}, "tau = 0.0"),
        ("fedadagrad", {"beta2": 0.9}, "'fedadagrad' has no parameter 'beta2'"),
    ],
)
def test_wrong_parameters_are_config_errors(name: str, parameters: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(aggregators, name, parameters, "federation.parameters")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("fedavgm", FedAvgM(learning_rate=1.0, momentum=0.9, schedule="constant")),
        ("fedadagrad", FedAdagrad(learning_rate=0.01, beta1=0.0, tau=1e-3, schedule="constant")),
        ("fedyogi", FedYogi(learning_rate=0.01, beta1=0.9, beta2=0.99, tau=1e-3, schedule="constant")),
    ],
)
def test_the_table_names_them(name: str, rule: Any) -> None:
    assert build(aggregators, name, {}, "k") == rule
