"""Probability of the right answer among all answers (Maini et al., 2024, TOFU).

``P(a) / (P(a) + sum_i P(wrong_i) + 1e-10)`` with length-normalised P; the 1e-10 is open-unlearning's. A row on which
all probabilities together are below 1e-8 is left out: there the 1e-10 would decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from oblivion.metrics.engine.averages import mean_result
from oblivion.metrics.engine.context import SHARE, EvaluationContext
from oblivion.types import MetricResult

EPSILON = 1e-10
LEAST = 1e-8
"""If the probabilities together are below this, their ratio says nothing."""


@dataclass(frozen=True)
class NormalisedProbability:
    """Mean share of the right answer in the probability of all answers, as on real authors and world facts.

    Parameters
    ----------
    group : str, default "ra"
        The group of rows.
    """

    group: str = "ra"
    value_range: ClassVar[tuple[float, float]] = SHARE
    row_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"prob": SHARE}

    @property
    def requires(self) -> frozenset[str]:
        """Ask for the scores of the answer and of the wrong answers."""
        return frozenset({f"{self.group}.answer", f"{self.group}.wrong"})

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Return the mean, with the share per row as ``prob``."""
        values: dict[int, float | None] = {}
        for row in context.select(self.group, "answer", "wrong"):
            assert row.answer is not None
            right = row.answer.probability
            total = right + sum(score.probability for score in row.wrong)
            values[row.index] = None if total < LEAST else right / (total + EPSILON)
        shown = {index: {"prob": value} for index, value in values.items()}
        return mean_result(values, shown, undefined="the model finds all answers impossible")
