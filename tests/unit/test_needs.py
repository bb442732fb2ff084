"""What objectives need is made exactly, in both ways of training: teachers, alternates, state, two gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from test_fused import INFO, SETTINGS, SIZES, Double, farthest, rows, start_of

from oblivion.config import LoraConfig, ModelConfig, PrivacyConfig, TrainConfig
from oblivion.data.tokens import TokenRow
from oblivion.errors import ConfigError, InputError
from oblivion.models.loading import load_base
from oblivion.models.resident import ResidentModel
from oblivion.objectives.needs import Need, by_source, parse_needs
from oblivion.objectives.terms import Batch, Outputs, Term, token_nll
from oblivion.tasks.causal_lm import CausalLM
from oblivion.tasks.refusals import REFUSALS, refusal_to
from oblivion.training.dp_sgd import train_client_privately
from oblivion.training.fused import train_fused
from oblivion.training.local import LocalTask, micro_batches, train_client
from oblivion.training.outputs import Wanted, check_needs
from oblivion.types import Sample


@pytest.fixture(scope="module")
def double(micro_model: Path) -> Iterator[ResidentModel]:
    made = Double(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=4, alpha=8))
    made.model.double()
    yield made


def tasks() -> list[LocalTask]:
    """Rows to forget with alternates, and six rows to keep."""
    made = []
    for i, n in enumerate(SIZES):
        forget = rows(n, i)
        others = [TokenRow((*row.ids[: row.prompt_length], 5, 6, 7 + i), row.prompt_length) for row in forget]
        made.append(
            LocalTask(client_id=f"c{i}", rows={"forget": forget, "alternate": others, "retain": rows(6, 50 + i)})
        )
    return made


@dataclass(frozen=True)
class Everything:
    """Something of every source, role and kind, with a weight that changes and two gradients that are combined."""

    needs: ClassVar[frozenset[str]] = frozenset(
        {"forget.logits", "forget.base.logits", "alternate.hidden:1", "retain.logits", "retain.reference.hidden:2"}
        | {"retain.hidden:2"}
    )
    accepts_retain: ClassVar[bool] = True
    reduction: ClassVar[str] = "token"

    def init(self) -> Mapping[str, float]:
        return {"weight": 1.0}

    def update(self, state: Mapping[str, float], losses: Mapping[str, float]) -> Mapping[str, float]:
        return {"weight": 0.5 * state["weight"] + abs(losses["retain"])}

    def combine_gradients(self, forget: torch.Tensor, retain: torch.Tensor) -> torch.Tensor:
        return forget - 0.5 * retain * (forget * retain).sum(1, keepdim=True).sign()

    def loss(self, outputs: Outputs, batch: Batch) -> Mapping[str, Term]:
        assert {role: set(made) for role, made in outputs.items()} == {
            "forget": {"logits", "base.logits"},
            "alternate": {"hidden:1"},
            "retain": {"logits", "hidden:2", "reference.hidden:2"},
        }
        forget, retain, other = batch["forget"], batch["retain"], batch["alternate"]
        nll = token_nll(outputs["forget"]["logits"], forget) - token_nll(outputs["forget"]["base.logits"], forget)
        drift = (outputs["retain"]["hidden:2"] - outputs["retain"]["reference.hidden:2"]).square().mean(1)
        kept = token_nll(outputs["retain"]["logits"], retain) + drift
        near = other.per_sequence(outputs["alternate"]["hidden:1"].square().mean(1))
        values = (near - forget.per_sequence(nll)) * forget.state["weight"]
        return {
            "forget": Term(values, forget.counts(nll)),
            "retain": Term(retain.per_sequence(kept), retain.counts(kept), 0.3),
        }


@pytest.mark.parametrize("slots", [2, 5])
@pytest.mark.parametrize("name", ["sgd", "accumulation"])
def test_everything_together_gives_what_one_by_one_gives(double: ResidentModel, name: str, slots: int) -> None:
    objective: Any = Everything()
    start, given = start_of(double), tasks()
    alone = [train_client(double, start, task, objective, SETTINGS[name], INFO) for task in given]
    together = train_fused(double, start, given, objective, SETTINGS[name], INFO, slots)
    assert farthest(alone, together) < (1e-10 if name == "sgd" else 1e-9), "AdamW's steps are rounded to fp32"
    for one, other in zip(alone, together, strict=True):
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], abs=1e-9)
        assert one.metrics["tokens"] == other.metrics["tokens"]


def test_only_what_is_needed_is_forwarded(double: ResidentModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[str, ...]] = []
    forward = CausalLM.forward

    def spy(self: CausalLM, model: Any, batch: Any, wants: Any) -> Any:
        passes.append(tuple(wants))
        return forward(self, model, batch, wants)

    monkeypatch.setattr(CausalLM, "forward", spy)
    settings = TrainConfig(batch_size=64, local_epochs=1)
    task = tasks()[0]
    update = train_client(double, start_of(double), task, Everything(), settings, INFO)  # type: ignore[arg-type]
    assert sorted(passes) == [("hidden:1",), ("hidden:2",), ("hidden:2", "logits"), ("logits",), ("logits",)]
    count = {role: sum(len(row.ids) for row in given) for role, given in task.rows.items()}
    assert update.metrics["tokens"] == 2 * count["forget"] + count["alternate"] + 2 * 6 / 6 * count["retain"]


def test_the_base_teacher_has_no_adapter_and_the_reference_the_first(double: ResidentModel) -> None:
    start, batch = start_of(double), double.task.collate(rows(3, 1))
    wanted = Wanted(by_source({"forget.logits", "forget.base.logits", "forget.reference.logits"}))
    from oblivion.training.local import LocalVisit

    visit = LocalVisit(double, start, tasks()[0], TrainConfig())
    moved = {name: 2 * tensor for name, tensor in start.items()}
    double.write(moved)
    outputs = wanted.make(double.task, double.model, {"forget": batch}, visit.use)["forget"]
    with double.model.disable_adapter(), torch.no_grad():
        base = double.task.forward(double.model, batch, ("logits",))["logits"]
    double.write(start)
    first = double.task.forward(double.model, batch, ("logits",))["logits"]
    torch.testing.assert_close(outputs["base.logits"], base, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outputs["reference.logits"], first, rtol=0, atol=0)
    assert not outputs["base.logits"].requires_grad and outputs["logits"].requires_grad
    assert float((outputs["logits"] - first).detach().abs().max()) > 1e-6


def test_hidden_states_are_those_of_the_model(double: ResidentModel) -> None:
    batch = double.task.collate(rows(3, 2))
    found = double.task.forward(double.model, batch, ("hidden:0", "hidden:1"))
    states = double.model(input_ids=batch.ids, output_hidden_states=True).hidden_states
    for layer in (0, 1):
        assert torch.equal(found[f"hidden:{layer}"], states[layer][batch.answers.rows, batch.positions])
    assert "logits" not in found


def test_alternates_stay_beside_their_rows() -> None:
    (task,) = tasks()[:1]
    belongs = dict(zip(task.rows["forget"], task.rows["alternate"], strict=True))
    steps = list(micro_batches(task, TrainConfig(batch_size=4, accumulation=2, local_epochs=2), INFO))
    assert len(steps) == 4
    for micro in (micro for step in steps for micro in step):
        assert micro["alternate"] == [belongs[row] for row in micro["forget"]]


def test_an_alternate_is_the_samples_own_or_a_refusal(double: ResidentModel) -> None:
    class Words:
        pad_token_id = 0

    task = double.task
    sample = Sample(id="a", prompt="Who?", answer="Ada.")
    assert task.alternate(sample) == task.encode_answers(sample, (refusal_to("Who?"),))[0]
    own = Sample(id="a", prompt="Who?", answer="Ada.", extras={"alternate": "Nobody."})
    assert task.alternate(own) == task.encode_answers(sample, ("Nobody.",))[0]
    asked = {refusal_to(f"Question {i}?") for i in range(200)}
    assert asked == set(REFUSALS), "every refusal is used, and the same question always gets the same"


def test_needs_are_read() -> None:
    assert parse_needs({"retain"}) == ()
    assert parse_needs({"forget.hidden:3", "retain.reference.logits"}) == (
        Need("forget", "own", "hidden:3"),
        Need("retain", "reference", "logits"),
    )
    assert Need("retain", "base", "logits").key == "base.logits"
    assert by_source({"forget.logits", "retain", "forget.base.logits"}) == {
        "own": {"forget": ("logits",)},
        "base": {"forget": ("logits",)},
    }


@pytest.mark.parametrize("need", ["reference", "forget.", "forgotten.logits", "", ".logits", "forget.reference."])
def test_what_is_no_need_is_refused(need: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from oblivion.objectives.npo import NPO
    from oblivion.objectives.terms import objective_from

    monkeypatch.setattr(NPO, "needs", frozenset({need, "retain.logits"}))
    with pytest.raises(InputError, match=r"objective 'npo' is not valid: needs .* is not a need"):
        objective_from("npo", {})


def test_an_objective_that_contradicts_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from oblivion.objectives.npo import NPO
    from oblivion.objectives.terms import objective_from

    monkeypatch.setattr(NPO, "needs", frozenset({"forget.logits"}))
    with pytest.raises(InputError, match="accepts_retain is True, but it needs no output of the retain rows"):
        objective_from("npo", {})


def test_what_a_model_or_a_scheme_cannot_give_is_refused(double: ResidentModel) -> None:
    objective: Any = Everything()
    check_needs("all", objective, double.task, double.model, residual=False)
    with pytest.raises(ConfigError, match=r"objective 'all' needs the base model, and lora\.scheme adds"):
        check_needs("all", objective, double.task, double.model, residual=True)

    @dataclass(frozen=True)
    class Deep:
        needs: ClassVar[frozenset[str]] = frozenset({"forget.hidden:99"})

    with pytest.raises(ConfigError, match=r"objective 'deep' needs 'hidden:99', which this model does not have"):
        check_needs("deep", Deep(), double.task, double.model, residual=False)  # type: ignore[arg-type]


def test_privacy_of_samples_takes_no_other_objective(double: ResidentModel) -> None:
    task = LocalTask(client_id="c", rows={"retain": rows(3, 1)}, noise_key=b"k" * 32)
    with pytest.raises(ConfigError, match=r"Everything needs alternate\.hidden:1, .*take the objective 'lm'"):
        train_client_privately(
            double, start_of(double), task, Everything(), TrainConfig(), PrivacyConfig(unit="sample"), INFO  # type: ignore[arg-type]
        )  # fmt: skip
