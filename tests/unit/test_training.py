"""Local training against plain torch loops that share no code with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from oblivion.aggregation.gate import Gate
from oblivion.config import LoraConfig, ModelConfig, TrainConfig
from oblivion.data.tokens import TokenRow
from oblivion.errors import OblivionError
from oblivion.models.loading import load_base
from oblivion.models.resident import ResidentModel
from oblivion.objectives.lm import LanguageModel
from oblivion.objectives.npo import NPO
from oblivion.objectives.terms import Term
from oblivion.tasks.causal_lm import CausalLM
from oblivion.training.cohort import train_cohort
from oblivion.training.local import LocalTask, train_client
from oblivion.types import ClientUpdate, RoundInfo

INFO = RoundInfo(branch="main", round=3, rounds=5, population=("client-0", "client-1"), seed=7)
SGD = TrainConfig(batch_size=4, local_epochs=1, learning_rate=0.1, optimizer="sgd", clip_norm=1e9)
ROWS = [TokenRow((1, 10 + i, 20 + i, *range(30 + i, 33 + 2 * i), 2), 2 + i % 2) for i in range(4)]
OTHERS = [TokenRow((1, 50 + i, 60 + i, 70 + i, 2), 2) for i in range(5)]


@pytest.fixture(scope="module")
def resident(micro_model: Path) -> ResidentModel:
    return ResidentModel(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=4, alpha=8))


@pytest.fixture(scope="module")
def dropping(micro_model: Path) -> ResidentModel:
    return ResidentModel(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=4, alpha=8, dropout=0.3))


@pytest.fixture(scope="module")
def start(resident: ResidentModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in resident.parameters.items()}


def learn(
    resident: ResidentModel,
    start: dict[str, torch.Tensor],
    settings: TrainConfig = SGD,
    rows: Sequence[TokenRow] = ROWS,
    client: str = "client-0",
    info: RoundInfo = INFO,
    **terms: Any,
) -> ClientUpdate:
    task = LocalTask(client_id=client, rows={"retain": rows}, **terms)
    return train_client(resident, start, task, LanguageModel(), settings, info)


def token_mean(resident: ResidentModel, rows: Sequence[TokenRow]) -> torch.Tensor:
    """Mean NLL over all answer tokens, one unpadded row after another."""
    sums, count = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([row.ids])
        logp = resident.model(input_ids=ids).logits[0].log_softmax(-1)
        for position in range(row.prompt_length, len(row.ids)):
            sums = sums - logp[position - 1, row.ids[position]]
            count += 1
    return sums / count


def assert_close(one: Any, other: Any, atol: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol)


def equal(one: ClientUpdate, other: ClientUpdate) -> bool:
    return all(torch.equal(one.delta[n], other.delta[n]) for n in one.delta) and one.metrics == other.metrics


def gradient_step(resident: ResidentModel, start: Any, scale: float = 0.1) -> dict[str, torch.Tensor]:
    resident.write(start)
    gradients = torch.autograd.grad(token_mean(resident, ROWS), list(resident.parameters.values()))
    return {n: -scale * g for n, g in zip(resident.parameters, gradients, strict=True)}


def test_one_sgd_step_equals_plain_torch(resident: ResidentModel, start: Any) -> None:
    expected = gradient_step(resident, start)
    resident.write(start)
    loss = float(token_mean(resident, ROWS).detach())
    update = learn(resident, start)
    assert_close(update.delta, expected, 1e-6)
    assert update.metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert (update.steps, update.num_examples, update.round, update.client_id) == (1, 4, 3, "client-0")
    assert update.metrics["tokens"] == sum(len(row.ids) for row in ROWS)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_three_adamw_steps_equal_a_plain_loop(resident: ResidentModel, start: Any, weight_decay: float) -> None:
    settings = TrainConfig(batch_size=4, local_epochs=3, learning_rate=0.01, weight_decay=weight_decay, clip_norm=1e9)
    update = learn(resident, start, settings)
    resident.write(start)
    parameters = list(resident.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=weight_decay)
    for _ in range(3):
        optimizer.zero_grad()
        token_mean(resident, ROWS).backward()
        optimizer.step()
    optimizer.zero_grad()
    after = resident.read()
    assert update.steps == 3
    # Adam divides by sqrt(v): a coordinate whose gradient is rounding noise may differ by up to a step of 0.01
    for name, delta in update.delta.items():
        difference = (delta - (after[name] - start[name])).abs()
        assert float(difference.median()) < 1e-6 and float(difference.max()) < 1e-3


def test_proximal_term_equals_its_loss_in_autograd(resident: ResidentModel, start: Any) -> None:
    # Two steps: at the first w = w0, so the term shows at the second only.
    mu, rate = 0.5, 0.1
    settings = SGD.model_copy(update={"local_epochs": 2})
    update = learn(resident, start, settings, proximal_mu=mu)
    resident.write(start)
    parameters = list(resident.parameters.values())
    for _ in range(2):
        distance = sum(((p - start[n]) ** 2).sum() for n, p in resident.parameters.items())
        loss = token_mean(resident, ROWS) + mu / 2 * distance
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(rate * gradient)
    expected = {n: t - start[n] for n, t in resident.read().items()}
    assert_close(update.delta, expected, 2e-6)
    free = learn(resident, start, settings)
    assert max(float((free.delta[n] - update.delta[n]).abs().max()) for n in expected) > 1e-4


def test_mu_zero_is_plain_training_bit_for_bit(resident: ResidentModel, start: Any) -> None:
    one = learn(resident, start, SGD.model_copy(update={"local_epochs": 2}), proximal_mu=0.0, correction={})
    other = learn(resident, start, SGD.model_copy(update={"local_epochs": 2}))
    assert equal(one, other)


def test_a_strong_proximal_term_keeps_the_update_small(resident: ResidentModel, start: Any) -> None:
    def norm(mu: float) -> float:
        settings = SGD.model_copy(update={"local_epochs": 6, "learning_rate": 0.3})
        delta = learn(resident, start, settings, proximal_mu=mu).delta
        return math.sqrt(sum(float(t.square().sum()) for t in delta.values()))

    assert norm(3.0) < 0.6 * norm(0.0)


def test_a_correction_is_added_to_the_step_and_not_clipped(resident: ResidentModel, start: Any) -> None:
    # one step of rate 0.1 with a gradient that is clipped away almost whole: what is left is -0.1 times the correction
    correction = {name: torch.full(tensor.shape, 3.0) for name, tensor in start.items()}
    update = learn(resident, start, SGD.model_copy(update={"clip_norm": 1e-9}), correction=correction)
    assert_close(update.delta, {name: -0.1 * t for name, t in correction.items()}, 1e-5)


@pytest.mark.parametrize("micros", [2, 4, 100])
def test_accumulation_changes_nothing_but_rounding(resident: ResidentModel, start: Any, micros: int) -> None:
    one = learn(resident, start)
    many = learn(resident, start, SGD.model_copy(update={"accumulation": micros}))
    assert many.steps == 1 and many.metrics["tokens"] == one.metrics["tokens"]
    assert_close(many.delta, one.delta, 1e-6)
    assert many.metrics["loss"] == pytest.approx(one.metrics["loss"], abs=1e-5)


def test_clipping_bounds_the_step_and_keeps_its_direction(resident: ResidentModel, start: Any) -> None:
    # SGD: |delta| = rate * |gradient|, and the gradient's norm is cut to clip_norm
    free, clipped = learn(resident, start), learn(resident, start, SGD.model_copy(update={"clip_norm": 0.01}))
    flat = [torch.cat([u.delta[n].flatten() for n in u.delta]).double() for u in (free, clipped)]
    assert float(flat[0].norm()) > 0.1 * 0.02
    assert float(flat[1].norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert float(torch.cosine_similarity(flat[0], flat[1], dim=0)) == pytest.approx(1, abs=1e-4)


def test_a_client_after_others_is_the_client_alone(dropping: ResidentModel, start: Any) -> None:
    settings = TrainConfig(batch_size=2, local_epochs=2)
    alone = learn(dropping, start, settings)
    torch.manual_seed(99)
    other = learn(dropping, start, settings, OTHERS, client="client-1")
    again = learn(dropping, start, settings)
    assert equal(alone, again) and not equal(alone, other)


def test_the_first_visit_in_a_process_is_like_any_other(micro_model: Path, dropping: ResidentModel, start: Any) -> None:
    """With dropout: nothing that happens once per process may draw from a visit's randomness."""
    fresh = ResidentModel(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=4, alpha=8, dropout=0.3))
    first, second = learn(fresh, start), learn(fresh, start)
    assert equal(first, second) and equal(second, learn(dropping, start))


