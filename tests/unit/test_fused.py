"""Clients trained together are the clients trained one by one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oblivion.config import LoraConfig, ModelConfig, TrainConfig
from oblivion.data.tokens import TokenRow
from oblivion.models import factors
from oblivion.models.factors import Factor, factor_of, only
from oblivion.models.loading import load_base
from oblivion.models.resident import ResidentModel
from oblivion.objectives.terms import Objective, objective_from
from oblivion.training import cohort, fused
from oblivion.training.arena import Arena
from oblivion.training.cohort import train_cohort
from oblivion.training.fused import fusible, train_fused
from oblivion.training.local import LocalTask, train_client
from oblivion.training.slots import slots_for
from oblivion.types import Adapter, ClientUpdate, RoundInfo

INFO = RoundInfo(branch="main", round=2, rounds=3, population=("c0",), seed=5)
SIZES = (7, 3, 12, 5, 9)
LM = objective_from("lm", {})


def rows(count: int, seed: int) -> list[TokenRow]:
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(generator.integers(6, 30))
        made.append(
            TokenRow(tuple(generator.integers(3, 200, length).tolist()), int(generator.integers(2, length - 2)))
        )
    return made


def learning(sizes: tuple[int, ...] = SIZES) -> list[LocalTask]:
    return [LocalTask(client_id=f"c{i}", rows={"retain": rows(n, i)}) for i, n in enumerate(sizes)]


def forgetting() -> list[LocalTask]:
    """The second client has no rows to keep, the others have six."""
    tasks = []
    for i, n in enumerate(SIZES):
        anchor: dict[Any, Any] = {} if i == 1 else {"retain": rows(6, 50 + i)}
        tasks.append(LocalTask(client_id=f"c{i}", rows={"forget": rows(n, i), **anchor}))
    return tasks


@pytest.fixture(scope="module")
def single(micro_model: Path) -> ResidentModel:
    return ResidentModel(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=4, alpha=8))


class Double(ResidentModel):
    """In fp64, so that the order of sums does not hide a difference."""

    def read(self) -> Adapter:
        return {name: p.detach().clone() for name, p in self.parameters.items()}


@pytest.fixture(scope="module")
def double(micro_model: Path) -> Iterator[ResidentModel]:
    made = Double(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=4, alpha=8))
    made.model.double()
    yield made


def start_of(resident: ResidentModel, scale: float = 0.05) -> Adapter:
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name, parameter in resident.parameters.items():
        made[name] = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
    return made


def farthest(one: list[ClientUpdate], other: list[ClientUpdate]) -> float:
    pairs = [(a.delta[n].double(), b.delta[n].double()) for a, b in zip(one, other, strict=True) for n in a.delta]
    return max(float((a - b).abs().max()) for a, b in pairs)


SETTINGS = {
    "adamw": TrainConfig(batch_size=4, local_epochs=2, weight_decay=0.01, learning_rate=1e-3),
    "sgd": TrainConfig(batch_size=4, local_epochs=2, optimizer="sgd"),
    "accumulation": TrainConfig(batch_size=4, local_epochs=1, accumulation=3, learning_rate=1e-3),
    "clipping at once": TrainConfig(batch_size=4, local_epochs=1, clip_norm=1e-3, learning_rate=1e-3),
}


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lm", {}), ("npo", {}), ("npo", {"retain_loss": "kl"}), ("simnpo", {}), ("grad_ascent", {})],
)
def test_every_objective_gives_what_one_by_one_gives(
    double: ResidentModel, name: str, parameters: dict[str, Any], settings: TrainConfig, slots: int
) -> None:
    objective, start = objective_from(name, parameters), start_of(double)
    tasks = learning() if name == "lm" else forgetting()
    alone = [train_client(double, start, task, objective, settings, INFO) for task in tasks]
    together = train_fused(double, start, tasks, objective, settings, INFO, slots)
    assert farthest(alone, together) < 1e-9
    for one, other in zip(alone, together, strict=True):
        assert (one.client_id, one.steps, one.num_examples) == (other.client_id, other.steps, other.num_examples)
        assert one.metrics["tokens"] == other.metrics["tokens"]
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], abs=1e-9)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_each_client_has_its_own_correction_and_proximal_term(double: ResidentModel, slots: int, mu: float) -> None:
    start, settings = start_of(double), TrainConfig(batch_size=4, local_epochs=2, optimizer="sgd")
    plain = learning((4, 3, 6, 1))
    generator = torch.Generator().manual_seed(3)
    tasks = []
    for task in plain:
        correction = {n: 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in start.items()}
        own = correction if task.client_id != plain[1].client_id else {}  # one was never seen before
        tasks.append(dataclasses.replace(task, proximal_mu=mu, correction=own))
    alone = [train_client(double, start, task, LM, settings, INFO) for task in tasks]
    together = train_fused(double, start, tasks, LM, settings, INFO, slots)
    assert farthest(alone, together) < 1e-9
    assert farthest(alone, train_fused(double, start, plain, LM, settings, INFO, slots)) > 1e-4


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("name", ["lm", "npo"])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_factor_that_is_not_trained_is_neither_moved_nor_sent(
    double: ResidentModel, factor: Factor, name: str, slots: int
) -> None:
    objective, start = objective_from(name, {}), start_of(double)
    settings = TrainConfig(batch_size=4, local_epochs=2, weight_decay=0.01, learning_rate=1e-3)
    plain = learning() if name == "lm" else forgetting()
    tasks = [dataclasses.replace(task, factors=(factor,), proximal_mu=0.3) for task in plain]
    alone = []
    for task in tasks:
        alone.append(train_client(double, start, task, objective, settings, INFO))
        after = double.read()
        assert all(torch.equal(after[n], t) == (factor_of(n) != factor) for n, t in start.items())
    together = train_fused(double, start, tasks, objective, settings, INFO, slots)
    for update in (*alone, *together):
        assert set(update.delta) == set(only(start, (factor,)))
    assert farthest(alone, together) < 1e-9
    assert all(p.requires_grad for p in double.parameters.values()), "frozen for the visit alone"


@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_clients_of_different_ranks_share_a_pass(double: ResidentModel, mu: float) -> None:
    start, settings = start_of(double), TrainConfig(batch_size=4, local_epochs=2, learning_rate=1e-3)
    ranks = {"c1": 1, "c2": 3}
    tasks = [
        dataclasses.replace(task, start=factors.start_of(start, ranks, task.client_id), proximal_mu=mu)
        if task.client_id in ranks
        else dataclasses.replace(task, proximal_mu=mu)
        for task in learning()
    ]
    alone = [train_client(double, start, task, LM, settings, INFO) for task in tasks]
    assert farthest(alone, train_fused(double, start, tasks, LM, settings, INFO, 3)) < 1e-9
    for update in alone:
        rank = ranks.get(update.client_id, 4)
        for name, delta in update.delta.items():
            own, rest = (delta[:rank], delta[rank:]) if factor_of(name) == "A" else (delta[:, :rank], delta[:, rank:])
            assert own.any() and not rest.any()


def test_clients_with_references_of_their_own_are_trained_one_by_one(single: ResidentModel) -> None:
    """What the fused pass takes as the reference is one adapter for all."""
    objective, start = objective_from("npo", {}), start_of(single)
    settings = TrainConfig(batch_size=4, local_epochs=1, learning_rate=1e-3)
    tasks = [dataclasses.replace(task, start=factors.truncated(start, 2)) for task in forgetting()[:2]]
    updates, failures = train_cohort(single, start, tasks, objective, settings, INFO)
    assert not failures and all("together" not in update.metrics for update in updates)
    alone = [
        train_client(single, tasks[0].start or start, dataclasses.replace(t, start=None), objective, settings, INFO)
        for t in tasks
    ]
    assert farthest(updates, alone) == 0.0


def test_a_model_that_was_never_used_trains_its_first_cohort_together(micro_model: Path, single: ResidentModel) -> None:
    fresh = ResidentModel(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=4, alpha=8))
    settings, start = TrainConfig(batch_size=4, local_epochs=1), start_of(single)
    updates, _ = train_cohort(fresh, start, learning((4, 4, 4)), LM, settings, INFO)
    again, _ = train_cohort(fresh, start, learning((4, 4, 4)), LM, settings, INFO)
    assert [update.metrics["together"] for update in updates] == [3.0, 3.0, 3.0]
    assert farthest(updates, again) == 0.0


def test_gradients_to_ten_digits(double: ResidentModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of plain SGD with rate 1 and no clipping: the update is the negative gradient."""
    settings = TrainConfig(batch_size=4, local_epochs=1, optimizer="sgd", learning_rate=1.0, clip_norm=1e9)
    tasks, start = learning((4, 3, 2, 1)), start_of(double)
    gradients = {}

    def kept(arena: Arena, chosen: list[int], combine: Any) -> None:
        gradients.update({row: {n: p.grad[row].clone() for n, p in arena.parameters.items()} for row in chosen})
        stepped(arena, chosen, combine)

    stepped = Arena.step
    monkeypatch.setattr(Arena, "step", kept)
    train_fused(double, start, tasks, LM, settings, INFO, 4)
    for row, task in enumerate(tasks):
        update = train_client(double, start, task, LM, settings, INFO)
        assert update.steps == 1
        for name, tensor in update.delta.items():
            torch.testing.assert_close(-tensor, gradients[row][name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["lm", "npo"])
def test_checkpointed_activations_change_nothing_and_are_fewer(double: ResidentModel, name: str) -> None:
    objective, start = objective_from(name, {}), start_of(double)
    tasks = learning() if name == "lm" else forgetting()
    settings = TrainConfig(batch_size=4, local_epochs=1, learning_rate=1e-3)
    frugal = settings.model_copy(update={"gradient_checkpointing": True})
    kept = {}

    def run(chosen: TrainConfig) -> list[ClientUpdate]:
        size = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            updates = train_fused(double, start, tasks, objective, chosen, INFO, 3)
        kept[chosen.gradient_checkpointing] = size
        return updates

    assert farthest(run(settings), run(frugal)) < 1e-12
    alone = [train_client(double, start, task, objective, frugal, INFO) for task in tasks]
    assert farthest(run(settings), alone) < 1e-9
    assert kept[True] < kept[False] / 2
    assert not double.base.model.is_gradient_checkpointing and not double.model.training


def test_bfloat16_has_masters_in_float32(micro_model: Path, single: ResidentModel) -> None:
    """The forward pass runs in bf16 alone; what is stepped and sent is finer than bf16 could hold."""
    settings = TrainConfig(batch_size=4, local_epochs=2, optimizer="sgd", learning_rate=1e-4, clip_norm=1e9)
    half = ResidentModel(load_base(ModelConfig(name=str(micro_model), dtype="bfloat16")), LoraConfig(rank=4, alpha=8))
    assert {p.dtype for p in half.parameters.values()} == {torch.float32}
    assert {p.dtype for p in half.base.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    start, seen = start_of(single), set()
    layer = next(iter(half.lora_layers.values())).base_layer
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.add((inputs[0].dtype, output.dtype)))
    coarse = train_fused(half, start, learning(), LM, settings, INFO, 3)
    hook.remove()
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    fine = train_fused(single, start, learning(), LM, settings, INFO, 3)
    for one, other in zip(coarse, fine, strict=True):
        a, b = (torch.cat([t.flatten() for t in update.delta.values()]) for update in (one, other))
        assert float(torch.cosine_similarity(a, b, dim=0)) > 0.99
        assert 0 < float(a.abs().max()) < 2**-9 * max(float(t.abs().max()) for t in start.values())


def test_a_row_steps_as_adamw_does() -> None:
    settings = TrainConfig(learning_rate=1e-2, weight_decay=0.1, clip_norm=1e9)
    generator = torch.Generator().manual_seed(0)
    values = {"a": torch.randn(3, 2, generator=generator).double(), "b": torch.randn(4, generator=generator).double()}
    arena = Arena(values, 2, settings)
    mine = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in values.items()}
    optimizer = torch.optim.AdamW(mine.values(), lr=1e-2, weight_decay=0.1)
    arena.load(1, values)
    for step in range(5):
        if step == 2:
            arena.load(0, values)  # a neighbour that begins later has its own step count
        for name, parameter in mine.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator).double()
            arena.parameters[name].grad[1].copy_(parameter.grad)
            arena.parameters[name].grad[0].copy_(parameter.grad)
        optimizer.step()
        arena.step([0, 1] if step >= 2 else [1])
    for name, tensor in arena.read(1).items():
        torch.testing.assert_close(tensor, mine[name].detach(), rtol=0, atol=1e-14)
    assert arena.steps.tolist() == [3, 5]


