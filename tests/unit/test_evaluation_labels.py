"""A suite on a task without text: the rows are points, and the only label of each is its class."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from oblivion.config import load_config
from oblivion.errors import ConfigError
from oblivion.evaluation import evaluate
from oblivion.metrics.engine.one_pass import evaluate_client, evaluate_model
from oblivion.metrics.engine.suite import Column, Headline, Suite
from oblivion.metrics.exact_memorization import ExactMemorization
from oblivion.metrics.mia_loss import LossAttack
from oblivion.metrics.mia_min_k_plus_plus import MinKPlusPlusAttack
from oblivion.metrics.probability import Probability
from oblivion.metrics.rouge import Rouge
from oblivion.metrics.suites.own_rows import OWN_PROBABILITY, OWN_ROWS
from oblivion.objectives.terms import Answers
from oblivion.types import Sample
from simulations import simulate


@dataclass(frozen=True)
class Point:
    x: tuple[float, ...]
    label: int
    size: int = 1

    @property
    def labels(self) -> tuple[int, ...]:
        return (self.label,)


@dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    answers: Answers
    size: int


class Points:
    """Samples hold a point in `extras`, and their class as the answer."""

    def encode(self, sample: Sample) -> Point | None:
        x = sample.extras["x"]
        return Point(x, int(sample.answer)) if len(x) == 2 else None

    def collate(self, rows: Sequence[Point], device: Any = "cpu") -> Batch:
        labels = torch.tensor([row.label for row in rows])
        answers = Answers(labels=labels, rows=torch.arange(len(rows)), size=len(rows))
        return Batch(torch.tensor([row.x for row in rows]), answers, len(rows))

    def forward(self, model: Any, batch: Batch, wants: Collection[str]) -> dict[str, torch.Tensor]:
        return {"logits": model(batch.x)}


@dataclass(frozen=True)
class Classes(Suite):
    """Accuracy and probability of classes."""

    headline: ClassVar[Headline] = Headline(forget=OWN_PROBABILITY, own=OWN_PROBABILITY)
    columns: ClassVar[tuple[Column, ...]] = ()
    metrics: ClassVar[Any] = {
        "forget_accuracy": ExactMemorization("forget"),
        "forget_probability": Probability("forget"),
        "forget_text": Rouge("forget"),
        "attack": LossAttack(),
        "attack_plus": MinKPlusPlusAttack(),
    }
    client_metrics: ClassVar[Any] = OWN_ROWS


@pytest.fixture
def model() -> torch.nn.Module:
    made = torch.nn.Linear(2, 2)
    made.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    return made


def sample(number: int, x: tuple[float, ...], label: int) -> Sample:
    return Sample(id=f"p/{number}", prompt="", answer=str(label), extras={"x": x})


THREE = math.log(3.0)
# Logits (log 3, 0) give the classes 3/4 and 1/4.
FORGET = (sample(0, (THREE, 0.0), 0), sample(1, (0.0, THREE), 0), sample(2, (1.0,), 0), sample(3, (THREE, 0.0), 0))
HOLDOUT = (sample(4, (0.0, THREE), 0),)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_by_hand(model: torch.nn.Module, size: int) -> None:
    groups = {"forget": FORGET, "holdout": HOLDOUT}
    model.train()
    found = evaluate_model(model, Points(), groups, suite=Classes(), max_new_tokens=1, batch_size=size)  # type: ignore[arg-type]
    assert model.training and found.skipped == ("p/2",)
    assert found.results["forget_probability"].value == pytest.approx((0.75 + 0.25 + 0.75) / 3)
    assert found.results["forget_accuracy"].value == pytest.approx(2 / 3)  # the class is no end that would not count
    # Of the three pairs with the one held-out row (1/4), two are in order and one is a tie.
    assert found.results["attack"].value == pytest.approx(2.5 / 3)
    assert found.results["attack_plus"].n == 4
    assert "forget_text" not in found.results


def test_a_client_by_hand(model: torch.nn.Module) -> None:
    sums = evaluate_client(model, Points(), FORGET, suite=Classes(), max_new_tokens=1, batch_size=8)  # type: ignore[arg-type]
    assert sums["probability"] == pytest.approx((1.75, 3)) and sums["skipped"] == (1.0, 4.0)
    assert sums["loss"] == pytest.approx((-2 * math.log(0.75) - math.log(0.25), 3))
    with pytest.raises(ConfigError, match="batch_size = 0"):
        evaluate_client(model, Points(), FORGET, suite=Classes(), max_new_tokens=1, batch_size=0)  # type: ignore[arg-type]


def test_evaluate_measures_a_run_without_text_as_the_run_did(tmp_path: Path) -> None:
    small = {"federation.clients": 3, "federation.clients-per-round": 3, "federation.rounds": 1}
    asked = {"forget.client": "client-1", "forget.methods": ["exclude"], "evaluate.suite": "classes"}
    settings = {"engine": "inline", "model.name": "linear", "data.name": "gaussian", "data.public": "dataset"}
    run = simulate(load_config(None, {**settings, **small, **asked, "simulation.hosts": 1}), tmp_path / "run")
    (request,) = run.record.requests
    found, measured = evaluate(run), request.models["original"].central
    compared = [name for name in found if name != "manifest" and measured[name].value is not None]
    assert {name: found[name]["agg_value"] for name in compared} == pytest.approx(
        {name: measured[name].value for name in compared}
    )
    assert len(compared) > 2 and found["manifest"]["suite"] == "classes"
