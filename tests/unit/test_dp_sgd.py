"""DP-SGD against plain loops over samples that share no code with it, limits, and its noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule

from oblivion.config import LoraConfig, ModelConfig, PrivacyConfig, TrainConfig
from oblivion.data.tokens import TokenRow
from oblivion.errors import InputError
from oblivion.models.loading import load_base
from oblivion.models.resident import ResidentModel
from oblivion.objectives.lm import LanguageModel
from oblivion.privacy.noise import NoiseStream, derive_key
from oblivion.tasks.causal_lm import collate
from oblivion.tasks.forward import outputs_at
from oblivion.training import dp_sgd
from oblivion.training.cohort import train_cohort
from oblivion.training.dp_sgd import clipped_sum, poisson_batches, train_client_privately
from oblivion.training.local import LocalTask, train_client
from oblivion.types import ClientUpdate, RoundInfo
from oblivion.visit_steps import sampling_rate

INFO = RoundInfo(branch="main", round=3, rounds=5, population=("client-0", "client-1"), seed=7)
SGD = TrainConfig(batch_size=3, local_epochs=2, learning_rate=0.1, optimizer="sgd", clip_norm=1e9)
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
ROWS = [TokenRow((1, 10 + i, 20 + i, *range(30 + i, 33 + 2 * i), 2), 2 + i % 2) for i in range(7)]
QUIET = PrivacyConfig(unit="sample", noise_multiplier=0.0, clip_norm=0.5)
Adapter = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def resident(micro_model: Path) -> ResidentModel:
    return ResidentModel(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=4, alpha=8))


@pytest.fixture(scope="module")
def start(resident: ResidentModel) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    return {n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in resident.parameters.items()}


def learn(
    resident: ResidentModel,
    start: Adapter,
    privacy: PrivacyConfig = QUIET,
    settings: TrainConfig = SGD,
    rows: Sequence[TokenRow] = ROWS,
    key: bytes = KEY,
    **terms: Any,
) -> ClientUpdate:
    task = LocalTask(client_id="client-0", rows={"retain": rows}, noise_key=key, **terms)
    return train_client_privately(resident, start, task, LanguageModel(), settings, privacy, INFO)


def sample_gradient(resident: ResidentModel, row: TokenRow) -> dict[str, np.ndarray]:
    """The gradient of one sample's mean NLL, by PEFT's own layers and backward()."""
    logp = resident.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    places = range(row.prompt_length, len(row.ids))
    loss = -torch.stack([logp[p - 1, row.ids[p]] for p in places]).mean()
    for parameter in resident.parameters.values():
        parameter.grad = None
    loss.backward()
    grads = {n: p.grad.double().numpy().copy() for n, p in resident.parameters.items()}
    for parameter in resident.parameters.values():
        parameter.grad = None
    return grads


def batches_by_hand(samples: int, rate: float, steps: int, key: bytes) -> list[list[int]]:
    stream = NoiseStream(derive_key(key, "poisson"))
    return [[i for i in range(samples) if draws[i] < rate] for draws in (stream.uniform(samples) for _ in range(steps))]


def loop(
    resident: ResidentModel, start: Adapter, bound: float, sigma: float, factors: tuple[str, ...] = ("A", "B")
) -> dict[str, np.ndarray]:
    """DP-SGD in NumPy: what the adapter has moved by after a visit with the settings `SGD`."""
    names = [name for name in sorted(start) if any(f".lora_{factor}." in name for factor in factors)]
    noise = NoiseStream(derive_key(KEY, "noise"))
    now = {name: tensor.double().numpy().copy() for name, tensor in start.items()}
    for chosen in batches_by_hand(7, 3 / 7, 6, KEY):
        resident.write({name: torch.from_numpy(value).float() for name, value in now.items()})
        total = {name: np.zeros_like(now[name]) for name in names}
        for index in chosen:
            grads = sample_gradient(resident, ROWS[index])
            norm = np.sqrt(sum((grads[name] ** 2).sum() for name in names))
            for name in names:
                total[name] += grads[name] * min(1.0, bound / norm)
        for name in names:
            extra = sigma * bound * noise.gaussian(total[name].size).reshape(total[name].shape)
            now[name] = now[name] - 0.1 * (total[name] + extra) / 3
    return {name: now[name] - start[name].double().numpy() for name in names}


def assert_close(one: Any, other: Any, atol: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(np.asarray(one[name]), np.asarray(other[name]), rtol=0, atol=atol)


class TestTraining:
    @pytest.mark.parametrize("sigma", [0.0, 0.4])
    def test_a_loop_over_samples(self, resident: ResidentModel, start: Adapter, sigma: float) -> None:
        privacy = PrivacyConfig(unit="sample", noise_multiplier=sigma, clip_norm=0.5)
        expected = loop(resident, start, 0.5, sigma)
        done = learn(resident, start, privacy)
        assert_close(done.delta, expected, 1e-5)
        assert max(float(delta.abs().max()) for delta in done.delta.values()) > 1e-3  # there is something to compare

    def test_one_factor(self, resident: ResidentModel, start: Adapter) -> None:
        done = learn(resident, start, factors=("B",))
        assert_close(done.delta, loop(resident, start, 0.5, 0.0, ("B",)), 1e-5)

    def test_no_clipping_and_everyone_drawn_is_plain_sgd(self, resident: ResidentModel, start: Adapter) -> None:
        rows = [TokenRow((1, 10 + i, 20 + i, 30 + i, 40 + i, 2), 2) for i in range(3)]  # as many tokens each
        task = LocalTask(client_id="client-0", rows={"retain": rows})
        plain = train_client(resident, start, task, LanguageModel(), SGD, INFO)
        private = learn(resident, start, PrivacyConfig(noise_multiplier=0, clip_norm=1e9), rows=rows)
        assert (private.steps, private.num_examples) == (plain.steps, plain.num_examples) == (2, 3)
        assert_close(private.delta, plain.delta, 1e-6)

    def test_proximal_and_correction_are_not_noised_nor_clipped(self, resident: ResidentModel, start: Adapter) -> None:
        rows = ROWS[:3]
        correction = {name: torch.ones_like(tensor) for name, tensor in start.items()}
        settings = SGD.model_copy(update={"local_epochs": 1})
        plain = learn(resident, start, settings=settings, rows=rows)
        moved = learn(resident, start, settings=settings, rows=rows, correction=correction)
        assert_close(
            {n: moved.delta[n] - plain.delta[n] for n in start}, {n: -0.1 * correction[n] for n in start}, 1e-6
        )
        # Without data in reach of the bound, two steps from w: the proximal pull is mu (w - start).
        tiny = PrivacyConfig(noise_multiplier=0.0, clip_norm=1e-12)
        pulled = learn(resident, start, tiny, SGD, rows, proximal_mu=2.0, correction=correction)
        assert_close(pulled.delta, {n: torch.full_like(start[n], -0.1 - 0.1 * (1 - 0.2)) for n in start}, 1e-6)

    def test_adamw_begins_with_steps_of_the_rate(self, resident: ResidentModel, start: Adapter) -> None:
        settings = TrainConfig(batch_size=8, local_epochs=1, learning_rate=0.01)
        done = learn(resident, start, PrivacyConfig(noise_multiplier=1.0), settings)
        assert_close(
            {n: d.abs() for n, d in done.delta.items()}, {n: torch.full_like(start[n], 0.01) for n in start}, 1e-4
        )

    def test_says_nothing_but_size_and_steps(self, resident: ResidentModel, start: Adapter) -> None:
        done = learn(resident, start, skipped=2)
        assert done.metrics == {}
        assert (done.num_examples, done.steps) == (9, 6)

    def test_same_key_same_bits(self, resident: ResidentModel, start: Adapter) -> None:
        privacy = PrivacyConfig(unit="sample")
        first, again, other = (learn(resident, start, privacy, key=key) for key in (KEY, KEY, OTHER))
        assert all(torch.equal(first.delta[name], again.delta[name]) for name in start)
        assert not any(torch.equal(first.delta[name], other.delta[name]) for name in start)

    def test_a_visit_without_secret_is_refused(self, resident: ResidentModel, start: Adapter) -> None:
        with pytest.raises(InputError, match="at least 32"):
            learn(resident, start, key=b"")

    def test_noise_has_its_deviation(self, resident: ResidentModel, start: Adapter) -> None:
        # One step, rate 0.1: the update is -0.1 (clipped + sigma C z) / B with sigma C / B = 4 * 0.5 / 3.
        settings = SGD.model_copy(update={"local_epochs": 1})
        loud = PrivacyConfig(noise_multiplier=4.0, clip_norm=0.5)
        one = learn(resident, start, loud, settings, ROWS[:3])
        none = learn(resident, start, QUIET, settings, ROWS[:3])
        noise = np.concatenate([(one.delta[n] - none.delta[n]).double().numpy().ravel() for n in start])
        expected = 0.1 * 4 * 0.5 / 3
        assert noise.std() == pytest.approx(expected, abs=4 * expected / np.sqrt(2 * noise.size))
        assert abs(noise.mean()) < 4 * expected / np.sqrt(noise.size)


class TestClippedSum:
    def test_no_samples(self, resident: ResidentModel, start: Adapter) -> None:
        resident.write(start)
        total = clipped_sum(resident, dict(resident.parameters), [], LanguageModel(), SGD, 1.0)
        assert total.keys() == start.keys()
        assert not any(tensor.any() for tensor in total.values())

    def test_one_by_one_gives_the_same(
        self, resident: ResidentModel, start: Adapter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resident.write(start)
        wide = SGD.model_copy(update={"batch_size": 7})
        trained = dict(resident.parameters)
        together = clipped_sum(resident, trained, ROWS, LanguageModel(), wide, 0.5)
        parts = clipped_sum(resident, trained, ROWS, LanguageModel(), wide.model_copy(update={"accumulation": 3}), 0.5)
        monkeypatch.setattr(dp_sgd, "fusible", lambda _: "not a plain linear layer")
        alone = clipped_sum(resident, trained, ROWS, LanguageModel(), wide, 0.5)
        assert_close(together, alone, 1e-6)
        assert_close(together, parts, 1e-6)
        assert not any("forward" in vars(module) for module in resident.lora_layers.values())

    @pytest.mark.filterwarnings("ignore")
    def test_opacus_finds_the_same_gradients(self, resident: ResidentModel, start: Adapter) -> None:
        resident.write(start)
        trained = dict(resident.parameters)
        own = dp_sgd._per_sample(resident, trained, ROWS, LanguageModel())
        hooked = GradSampleModule(resident.model, loss_reduction="sum", strict=False)
        resident.model.train()  # Opacus looks on in training mode alone
        try:
            batch = collate(ROWS, resident.tokenizer.pad_token_id)
            logits = outputs_at(resident.model, batch.ids, batch.answers.rows, batch.positions)["logits"]
            (term,) = LanguageModel().loss({"retain": {"logits": logits}}, {"retain": batch.answers}).values()
            (term.sums / term.counts).sum().backward()
            assert_close({n: p.grad_sample for n, p in trained.items()}, own, 1e-6)
        finally:
            resident.model.eval()
            hooked.remove_hooks()
            for parameter in trained.values():
                parameter.grad = None
                for left in ("grad_sample", "_forward_counter"):
                    vars(parameter).pop(left, None)

    def test_with_checkpointing(self, resident: ResidentModel, start: Adapter) -> None:
        done = [learn(resident, start, settings=SGD.model_copy(update={"gradient_checkpointing": c})) for c in (0, 1)]
        assert_close(done[0].delta, done[1].delta, 1e-7)

    @settings(max_examples=15)
    @given(st.floats(1e-3, 10), st.integers(1, 6))
    def test_one_sample_moves_it_by_no_more_than_the_bound(
        self, resident: ResidentModel, start: Adapter, bound: float, count: int
    ) -> None:
        resident.write(start)
        trained = dict(resident.parameters)
        with_it = clipped_sum(resident, trained, ROWS[:count], LanguageModel(), SGD, bound)
        without = clipped_sum(resident, trained, ROWS[1:count], LanguageModel(), SGD, bound)
        moved = sum(float((with_it[name] - without[name]).square().sum()) for name in start) ** 0.5
        assert moved <= bound * (1 + 1e-4)


class TestPoisson:
    def test_rate(self) -> None:
        assert sampling_rate(40, 8) == 0.2
        assert sampling_rate(8, 8) == sampling_rate(3, 8) == 1.0

    def test_frequencies(self) -> None:
        # A fixed key; each sample is drawn in 0.3 of 20 000 steps, give or take four standard deviations.
        drawn = list(poisson_batches(ROWS, 7, 0.3, 20_000, KEY))
        tolerance = 4 * (0.3 * 0.7 / 20_000) ** 0.5
        for row in ROWS:
            assert sum(row in batch for batch in drawn) / 20_000 == pytest.approx(0.3, abs=tolerance)
        both = sum(ROWS[0] in batch and ROWS[1] in batch for batch in drawn) / 20_000
        assert both == pytest.approx(0.09, abs=4 * (0.09 * 0.91 / 20_000) ** 0.5)
        assert min(len(batch) for batch in drawn) == 0  # empty batches happen

    def test_key_decides(self) -> None:
        one, again, other = (list(poisson_batches(ROWS, 7, 0.5, 20, key)) for key in (KEY, KEY, OTHER))
        assert one == again != other

    def test_samples_without_a_row_take_their_draw(self) -> None:
        with_them = list(poisson_batches(ROWS[:4], 7, 0.5, 20, KEY))
        assert with_them == [
            [row for row in batch if row in ROWS[:4]] for batch in poisson_batches(ROWS, 7, 0.5, 20, KEY)
        ]

    def test_a_visit_of_empty_batches_is_noise_alone(
        self, resident: ResidentModel, start: Adapter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(NoiseStream, "uniform", _nobody(NoiseStream.uniform))
        settings = SGD.model_copy(update={"local_epochs": 1})  # three steps, expected batch 3
        done = learn(resident, start, PrivacyConfig(noise_multiplier=2.0, clip_norm=0.5), settings)
        noise = NoiseStream(derive_key(KEY, "noise"))
        expected = {name: np.zeros(tensor.shape) for name, tensor in start.items()}
        for _ in range(3):
            for name in sorted(start):
                expected[name] -= 0.1 * noise.gaussian(start[name].numel()).reshape(start[name].shape) / 3
        assert_close(done.delta, expected, 1e-6)


def _nobody(uniform: Any) -> Any:
    """Draws of samples (seven values at a time here) that take nobody; those of the noise as they are."""
    return lambda self, count: np.ones(count) if count == 7 else uniform(self, count)


class TestCohort:
    def test_one_by_one_and_without_metrics(self, resident: ResidentModel, start: Adapter) -> None:
        tasks = [
            LocalTask(client_id=f"client-{k}", rows={"retain": ROWS[k:]}, noise_key=derive_key(KEY, "x", 1, str(k)))
            for k in range(2)
        ]
        privacy = PrivacyConfig(unit="sample")
        updates, failures = train_cohort(resident, start, tasks, LanguageModel(), SGD, INFO, privacy)
        assert not failures
        assert [update.metrics for update in updates] == [{}, {}]
        for task, update in zip(tasks, updates, strict=True):
            alone = train_client_privately(resident, start, task, LanguageModel(), SGD, privacy, INFO)
            assert all(torch.equal(alone.delta[name], update.delta[name]) for name in start)

    def test_a_client_without_secret_fails_alone(self, resident: ResidentModel, start: Adapter) -> None:
        tasks = [
            LocalTask(client_id=f"client-{k}", rows={"retain": ROWS}, noise_key=key) for k, key in enumerate((KEY, b""))
        ]
        updates, failures = train_cohort(
            resident, start, tasks, LanguageModel(), SGD, INFO, PrivacyConfig(unit="sample")
        )
        assert [update.client_id for update in updates] == ["client-0"]
        assert "32" in failures["client-1"]
