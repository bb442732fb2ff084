"""Differential privacy: DP-SGD, the noised mean, and what the accountant says of both."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rule_rounds import info, one, random_round, update
from scipy import optimize, stats

from oblivion.aggregation import scheme_of
from oblivion.aggregation.client_privacy import MEAN_RULES, check_privacy, private_mean
from oblivion.aggregation.fedavg import FedAvg
from oblivion.config import LoraConfig, ModelConfig, PrivacyConfig, TrainConfig, load_config
from oblivion.data.tokens import TokenRow
from oblivion.errors import ConfigError
from oblivion.models.loading import load_base
from oblivion.models.resident import ResidentModel
from oblivion.objectives.lm import LanguageModel
from oblivion.seeding import numpy_generator
from oblivion.training.accountant import Mechanism, epsilon, group_bounds, mechanisms, rounds_within, spent
from oblivion.training.batches import collate
from oblivion.training.cohort import train_cohort
from oblivion.training.dp_sgd import train_client_privately
from oblivion.training.local import LocalTask, train_client
from oblivion.types import ClientUpdate, RoundInfo

ROWS = [TokenRow((1, 10 + i, 20 + i, *range(30 + i, 33 + 2 * i), 2), 2 + i % 2) for i in range(6)]
INFO = RoundInfo(branch="main", round=3, rounds=5, population=("client-0",), seed=7)
SGD = TrainConfig(batch_size=3, local_epochs=2, learning_rate=0.1, optimizer="sgd", clip_norm=1e9)
NOISELESS = PrivacyConfig(unit="sample", noise_multiplier=0.0, clip_norm=0.05)
SECRET = 2**200 + 12345


@pytest.fixture(scope="module")
def resident(micro_model: Path) -> ResidentModel:
    return ResidentModel(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=4, alpha=8))


@pytest.fixture(scope="module")
def start(resident: ResidentModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = dict(resident.initial_adapter(0))
    return {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in made.items()}


def task(**more: Any) -> LocalTask:
    return LocalTask(client_id="client-0", rows={"retain": ROWS}, **more)


def private(
    resident: ResidentModel,
    start: Any,
    privacy: PrivacyConfig,
    secret: int = SECRET,
    told: RoundInfo = INFO,
    **more: Any,
) -> ClientUpdate:
    return train_client_privately(resident, start, task(**more), LanguageModel(), SGD, told, privacy, secret)


def row_gradient(resident: ResidentModel, row: TokenRow) -> list[torch.Tensor]:
    """The gradient of one row's mean loss per token, by plain autograd."""
    batch = collate([row], resident.tokenizer.pad_token_id)
    logits = resident.model(batch.ids).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[batch.positions], batch.answers.labels)
    return list(torch.autograd.grad(loss, list(resident.parameters.values())))


def by_hand(resident: ResidentModel, start: Any, clip: float, secret: int = SECRET) -> tuple[dict[str, Any], list[int]]:
    """Poisson draws, clipped gradients row by row, divided by the expected batch: Abadi et al., Algorithm 1."""
    resident.write(start)
    parameters = list(resident.parameters.values())
    rate, steps = 3 / len(ROWS), 4
    draws = numpy_generator(secret, "poisson", INFO.round, "client-0")
    sizes = []
    for _ in range(steps):
        drawn = [row for row, chance in zip(ROWS, draws.random(len(ROWS)), strict=True) if chance < rate]
        sizes.append(len(drawn))
        total = [torch.zeros_like(p) for p in parameters]
        for row in drawn:
            gradient = row_gradient(resident, row)
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
            for t, g in zip(total, gradient, strict=True):
                t += g * min(1.0, clip / norm)
        with torch.no_grad():
            for p, t in zip(parameters, total, strict=True):
                p -= 0.1 * t / 3
    return {n: t - start[n] for n, t in resident.read().items()}, sizes


# DP-SGD


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_without_noise_it_is_clipped_sgd_row_by_row(resident: ResidentModel, start: Any, clip: float) -> None:
    expected, sizes = by_hand(resident, start, clip)
    found = private(resident, start, NOISELESS.model_copy(update={"clip_norm": clip}))
    for name, delta in found.delta.items():
        torch.testing.assert_close(delta, expected[name], rtol=0, atol=1e-5)
    assert len(set(sizes)) > 1 and found.steps == 4 and found.num_examples == 6


