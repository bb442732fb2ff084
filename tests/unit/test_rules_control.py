"""FedNova, FedProx, SCAFFOLD and FedDyn: by hand, against NumPy, in their limits, and what leaves with a client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rule_rounds import SHAPES, check_purity, flat, info, one, random_round, start, update, value

from oblivion.aggregation import rule_of
from oblivion.aggregation.compatibility import check_number, check_training
from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.rules.control import ControlRule, kept, mean_kept
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.aggregation.rules.feddyn import FedDyn
from oblivion.aggregation.rules.fednova import FedNova
from oblivion.aggregation.rules.fedprox import FedProx
from oblivion.aggregation.rules.scaffold import Scaffold
from oblivion.config import load_config
from oblivion.errors import ConfigError
from oblivion.types import Adapter, GlobalState, RoundInfo

CONTROL: tuple[ControlRule, ...] = (Scaffold(learning_rate=0.7), FedDyn(alpha=0.3))


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(11)


RULES: tuple[Any, ...] = (FedNova(), FedProx(mu=0.1), *CONTROL)


def at(value: float) -> GlobalState:
    return GlobalState(adapter=one(value))


def correction(rule: ControlRule, rule_state: Any, client: str, told: RoundInfo, rate: float = 1.0) -> Adapter:
    return rule.corrections(rule_state, [client], told, rate)[client]


# By hand


def test_fednova_by_hand() -> None:
    # p = 1/4, 3/4; tau = 2, 4: tau_eff = 3.5; sum p delta / tau = 1/4 * 8 / 2 + 3/4 * 4 / 4 = 1.75; 3.5 * 1.75 = 6.125
    updates = [update(0, one(8.0), 1, steps=2), update(1, one(4.0), 3, steps=4)]
    assert value(FedNova(), updates) == [6.125]
    assert value(FedNova(learning_rate=2.0), updates, at=1.0) == [13.25]


def test_scaffold_by_hand() -> None:
    # Two clients of three; rate 0.5, two steps each. Round 1: c = c_k = 0; eta c_0 = -4 / 2 = -2, eta c_1 = 2 / 2 = 1;
    # x = (4 - 2) / 2 = 1; eta c = (-2 + 1 + 0) / 3 = -1/3.
    rule, told = Scaffold(), info(clients=3)
    state, kept_state = rule.step([update(0, one(4.0), steps=2), update(1, one(-2.0), steps=2)], at(0.0), {}, told)
    assert float(state.adapter["w"]) == 1.0
    assert {c: float(kept(kept_state, c)["w"]) for c in ("client-0", "client-1")} == {"client-0": -2, "client-1": 1}
    # what clients add: (c - c_k) / eta = (-1/3 + 2) / 0.5 = 10/3, (-1/3 - 1) / 0.5 = -8/3, and c / eta where never seen
    found = [float(correction(rule, kept_state, f"client-{k}", told, 0.5)["w"]) for k in range(3)]
    assert found == pytest.approx([10 / 3, -8 / 3, -2 / 3])
    # Round 2: client 0 with an update of 3 in one step: eta c_0 = -2 + 1/3 - 3
    _, after = rule.step([update(0, one(3.0), steps=1)], state, kept_state, told)
    assert float(kept(after, "client-0")["w"]) == pytest.approx(-2 + 1 / 3 - 3)
    assert float(mean_kept(after, told.population)["w"]) == pytest.approx((-2 + 1 / 3 - 3 + 1) / 3)


def test_feddyn_by_hand() -> None:
    # alpha 0.5, two clients of four. Round 1: g_k = -0.5 delta_k = -2, 1; h = -1/4; x = (4 - 2) / 2 - h / alpha = 1.5
    rule, told = FedDyn(alpha=0.5), info(clients=4)
    state, kept_state = rule.step([update(0, one(4.0)), update(1, one(-2.0))], at(0.0), {}, told)
    assert float(state.adapter["w"]) == 1.5
    # clients add -g_k
    assert [float(correction(rule, kept_state, f"client-{k}", told)["w"]) for k in range(2)] == [2.0, -1.0]
    assert correction(rule, kept_state, "client-2", told) == {}
    # Round 2: client 2 alone, update 1: g_2 = -0.5; h = (-2 + 1 - 0.5) / 4 = -0.375; x = 1.5 + 1 + 0.75
    state, _ = rule.step([update(2, one(1.0))], state, kept_state, told)
    assert float(state.adapter["w"]) == 3.25
    assert rule.proximal_mu == 0.5


# Against NumPy, as the papers write it, over three rounds of seven clients


def linear_clients(generator: np.random.Generator, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Quadratic losses ``(w - b)' D (w - b) / 2`` with gradients ``D (w - b)``."""
    return [(generator.uniform(0.5, 1.5, 6), generator.normal(size=6)) for _ in range(count)]