def test_randomness_depends_on_seed_round_and_client(dropping: ResidentModel, start: Any) -> None:
    first = learn(dropping, start)
    assert not equal(first, learn(dropping, start, client="client-1"))
    assert not equal(first, learn(dropping, start, info=dataclasses.replace(INFO, round=4)))
    assert not equal(first, learn(dropping, start, info=dataclasses.replace(INFO, seed=8)))
    same = dataclasses.replace(INFO, branch="other", rounds=9, population=("client-0",))
    assert equal(first, learn(dropping, start, info=same)), "a replay on another branch gives the same bits"


def test_training_draws_nothing_from_the_global_generator(dropping: ResidentModel, start: Any) -> None:
    before = torch.get_rng_state()
    learn(dropping, start)
    assert torch.equal(torch.get_rng_state(), before)


def test_base_is_untouched_and_the_resident_is_left_tidy(resident: ResidentModel, start: Any) -> None:
    def base() -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in resident.model.named_parameters() if "lora" not in n}

    before, given = base(), {n: t.clone() for n, t in start.items()}
    learn(resident, start, TrainConfig(batch_size=2, local_epochs=1))
    assert all(torch.equal(p, before[n]) for n, p in base().items())
    assert all(p.requires_grad == ("lora" in n) for n, p in resident.model.named_parameters())
    assert all(p.grad is None for p in resident.model.parameters()) and not resident.model.training
    assert all(torch.equal(start[n], given[n]) for n in given), "the global adapter is not changed in place"