def test_a_draw_without_rows_is_a_step_of_noise_alone(resident: ResidentModel, start: Any) -> None:
    settings = SGD.model_copy(update={"batch_size": 1, "local_epochs": 1})
    rare = dataclasses.replace(task(), rows={"retain": ROWS})
    secret = next(  # one that draws nobody in some step
        s for s in range(1000) if min(_counts(s, 1 / 6, 6)) == 0
    )
    privacy = PrivacyConfig(unit="sample", noise_multiplier=1.0, clip_norm=1.0)
    found = train_client_privately(resident, start, rare, LanguageModel(), settings, INFO, privacy, secret)
    assert found.steps == 6 and all(bool(t.isfinite().all()) for t in found.delta.values())


def _counts(secret: int, rate: float, steps: int) -> list[int]:
    draws = numpy_generator(secret, "poisson", INFO.round, "client-0")
    return [int((draws.random(len(ROWS)) < rate).sum()) for _ in range(steps)]


def test_every_row_drawn_and_no_bound_is_plain_sgd(resident: ResidentModel, start: Any) -> None:
    settings = SGD.model_copy(update={"batch_size": 6, "local_epochs": 1})
    rows = [TokenRow(row.ids[:6], 2) for row in ROWS]  # rows of one length: then the mean of means is the mean
    same = dataclasses.replace(task(), rows={"retain": rows})
    loose = NOISELESS.model_copy(update={"clip_norm": 1e6})
    dp = train_client_privately(resident, start, same, LanguageModel(), settings, INFO, loose, SECRET)
    plain = train_client(resident, start, same, LanguageModel(), settings, INFO)
    for name, delta in dp.delta.items():
        torch.testing.assert_close(delta, plain.delta[name], rtol=0, atol=1e-6)


def test_the_noise_has_the_size_that_the_accountant_assumes(resident: ResidentModel, start: Any) -> None:
    """Gradients are clipped to 1e-7, so that what moves a weight is the noise of four steps: sqrt(4) * 2 * 1e-7 / 3."""
    privacy = PrivacyConfig(unit="sample", noise_multiplier=2.0, clip_norm=1e-7)
    settings, zero = SGD.model_copy(update={"learning_rate": 1.0}), {n: torch.zeros_like(t) for n, t in start.items()}
    found = train_client_privately(resident, zero, task(), LanguageModel(), settings, INFO, privacy, SECRET)
    noise, size = torch.cat([t.reshape(-1) for t in found.delta.values()]).double(), 2 * 2e-7 / 3
    assert float(noise.std()) == pytest.approx(size, rel=0.03)
    assert abs(float(noise.mean())) < 4 * size / math.sqrt(len(noise))


def test_a_secret_decides_everything_and_the_seed_nothing(resident: ResidentModel, start: Any) -> None:
    noisy = PrivacyConfig(unit="sample", noise_multiplier=1.0, clip_norm=0.5)
    one_way, again = (private(resident, start, noisy) for _ in range(2))
    seeded = private(resident, start, noisy, told=dataclasses.replace(INFO, seed=8))
    other = private(resident, start, noisy, secret=SECRET + 1)
    later = private(resident, start, noisy, told=dataclasses.replace(INFO, round=4))
    for name, tensor in one_way.delta.items():
        assert torch.equal(tensor, again.delta[name]) and torch.equal(tensor, seeded.delta[name])
        assert not torch.equal(tensor, other.delta[name]) and not torch.equal(tensor, later.delta[name])


def test_it_tells_nothing_besides_and_leaves_no_hook(resident: ResidentModel, start: Any) -> None:
    before = private(resident, start, NOISELESS)
    assert before.metrics == {"skipped": 0.0}
    assert not any(hasattr(p, "grad_sample") for p in resident.parameters.values())
    plain = train_client(resident, start, task(), LanguageModel(), SGD, INFO)
    fresh = train_client(resident, start, task(), LanguageModel(), SGD, INFO)
    assert all(torch.equal(t, fresh.delta[n]) for n, t in plain.delta.items())


def test_the_proximal_term_and_a_correction_come_after_the_noise(resident: ResidentModel, start: Any) -> None:
    correction = {n: torch.full(t.shape, 0.5) for n, t in start.items()}
    loose = NOISELESS.model_copy(update={"clip_norm": 1e-9})
    found = private(resident, start, loose, correction=correction)
    for delta in found.delta.values():
        torch.testing.assert_close(delta, torch.full(delta.shape, -4 * 0.1 * 0.5), rtol=0, atol=1e-5)


