"""The mean of a metric over rows, with its 95 % interval."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from oblivion.metrics.engine.context import SHARE, AnswerScore, EvaluationContext
from oblivion.types import MetricResult

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def mean_interval(values: Sequence[float], bounds: tuple[float, float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean by the normal approximation, cut to the range that a value can have.

    ``m +- 1.96 s / sqrt(n)`` with the sample's standard deviation s; None below two rows.
    """
    if len(values) < 2:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    half = Z95 * float(numbers.std(ddof=1)) / float(np.sqrt(len(numbers)))
    mean = float(numbers.mean())
    return max(bounds[0], mean - half), min(bounds[1], mean + half)


def mean_result(
    values: Mapping[int, float | None],
    per_example: Mapping[int, Mapping[str, Any]],
    bounds: tuple[float, float] = SHARE,
    undefined: str = "no row has a value",
) -> MetricResult:
    """Average one value per row; rows without a value are left out, and counted.

    Parameters
    ----------
    values : mapping of int to float or None
        Row position to the number that is averaged; None where the metric is not defined on the row.
    per_example : mapping of int to mapping
        Row position to what is shown for the row.
    bounds : tuple of float, default `SHARE`
        The range that a value can have.
    undefined : str
        Why there is no value if no row has one.

    Returns
    -------
    MetricResult
        Mean in fp64, with a 95 % interval over the rows, and the sum over the rows with their number.
    """
    numbers = {index: value for index, value in values.items() if value is not None}
    left_out = len(values) - len(numbers)
    found = list(numbers.values())
    return MetricResult(
        value=float(np.mean(np.asarray(found, dtype=np.float64))) if found else None,
        per_example={str(index): per_example[index] for index in numbers},
        n=len(found),
        interval=mean_interval(found, bounds),
        reason="" if found else undefined,
        extra={"left_out": left_out} if left_out else {},
        sums=(float(sum(found)), float(len(found))),
    )


def mean_of_answers(
    context: EvaluationContext,
    group: str,
    measure: Callable[[AnswerScore], float | None],
    *kinds: str,
    bounds: tuple[float, float] = SHARE,
) -> MetricResult:
    """Average a number of each answer of a group; answers without one are left out, and counted."""
    values = {}
    for row in context.select(group, "answer", *kinds):
        assert row.answer is not None
        values[row.index] = measure(row.answer)
    shown = {index: {"score": value} for index, value in values.items()}
    return mean_result(values, shown, bounds, f"no answer of group '{group}' has a token before its end")


@dataclass(frozen=True)
class MeanOverAnswers(abc.ABC):
    """The mean of one number per answer of a group; subclasses define the number.

    Parameters
    ----------
    group : str, default "forget"
        The group of rows.
    """

    group: str = "forget"
    value_range: ClassVar[tuple[float, float]] = SHARE
    over: ClassVar[Literal["row", "token"]] = "row"

    @staticmethod
    @abc.abstractmethod
    def measure(answer: AnswerScore) -> float | None:
        """Return the number of an answer; None if it has none."""

    @property
    def requires(self) -> frozenset[str]:
        """Ask for the scores of the answers."""
        return frozenset({f"{self.group}.answer"})

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Return the mean, with a ``score`` per row."""
        return mean_of_answers(context, self.group, self.measure)