def visit(rule: Any, client: tuple[np.ndarray, np.ndarray], x: np.ndarray, extra: np.ndarray, steps: int) -> np.ndarray:
    """What the client side does: plain SGD of rate 0.1 with the correction and the proximal term."""
    curvature, optimum = client
    w = x.copy()
    for _ in range(steps):
        w -= 0.1 * (curvature * (w - optimum) + extra + rule.proximal_mu * (w - x))
    return w - x


def run(rule: Any, clients: list[tuple[np.ndarray, np.ndarray]], rounds: int, absent: Any = lambda t, k: False) -> Any:
    """Rounds of the rule on the quadratic clients, in fp64 on their side; yields x after each."""
    state, kept_state = GlobalState(adapter={"w": torch.zeros(6)}), {}
    for t in range(1, rounds + 1):
        told = info(t, rounds, len(clients))
        updates = []
        for k, client in enumerate(clients):
            if absent(t, k):
                continue
            name, extra = f"client-{k}", np.zeros(6)
            if isinstance(rule, ControlRule):
                given = correction(rule, kept_state, name, told, 0.1)
                extra = given["w"].double().numpy() if given else extra
            delta = visit(rule, client, state.adapter["w"].double().numpy(), extra, k + 1)
            updates.append(update(k, {"w": torch.from_numpy(delta).float()}, k + 1, round=t, steps=k + 1))
        state, kept_state = rule.step(updates, state, kept_state, told)
        yield state.adapter["w"].double().numpy(), kept_state


def some_absent(t: int, k: int) -> bool:
    return (t + k) % 3 == 0


def test_scaffold_against_numpy(generator: np.random.Generator) -> None:
    clients, eta = linear_clients(generator, 7), 0.1
    x, c, own = np.zeros(6), np.zeros(6), np.zeros((7, 6))
    found = [x for x, _ in run(Scaffold(learning_rate=0.7), clients, 3, some_absent)]
    for t in range(1, 4):
        deltas, changes = [], []
        for k, (curvature, optimum) in enumerate(clients):
            if some_absent(t, k):
                continue
            y = x.copy()
            for _ in range(k + 1):
                y -= eta * (curvature * (y - optimum) - own[k] + c)
            new = own[k] - c + (x - y) / ((k + 1) * eta)
            changes.append(new - own[k])
            own[k] = new
            deltas.append(y - x)
        x = x + 0.7 * np.mean(deltas, axis=0)
        c = c + np.sum(changes, axis=0) / 7  # |S|/N times the mean change
        np.testing.assert_allclose(found[t - 1], x, atol=1e-6)


def test_feddyn_against_numpy(generator: np.random.Generator) -> None:
    clients, eta, alpha = linear_clients(generator, 7), 0.1, 0.3
    x, h, own = np.zeros(6), np.zeros(6), np.zeros((7, 6))
    found = [x for x, _ in run(FedDyn(alpha=alpha), clients, 3, some_absent)]
    for t in range(1, 4):
        models = []
        for k, (curvature, optimum) in enumerate(clients):
            if some_absent(t, k):
                continue
            w = x.copy()
            for _ in range(k + 1):
                w -= eta * (curvature * (w - optimum) - own[k] + alpha * (w - x))
            own[k] -= alpha * (w - x)
            models.append(w)
        h = h - alpha * np.sum([w - x for w in models], axis=0) / 7
        x = np.mean(models, axis=0) - h / alpha
        np.testing.assert_allclose(found[t - 1], x, atol=1e-6)