def test_a_cohort_under_privacy_is_trained_one_by_one_from_the_secret(resident: ResidentModel, start: Any) -> None:
    noisy = PrivacyConfig(unit="sample", noise_multiplier=1.0, clip_norm=0.5)
    updates, failures = train_cohort(resident, start, [task()], LanguageModel(), SGD, INFO, noisy, SECRET)
    alone = private(resident, start, noisy)
    assert not failures and "together" not in updates[0].metrics
    assert all(torch.equal(t, alone.delta[n]) for n, t in updates[0].delta.items())


# The noised mean


def test_the_mean_by_hand_without_noise() -> None:
    # norms 5, 0.5 and 0, clipped to 1: (3/5 + 0.5 + 0, 4/5) / 4 asked
    updates = [update(0, one(3.0, 4.0), 100), update(1, one(0.5, 0.0), 1), update(2, one(0.0, 0.0))]
    (mean,) = private_mean(updates, 4, 1.0, 0.0, SECRET, info())
    torch.testing.assert_close(mean.delta["w"], torch.tensor([1.1 / 4, 0.8 / 4]))
    assert private_mean([], 4, 1.0, 1.0, SECRET, info()) == []


def test_the_noise_on_the_mean_is_sigma_c_over_m() -> None:
    big = {"w": torch.zeros(200, 100)}
    (mean,) = private_mean([update(0, big)], 5, 2.0, 1.5, SECRET, info())
    noise = mean.delta["w"].double()
    assert float(noise.std()) == pytest.approx(1.5 * 2.0 / 5, rel=0.02)
    assert stats.kstest(noise.reshape(-1).numpy() / 0.6, "norm").pvalue > 0.01
    (again,) = private_mean([update(0, big)], 5, 2.0, 1.5, SECRET, info())
    (other,) = private_mean([update(0, big)], 5, 2.0, 1.5, SECRET + 1, info())
    (later,) = private_mean([update(0, big)], 5, 2.0, 1.5, SECRET, info(2))
    assert torch.equal(mean.delta["w"], again.delta["w"])
    assert abs(float(np.corrcoef(noise.reshape(-1), other.delta["w"].reshape(-1))[0, 1])) < 0.03
    assert abs(float(np.corrcoef(noise.reshape(-1), later.delta["w"].reshape(-1))[0, 1])) < 0.03


@given(seed=st.integers(0, 2**16), order=st.permutations(range(7)), gone=st.integers(0, 6))
def test_one_client_moves_the_mean_by_at_most_c_over_m_and_order_changes_nothing(
    seed: int, order: list[int], gone: int
) -> None:
    updates = random_round(np.random.default_rng(seed))
    (mean,) = private_mean(updates, 7, 0.3, 1.0, SECRET, info())
    (turned,) = private_mean([updates[i] for i in order], 7, 0.3, 1.0, SECRET, info())
    (without,) = private_mean([u for k, u in enumerate(updates) if k != gone], 7, 0.3, 1.0, SECRET, info())
    assert all(torch.equal(t, turned.delta[n]) for n, t in mean.delta.items())
    moved = sum(float((t.double() - without.delta[n].double()).square().sum()) for n, t in mean.delta.items())
    assert math.sqrt(moved) <= 0.3 / 7 + 1e-6


def test_a_rule_makes_its_step_of_the_mean() -> None:
    updates = random_round(np.random.default_rng(3))
    mean = private_mean(updates, 7, 0.3, 0.5, SECRET, info())
    from oblivion.types import GlobalState

    zero = GlobalState(adapter={n: torch.zeros_like(t) for n, t in mean[0].delta.items()})
    after, _ = FedAvg(learning_rate=2.0).apply(mean, zero, {}, info())
    for name, tensor in after.adapter.items():
        torch.testing.assert_close(tensor, 2 * mean[0].delta[name])


# The accountant


def gaussian_epsilon(sigma: float, rounds: int, delta: float) -> float:
    """Of composed Gaussian mechanisms, exactly (Balle and Wang, 2018, Theorem 8, with sigma / sqrt(rounds))."""
    s = sigma / math.sqrt(rounds)

    def excess(e: float) -> float:
        found = stats.norm.cdf(0.5 / s - e * s) - math.exp(e) * stats.norm.cdf(-0.5 / s - e * s)
        return float(found) - delta

    return float(optimize.brentq(excess, 0, 200))