def test_delta_is_after_minus_before(resident: ResidentModel, start: Any) -> None:
    update = learn(resident, start)
    after = resident.read()
    assert all(torch.equal(update.delta[n], after[n] - start[n]) for n in start)
    assert all(t.dtype == torch.float32 and t.any() for t in update.delta.values())


def test_tokens_and_steps_count_every_pass(resident: ResidentModel, start: Any) -> None:
    update = learn(resident, start, SGD.model_copy(update={"batch_size": 3, "local_epochs": 2}))
    assert update.steps == 4  # 4 rows in batches of 3: two steps a pass
    assert update.metrics["tokens"] == 2 * sum(len(row.ids) for row in ROWS)


def test_npo_starts_from_the_adapter_before_training(resident: ResidentModel, start: Any) -> None:
    # At step 0 the ratio to the reference is 1: -(2/beta) log sigmoid(0) = (2/beta) log 2, whatever the rows.
    task = LocalTask(client_id="client-0", rows={"forget": ROWS})
    update = train_client(resident, start, task, NPO(beta=0.1), SGD, INFO)
    assert update.steps == 1
    assert update.metrics["loss"] == pytest.approx(20 * math.log(2), rel=1e-5)
    assert update.metrics["tokens"] == 2 * sum(len(row.ids) for row in ROWS), "the reference is forwarded too"


def test_npo_keeps_its_reference_while_it_moves(resident: ResidentModel, start: Any) -> None:
    # Were the reference the moving adapter, every step would read (2/beta) log 2.
    settings = TrainConfig(batch_size=4, local_epochs=3, learning_rate=0.01)
    update = train_client(
        resident, start, LocalTask(client_id="c", rows={"forget": ROWS}), NPO(beta=0.1), settings, INFO
    )
    assert update.steps == 3 and update.metrics["loss"] < 20 * math.log(2) - 0.1


def test_npo_step_equals_plain_torch(resident: ResidentModel, start: Any) -> None:
    """At the reference the NPO gradient is that of descending the mean summed log-likelihood."""
    # d/dx [-(2/beta) log sigmoid(beta x)] at x = 0 is -(2/beta) * beta / 2 = -1, with x = NLL - NLL_ref
    resident.write(start)
    sums = torch.stack([token_mean(resident, [row]) * len(row.labels) for row in ROWS])
    gradients = torch.autograd.grad(-sums.mean(), list(resident.parameters.values()))
    expected = {n: -0.01 * g for n, g in zip(resident.parameters, gradients, strict=True)}
    settings = SGD.model_copy(update={"learning_rate": 0.01})
    task = LocalTask(client_id="c", rows={"forget": ROWS})
    assert_close(train_client(resident, start, task, NPO(beta=0.1), settings, INFO).delta, expected, 1e-5)