@pytest.mark.parametrize("rule", [FedNova(learning_rate=0.5), FedProx(mu=0.4, learning_rate=0.5)], ids=["nova", "prox"])
def test_fednova_and_fedprox_against_numpy(generator: np.random.Generator, rule: Any) -> None:
    clients, mu = linear_clients(generator, 7), rule.proximal_mu
    x, p, tau = np.zeros(6), np.arange(1, 8) / 28, np.arange(1, 8)
    for found, _ in run(rule, clients, 3):
        deltas = []
        for k, (curvature, optimum) in enumerate(clients):
            w = x.copy()
            for _ in range(k + 1):
                w -= 0.1 * (curvature * (w - optimum) + mu * (w - x))
            deltas.append(w - x)
        weights = p * (p @ tau) / tau if isinstance(rule, FedNova) else p
        x = x + 0.5 * weights @ np.array(deltas)
        np.testing.assert_allclose(found, x, atol=1e-6)


# Limits


def test_scaffold_and_feddyn_find_the_optimum_that_fedavg_misses(generator: np.random.Generator) -> None:
    """Clients with other optima and other numbers of steps: the minimum of the mean loss is a fixed point."""
    clients = linear_clients(generator, 5)
    curvatures, optima = (np.array(part) for part in zip(*clients, strict=True))
    optimum = (curvatures * optima).sum(0) / curvatures.sum(0)
    distance = {}
    for rule in (Scaffold(), FedDyn(alpha=0.5), FedAvg()):
        *_, (x, _) = run(rule, clients, 400)
        distance[type(rule).__name__] = float(np.linalg.norm(x - optimum))
    assert distance["Scaffold"] < 1e-4 and distance["FedDyn"] < 1e-3 and distance["FedAvg"] > 0.05


def test_equal_steps_make_fednova_fedavg(generator: np.random.Generator) -> None:
    updates = [update(k, u.delta, u.num_examples, steps=3) for k, u in enumerate(random_round(generator))]
    state = start(generator)
    nova, _ = FedNova().step(updates, state, {}, info())
    average, _ = FedAvg().step(updates, state, {}, info())
    np.testing.assert_allclose(flat(nova.adapter), flat(average.adapter), atol=1e-7)


def test_mu_zero_is_fedavg_bit_for_bit(generator: np.random.Generator) -> None:
    updates, state = random_round(generator), start(generator)
    one_way, _ = FedProx(mu=0.0).step(updates, state, {}, info())
    other, _ = FedAvg().step(updates, state, {}, info())
    assert FedProx(mu=0.0).proximal_mu == 0
    assert all(torch.equal(one_way.adapter[n], other.adapter[n]) for n in SHAPES)


def test_one_client_alone_needs_no_correction(generator: np.random.Generator) -> None:
    rule, told, state = Scaffold(), info(clients=1), start(generator)
    _, kept_state = rule.step([random_round(generator)[0]], state, {}, told)
    assert all(not t.any() for t in correction(rule, kept_state, "client-0", told).values())


# Properties


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_nothing_that_comes_in_is_changed(generator: np.random.Generator, rule: Any) -> None:
    check_purity(rule, random_round(generator), start(generator), info(clients=7))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@given(order=st.permutations(range(7)), seed=st.integers(0, 2**16))
