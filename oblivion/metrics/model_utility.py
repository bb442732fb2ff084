"""Model utility (Maini et al., 2024, TOFU): the harmonic mean of nine numbers, none on forget rows.

Probability (normalised on real authors and world facts), ROUGE-L recall and truth ratio (``true_better``), each on
retain rows, real authors and world facts. One zero makes it zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oblivion.metrics.context import EvaluationContext, Metric
from oblivion.metrics.normalised_probability import NormalisedProbability
from oblivion.metrics.probability import Probability
from oblivion.metrics.rouge import Rouge
from oblivion.metrics.truth_ratio import TruthRatio
from oblivion.types import MetricResult

COMPONENTS: tuple[Metric, ...] = (
    Probability("retain"),
    Rouge("retain"),
    TruthRatio("retain", "true_better"),
    NormalisedProbability("ra"),
    Rouge("ra"),
    TruthRatio("ra", "true_better", "answer"),
    NormalisedProbability("wf"),
    Rouge("wf"),
    TruthRatio("wf", "true_better", "answer"),
)


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of numbers that are not negative; 0 if one of them is 0."""
    if any(value <= 0 for value in values):
        return 0.0
    return len(values) / sum(1 / value for value in values)


@dataclass(frozen=True)
class ModelUtility:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio over retain rows, real authors and world facts."""

    @property
    def requires(self) -> frozenset[str]:
        """All that its nine components require."""
        return frozenset().union(*(component.requires for component in COMPONENTS))

    def compute(self, context: EvaluationContext) -> MetricResult:
        """The harmonic mean; n counts the rows of the three groups."""
        results = [context.result(component) for component in COMPONENTS]
        values = [result.value for result in results if result.value is not None]
        return MetricResult(value=harmonic_mean(values), n=sum(result.n for result in results[::3]))
