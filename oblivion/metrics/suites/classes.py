"""The suite of classification: how often, and how surely, a model finds the classes of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.metrics.engine.context import MergeableMetric, Metric
from oblivion.metrics.engine.suite import OWN, Column, Headline, Number, Suite
from oblivion.metrics.exact_memorization import ExactMemorization
from oblivion.metrics.mia_loss import LossAttack
from oblivion.metrics.probability import Probability
from oblivion.metrics.suites.own_rows import OWN_PROBABILITY
from oblivion.metrics.token_loss import TokenLoss

_GROUPS = ("forget", "shared", "retain", "holdout")
_METRICS: Mapping[str, Metric] = {
    **{f"{group}_accuracy": ExactMemorization(group) for group in _GROUPS},
    **{f"{group}_probability": Probability(group) for group in _GROUPS},
    "mia_loss": LossAttack(),
}


@dataclass(frozen=True)
class Classes(Suite):
    """Accuracy and probability of the true class by group, and membership by loss."""

    headline: ClassVar[Headline] = Headline(
        forget=Number(metric="forget_probability", noun="probability"),
        own=OWN_PROBABILITY,
        utility=Number(metric="holdout_accuracy", noun="accuracy"),
        membership=Number(metric="mia_loss", noun="membership AUC"),
        kept=Number(metric="retain_probability", noun="probability of the rows that stay"),
        overdone="finds the classes less likely",
        shared="shared_probability",
        model="a classifier",
        question="row",
        answered="classified",
        answers="classes",
        token="row",
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            metric="forget_probability",
            title="Probability",
            meaning="how likely the model finds the classes of the forgotten rows. As close to the oracle as possible.",
        ),
        Column(
            metric="forget_accuracy",
            title="Accuracy",
            meaning="how often it finds the class of a forgotten row. As close to the oracle as possible.",
        ),
        Column(
            metric="holdout_accuracy",
            title="Accuracy on held-out rows",
            meaning="what the model is good for, on rows that nobody trained on. Not below the oracle.",
        ),
        Column(
            metric="mia_loss",
            title="Membership AUC (loss)",
            meaning="how well an attacker tells forgotten rows from rows never seen; 0.5 is guessing. "
            "As close to the oracle as possible.",
        ),
    )
    sections: ClassVar[Mapping[str, Sequence[str]]] = {
        "the rows to be forgotten": ("forget_accuracy", "forget_probability"),
        "rows that others hold, too": ("shared_accuracy", "shared_probability"),
        "the rows that stay": ("retain_accuracy", "retain_probability"),
        "held-out rows": ("holdout_accuracy", "holdout_probability"),
        "whether forgotten rows can be told apart from rows never seen (1: all of them, 0.5: none)": ("mia_loss",),
    }
    brief: ClassVar[Mapping[str, str]] = {
        "probability of its classes": "forget_probability",
        "accuracy on held-out rows": "holdout_accuracy",
        "membership AUC (loss); 0.5: cannot be told from held-out rows": "mia_loss",
    }

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Return accuracy and probability by group of rows, and the membership attack."""
        return _METRICS

    @property
    def client_metrics(self) -> Mapping[str, MergeableMetric]:
        """Return loss, probability and accuracy on the own rows of a client."""
        return {"loss": TokenLoss(OWN), "probability": Probability(OWN), "accuracy": ExactMemorization(OWN)}
