"""Model utility (Maini et al., 2024, TOFU): the harmonic mean of nine numbers, none on forget rows.

They are probability (normalised on real authors and world facts), ROUGE-L recall and truth ratio (``true_better``),
each on retain rows, real authors and world facts. One zero makes it zero; without one of them there is no mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.metrics.engine.context import SHARE, EvaluationContext, Metric
from oblivion.metrics.normalised_probability import NormalisedProbability
from oblivion.metrics.probability import Probability
from oblivion.metrics.rouge import Rouge
from oblivion.metrics.truth_ratio import TruthRatio
from oblivion.types import MetricResult

COMPONENTS: Mapping[str, Metric] = {
    "retain_Q_A_Prob": Probability("retain"),
    "retain_Q_A_ROUGE": Rouge("retain"),
    "retain_TR__true_better": TruthRatio("retain", "true_better"),
    "ra_Q_A_Prob_normalised": NormalisedProbability("ra"),
    "ra_Q_A_ROUGE": Rouge("ra"),
    "ra_TR__true_better": TruthRatio("ra", "true_better", "answer"),
    "wf_Q_A_Prob_normalised": NormalisedProbability("wf"),
    "wf_Q_A_ROUGE": Rouge("wf"),
    "wf_TR__true_better": TruthRatio("wf", "true_better", "answer"),
}


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean of numbers that are not negative; 0 if one of them is 0."""
    if any(value <= 0 for value in values):
        return 0.0
    return len(values) / sum(1 / value for value in values)


@dataclass(frozen=True)
class ModelUtility:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio over retain rows, real authors and world facts."""

    value_range: ClassVar[tuple[float, float]] = SHARE

    @property
    def requires(self) -> frozenset[str]:
        """Ask for everything that its nine components require."""
        return frozenset().union(*(component.requires for component in COMPONENTS.values()))

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Return the harmonic mean, with its ``components``; n counts the rows of the three groups."""
        results = {name: context.result(component) for name, component in COMPONENTS.items()}
        values = {name: result.value for name, result in results.items()}
        there = [value for value in values.values() if value is not None]
        lacking = [f"{name} has no value: {results[name].reason}" for name, value in values.items() if value is None]
        return MetricResult(
            value=None if lacking else harmonic_mean(there),
            n=sum(result.n for result in list(results.values())[::3]),
            reason="; ".join(lacking),
            extra={"components": values},
        )