def test_anchors_are_cycled_beside_the_forget_rows(
    resident: ResidentModel, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    original = CausalLM.collate

    def spy(task: CausalLM, rows: Sequence[TokenRow], *rest: Any) -> Any:
        seen.append(tuple(sorted(row.ids[1] for row in rows)))
        return original(task, rows, *rest)

    monkeypatch.setattr(CausalLM, "collate", spy)
    task = LocalTask(client_id="c", rows={"forget": ROWS, "retain": OTHERS[:3]})
    settings = SGD.model_copy(update={"batch_size": 2, "local_epochs": 3})
    update = train_client(resident, start, task, NPO(), settings, INFO)
    forget, anchors = seen[0::2], seen[1::2]
    assert update.steps == 6 and update.num_examples == 4, "the forget rows alone are counted"
    assert all(min(ids) < 50 for ids in forget) and all(min(ids) >= 50 for ids in anchors)
    # three anchors in batches of two: two batches a pass, so six steps see three whole passes
    assert [len(ids) for ids in anchors].count(1) == 3
    assert sorted(i for ids in anchors for i in ids) == sorted([50, 51, 52] * 3)


def test_anchor_term_is_in_the_loss(resident: ResidentModel, start: Any) -> None:
    resident.write(start)
    anchor = float(token_mean(resident, OTHERS[:4]).detach())
    task = LocalTask(client_id="c", rows={"forget": ROWS, "retain": OTHERS[:4]})
    loss = train_client(resident, start, task, NPO(beta=0.1, retain_weight=2.0), SGD, INFO).metrics["loss"]
    assert loss == pytest.approx(20 * math.log(2) + 2 * anchor, rel=1e-5)


def near(one: ClientUpdate, other: ClientUpdate) -> bool:
    """Equal up to the order of sums, which depends on who shares a pass (tests/unit/test_fused.py has it in fp64)."""
    return all(torch.allclose(one.delta[name], other.delta[name], rtol=0, atol=1e-5) for name in one.delta)


def test_cohort_of_two_is_each_alone(resident: ResidentModel, start: Any) -> None:
    tasks = [
        LocalTask(client_id="client-0", rows={"retain": ROWS}),
        LocalTask(client_id="client-1", rows={"retain": OTHERS}, skipped=2),
    ]
    updates, failures = train_cohort(resident, start, tasks, LanguageModel(), SGD, INFO)
    alone, _ = train_cohort(resident, start, tasks[1:], LanguageModel(), SGD, INFO)
    assert not failures and [u.client_id for u in updates] == ["client-0", "client-1"]
    assert near(updates[1], alone[0]) and updates[1].metrics["skipped"] == 2


def test_client_without_rows_fails_alone(resident: ResidentModel, start: Any) -> None:
    tasks = [LocalTask(client_id="empty", rows={"retain": []}), LocalTask(client_id="full", rows={"retain": ROWS})]
    updates, failures = train_cohort(resident, start, tasks, LanguageModel(), SGD, INFO)
    assert [u.client_id for u in updates] == ["full"] and failures == {"empty": "no rows to train on"}


def test_nothing_to_forget_is_a_failure_and_never_learning_on_the_anchors(resident: ResidentModel, start: Any) -> None:
    for rows in ({"forget": []}, {"forget": [], "retain": OTHERS}):
        task = LocalTask(client_id="c", rows=rows)  # type: ignore[arg-type]
        assert train_cohort(resident, start, [task], NPO(), SGD, INFO) == ([], {"c": "no rows to train on"})


@dataclass(frozen=True)
class Broken:
    error: Exception
    needs: ClassVar[frozenset[str]] = frozenset()
    accepts_retain: ClassVar[bool] = False
    reduction: ClassVar[str] = "token"

    def loss(self, *_: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("a row's text"), "RuntimeError (test_training.py, line "), (RuntimeError(), "RuntimeError (test_"),
     (OblivionError("no"), "OblivionError: no")],
)  # fmt: skip
def test_failure_names_its_reason_and_leaves_the_model_in_evaluation_mode(
    resident: ResidentModel, start: Any, error: Exception, reason: str
) -> None:
    task = LocalTask(client_id="c", rows={"retain": ROWS})
    updates, failures = train_cohort(resident, start, [task], Broken(error), SGD, INFO)  # type: ignore[arg-type]
    assert not updates and list(failures) == ["c"] and failures["c"].startswith(reason) and "text" not in failures["c"]
    assert not any(m.training for m in resident.model.modules())
    after, _ = train_cohort(resident, start, [task], LanguageModel(), SGD, INFO)
    assert near(after[0], learn(resident, start)), "the next visit is as if nothing had happened"


@dataclass(frozen=True)
class NotANumber:
    needs: ClassVar[frozenset[str]] = frozenset({"retain.logits"})
    accepts_retain: ClassVar[bool] = False
    reduction: ClassVar[str] = "token"

    def loss(self, outputs: Any, batch: Any) -> Any:
        values = batch["retain"].per_sequence(outputs["retain"]["logits"].sum(-1) * math.nan)
        return {"retain": Term(values, torch.ones_like(values))}


def test_a_nan_loss_gives_an_update_that_the_gate_refuses(resident: ResidentModel, start: Any) -> None:
    task = LocalTask(client_id="c", rows={"retain": ROWS})
    updates, failures = train_cohort(resident, start, [task], NotANumber(), SGD, INFO)  # type: ignore[arg-type]
    assert not failures and math.isnan(updates[0].metrics["loss"])
    gate = Gate(start, 1000.0, updates[0].fingerprint)
    accepted, refused = gate.admit(updates, {"c": 4}, INFO.round)
    assert not accepted and "not finite" in refused["c"]
    assert equal(learn(resident, start), learn(resident, start)), "and the model is not poisoned"
    assert all(t.isfinite().all() for t in learn(resident, start).delta.values())
