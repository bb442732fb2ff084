"""Probability of an answer (Maini et al., 2024, TOFU): ``P(a|q)^(1/T)``, EOS counted.

It is the geometric mean of the T token probabilities, ``exp(-loss)``. Over wrong answers a row's value is the mean of
theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from oblivion.metrics.engine.averages import mean_result
from oblivion.metrics.engine.context import SHARE, EvaluationContext
from oblivion.types import MetricResult


@dataclass(frozen=True)
class Probability:
    """Mean length-normalised probability of the answers, their paraphrases or the wrong answers of a group.

    Parameters
    ----------
    group : str, default "forget"
        The group of rows.
    answers : {"answer", "paraphrase", "wrong"}, default "answer"
        Which answers.
    """

    group: str = "forget"
    answers: Literal["answer", "paraphrase", "wrong"] = "answer"
    value_range: ClassVar[tuple[float, float]] = SHARE
    row_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"prob": SHARE}
    over: ClassVar[Literal["row", "token"]] = "row"

    @property
    def requires(self) -> frozenset[str]:
        """Ask for the scores of these answers."""
        return frozenset({f"{self.group}.{self.answers}"})

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Return the mean; each row has ``prob`` and ``avg_loss`` (nats per token), or lists of them."""
        values: dict[int, float | None] = {}
        shown: dict[int, dict[str, Any]] = {}
        for row in context.select(self.group, self.answers):
            if self.answers == "wrong":
                probabilities = [score.probability for score in row.wrong]
                values[row.index] = sum(probabilities) / len(probabilities)
                shown[row.index] = {"prob": probabilities, "avg_loss": [score.loss for score in row.wrong]}
                continue
            score = row.answer if self.answers == "answer" else row.paraphrase
            assert score is not None
            values[row.index] = score.probability
            shown[row.index] = {"prob": score.probability, "avg_loss": score.loss}
        return mean_result(values, shown)