@pytest.mark.parametrize(("sigma", "rounds"), [(1.0, 1), (2.0, 10), (5.0, 100), (0.8, 3)])
def test_without_sampling_it_is_a_little_above_the_exact_gaussian(sigma: float, rounds: int) -> None:
    exact = gaussian_epsilon(sigma, rounds, 1e-5)
    assert exact <= epsilon(Mechanism(sigma, 1.0, 1), rounds, 1e-5) <= 1.1 * exact + 0.05


@pytest.mark.parametrize(("rate", "sigma", "steps"), [(0.01, 1.1, 1000), (0.1, 2.0, 50), (1.0, 4.0, 20)])
def test_it_is_opacus_own_accountant(rate: float, sigma: float, steps: int) -> None:
    from opacus.accountants import PRVAccountant, RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(sigma, rate, steps)]
    assert epsilon(Mechanism(sigma, rate, steps), 1, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)
    if rate < 1:
        tighter = PRVAccountant()
        tighter.history = [(sigma, rate, steps)]
        assert tighter.get_epsilon(1e-5) <= epsilon(Mechanism(sigma, rate, steps), 1, 1e-5)


def test_a_value_that_was_published() -> None:
    """Abadi et al. (2016): q = 0.01, sigma = 4, 10,000 steps, delta 1e-5; their moments accountant gives 1.26."""
    assert epsilon(Mechanism(4.0, 0.01, 10_000), 1, 1e-5) == pytest.approx(1.26, rel=0.2)


@given(sigma=st.floats(0.6, 8), rounds=st.integers(1, 40))
def test_more_rounds_and_less_noise_cost_more(sigma: float, rounds: int) -> None:
    mechanism = Mechanism(sigma, 1.0, 1)
    assert epsilon(mechanism, rounds, 1e-5) < epsilon(mechanism, rounds + 1, 1e-5)
    assert epsilon(dataclasses.replace(mechanism, noise_multiplier=2 * sigma), rounds, 1e-5) < epsilon(
        mechanism, rounds, 1e-5
    )


def test_no_round_costs_nothing_and_no_noise_everything() -> None:
    assert epsilon(Mechanism(1.0, 1.0, 1), 0, 1e-5) == 0.0
    assert epsilon(Mechanism(0.0, 1.0, 1), 1, 1e-5) == math.inf


def test_the_smallest_client_is_worst_off_and_rounds_fit_the_budget() -> None:
    config = load_config(None, {"privacy.unit": "sample", "privacy.max-epsilon": 8.0, "train.batch-size": 4})
    few, many = mechanisms(config, {"a": 10, "b": 100})
    assert (few.rate, many.rate) == (0.4, 0.04) and (few.steps, many.steps) == (12, 100)
    assert spent(config, {"a": 10, "b": 100}, 3) == max(epsilon(m, 3, 1e-5) for m in (few, many))
    fit = rounds_within(config, {"a": 10}, 100)
    assert spent(config, {"a": 10}, fit) <= 8.0 < spent(config, {"a": 10}, fit + 1)
    client = load_config(None, {"privacy.unit": "client"})
    assert mechanisms(client, {"a": 10, "b": 100}) == [Mechanism(1.0, 1.0, 1)]


def test_group_privacy_by_hand() -> None:
    bounds = group_bounds(0.5, 1e-5)
    assert bounds[1] == (0.5, 1e-5)
    assert bounds[2] == (1.0, pytest.approx(2 * math.exp(0.5) * 1e-5))
    assert group_bounds(math.inf, 1e-5)[1] == (math.inf, 1.0)


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"privacy.unit": "client", "federation.aggregator": "krum"}, "choose one of fedavg"),
        ({"privacy.unit": "client", "lora.scheme": "flora"}, "choose fedit, ffa or rolora"),
        ({"privacy.unit": "sample", "lora.dropout": 0.1}, "lora.dropout = 0"),
    ],
)
def test_what_a_guarantee_would_not_hold_for_is_refused(settings: dict[str, Any], message: str) -> None:
    config = load_config(None, settings)
    with pytest.raises(ConfigError, match=message):
        check_privacy(scheme_of(config), config)


@pytest.mark.parametrize("rule", MEAN_RULES)
def test_the_rules_of_a_mean_are_taken(rule: str) -> None:
    config = load_config(None, {"privacy.unit": "client", "federation.aggregator": rule, "lora.scheme": "ffa"})
    check_privacy(scheme_of(config), config)