def test_the_order_of_arrival_changes_no_bit(rule: Any, order: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    state, told = start(generator), info(clients=7)
    first, second = random_round(generator), random_round(generator, 2)
    results = []
    for places in (range(7), order):
        now, kept_state = state, rule.init(state)
        for updates in (first, second):
            now, kept_state = rule.step([updates[i] for i in places], now, kept_state, told)
        results.append({**now.adapter, **kept_state})
    assert list(results[0]) == list(results[1])
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_round_without_updates_changes_nothing(generator: np.random.Generator, rule: Any) -> None:
    state = start(generator)
    kept_state = rule.init(state)
    assert rule.step([], state, kept_state, info()) == (state, kept_state)


# A client leaves (removal.md, B4)


@pytest.mark.parametrize("rule", CONTROL, ids=lambda rule: type(rule).__name__)
@given(gone=st.integers(0, 6), seed=st.integers(0, 2**16))
def test_the_mean_without_a_client_is_the_corrected_one(rule: ControlRule, gone: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    state, told = start(generator), info(clients=7)
    _, before = rule.step(random_round(generator), state, {}, told)
    name = f"client-{gone}"
    after = rule.without(before, name)
    assert not any(f"/{name}/" in key for key in after) and len(after) == len(before) * 6 // 7
    c, own = flat(mean_kept(before, told.population)), flat(kept(before, name))
    left = [client for client in told.population if client != name]
    np.testing.assert_allclose(flat(mean_kept(after, left)), (7 * c - own) / 6, atol=1e-6)


def test_names_that_begin_alike_are_other_clients() -> None:
    rule, told = Scaffold(), info(clients=12)
    _, state = rule.step([update(1, one(1.0)), update(11, one(5.0))], at(0.0), {}, told)
    assert list(rule.without(state, "client-1")) == ["control/client-11/w"]


# What is refused


@pytest.mark.parametrize("name", ["scaffold", "feddyn", "fednova"])
def test_only_plain_sgd_is_taken(name: str) -> None:
    settings = {"federation.aggregator": name}
    with pytest.raises(
        ConfigError, match=rf"'{name}' assumes .* train.optimizer = 'adamw'; set train.optimizer = 'sgd'"
    ):
        config = load_config(None, settings)
        check_training(rule_of(config), config)
    settings |= {"train.optimizer": "sgd"}
    with pytest.raises(ConfigError, match=r"train.weight-decay = 0.1; set it to 0"):
        config = load_config(None, {**settings, "train.weight-decay": 0.1})
        check_training(rule_of(config), config)
    config = load_config(None, settings)
    check_training(rule_of(config), config)


@pytest.mark.parametrize("name", sorted({*aggregators.names()} - {"scaffold", "feddyn", "fednova", "flower"}))
def test_the_other_rules_take_any_optimizer(name: str) -> None:
    config = load_config(None, {"federation.aggregator": name})
    check_training(rule_of(config), config)


@pytest.mark.parametrize(
    ("rule", "parameters"),
    [
        (Scaffold, {"learning_rate": 0.0}),
        (FedDyn, {"alpha": 0.0}),
        (FedDyn, {"alpha": float("nan")}),
        (FedNova, {"learning_rate": -1.0}),
        (FedProx, {"mu": -0.1}),
        (FedProx, {"mu": float("inf")}),
    ],
)
def test_parameters_out_of_range_are_refused(rule: Any, parameters: dict[str, float]) -> None:
    (name,) = parameters
    with pytest.raises(ValueError, match=name):
        rule(**parameters)


def test_too_few_clients_for_the_rule_are_refused_with_the_round() -> None:
    clients = [f"client-{k}" for k in range(6)]
    settings = {"federation.aggregator": "krum", "federation.joins": {"client-5": 3}, "federation.rounds": 4}
    config = load_config(None, settings)
    check_number(rule_of(config), config, clients)  # 2 f + 3 = 5
    late = load_config(None, {**settings, "federation.joins": {"client-5": 3, "client-4": 2}})
    with pytest.raises(ConfigError, match=r"'krum' needs at least 5 clients in a round, and round 1 has 4; ask more"):
        check_number(rule_of(late), late, clients)
    few = load_config(None, {**settings, "federation.clients-per-round": 3})
    with pytest.raises(ConfigError, match="round 1 has 3"):
        check_number(rule_of(few), few, clients)