def test_a_slot_is_filled_again_as_soon_as_its_client_ends(
    single: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = []
    monkeypatch.setattr(Arena, "step", lambda arena, chosen, combine: busy.append(len(chosen)))
    settings = TrainConfig(batch_size=1, local_epochs=1)
    train_fused(single, start_of(single), learning((7, 5, 4, 3, 2, 1)), LM, settings, INFO, 2)
    assert busy == [2] * 11  # 22 steps on two slots, none idle


def test_who_fails_to_be_finite_fails_alone(single: ResidentModel, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, start, tasks = TrainConfig(batch_size=4, local_epochs=2), start_of(single), learning()
    good = {u.client_id: u for u in train_fused(single, start, tasks, LM, settings, INFO, 5)}
    loaded = Arena.load

    def poisoned(arena: Arena, row: int, *values: Any) -> None:
        loaded(arena, row, *values)
        if row == 2:
            arena.values[row, 0] = math.nan

    monkeypatch.setattr(Arena, "load", poisoned)
    for update in train_fused(single, start, tasks, LM, settings, INFO, 5):
        finite = all(bool(tensor.isfinite().all()) for tensor in update.delta.values())
        assert finite == (update.client_id != "c2")
        if finite:
            assert all(torch.equal(t, good[update.client_id].delta[n]) for n, t in update.delta.items())


def test_the_model_is_left_as_it_was(single: ResidentModel) -> None:
    before = {name: module.forward for name, module in single.lora_layers.items()}
    train_fused(single, start_of(single), learning(), LM, TrainConfig(batch_size=4), INFO, 3)
    after = {name: module.forward for name, module in single.lora_layers.items()}
    assert all("forward" not in vars(module) for module in single.lora_layers.values())
    assert before.keys() == after.keys() and not single.model.training
    assert all(p.grad is None for p in single.parameters.values())


def test_two_runs_have_the_same_bits(single: ResidentModel) -> None:
    settings, start = TrainConfig(batch_size=4), start_of(single)
    one = train_fused(single, start, learning(), LM, settings, INFO, 3)
    assert farthest(one, train_fused(single, start, learning(), LM, settings, INFO, 3)) == 0.0


def test_dropout_and_odd_layers_are_not_fused(micro_model: Path, single: ResidentModel) -> None:
    base = load_base(ModelConfig(name=str(micro_model)))
    assert fusible(single) is None
    assert "dropout" in str(fusible(ResidentModel(base, LoraConfig(rank=2, dropout=0.1))))


def one_by_one(resident: ResidentModel, tasks: list[LocalTask], settings: TrainConfig) -> list[ClientUpdate]:
    return [train_client(resident, start_of(resident), task, LM, settings, INFO) for task in tasks]


def test_a_cohort_with_dropout_is_trained_one_by_one(micro_model: Path) -> None:
    resident = ResidentModel(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=2, dropout=0.1))
    settings = TrainConfig(batch_size=4, local_epochs=1)
    updates, failures = train_cohort(resident, start_of(resident), learning(), LM, settings, INFO)
    assert not failures and farthest(updates, one_by_one(resident, learning(), settings)) == 0.0


def test_a_cohort_that_does_not_fit_is_halved(single: ResidentModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def small(*arguments: Any) -> list[ClientUpdate]:
        tried.append(arguments[-1])
        if arguments[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fused.train_fused(*arguments)

    monkeypatch.setattr(cohort, "train_fused", small)
    settings = TrainConfig(batch_size=4, local_epochs=1)
    updates, failures = train_cohort(single, start_of(single), learning(), LM, settings, INFO)
    assert tried == [5, 2] and not failures and len(updates) == 5
    assert {update.metrics["together"] for update in updates} == {2.0}


@dataclasses.dataclass(frozen=True)
class Fails:
    """An objective that cannot be computed where there is no rows to keep."""

    inner: Objective
    needs = frozenset({"retain.logits"})
    accepts_retain = True
    reduction = "token"

    def loss(self, outputs: Any, batch: Any) -> Any:
        if batch["retain"].labels.shape[0] % 2:
            raise ValueError("an odd batch")
        return self.inner.loss(outputs, batch)


def test_an_error_of_one_client_is_its_own(single: ResidentModel) -> None:
    settings = TrainConfig(batch_size=16, local_epochs=1)
    tasks = learning()
    odd = {t.client_id for t in tasks if sum(len(row.labels) for row in t.rows["retain"]) % 2}
    assert 0 < len(odd) < len(tasks)
    updates, failures = train_cohort(single, start_of(single), tasks, Fails(LM), settings, INFO)  # type: ignore[arg-type]
    assert failures.keys() == odd and {u.client_id for u in updates} == {t.client_id for t in tasks} - odd


@pytest.mark.parametrize(
    ("width", "batch", "device", "clients", "slots"),
    [
        (64, 1, "cpu", 16, 8),
        (64, 1, "cpu", 8, 4),  # two cohorts, for two hosts
        (64, 1, "cpu", 20, 5),  # four of five, not three of up to eight
        (64, 1, "cpu", 1, 1),
        (64, 8, "cpu", 8, 4),
        (128, 64, "cpu", 8, 1),
        (256, 1, "cpu", 8, 4),
        (256, 1, "cpu", 9, 3),
        (256, 4, "cpu", 8, 1),
        (2048, 1, "cpu", 8, 2),
        (2048, 64, "cpu", 8, 1),
        (2048, 4, "cuda", 8, 32),
        (2048, 1, "cuda", 1000, 64),
    ],
)
def test_slots(width: int, batch: int, device: str, clients: int, slots: int) -> None:
    assert slots_for(width, batch, device, clients) == slots
