"""What metrics are computed from: the model's outputs on every row, gathered once and shared by all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oblivion.errors import InputError
from oblivion.types import MetricResult

REFERENCE = "reference"
"""In `Metric.requires`: the results of a model that never saw the forget rows."""

KINDS = ("answer", "paraphrase", "wrong", "generation", "moments", "text")
"""In `Metric.requires`, as ``"<group>.<kind>"``: scores of the answer, of its paraphrase, of the wrong answers; the
generated text; and with the answer's score, the moments over the vocabulary and the answer's decoded text."""


@dataclass(frozen=True)
class AnswerScore:
    """One answer, teacher-forced.

    Attributes
    ----------
    log_probs : array (T,) float64
        Log-probability of every labelled token in nats; the last one is EOS.
    matches : array (T,) bool
        Whether the token is the most likely one.
    mean, variance : array (T,) float64 or None
        Of the log-probability over the vocabulary, under the model's own distribution.
    text : str
        The labelled tokens decoded without special tokens; empty where no metric asks for it.
    """

    log_probs: NDArray[np.float64]
    matches: NDArray[np.bool_]
    mean: NDArray[np.float64] | None = None
    variance: NDArray[np.float64] | None = None
    text: str = ""

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood per token, EOS counted."""
        return float(-self.log_probs.mean())

    @property
    def probability(self) -> float:
        """Geometric mean of the token probabilities, EOS counted: ``exp(-loss)``."""
        return float(np.exp(-self.loss))


@dataclass(frozen=True, kw_only=True)
class ScoredRow:
    """The outputs on one sample.

    `index` is its position in its group, `target` its answer as plain text, `rouge` how the generation agrees with that
    if it was computed already.
    """

    index: int
    target: str = ""
    answer: AnswerScore | None = None
    paraphrase: AnswerScore | None = None
    wrong: tuple[AnswerScore, ...] = ()
    generation: str | None = None
    rouge: Mapping[str, float] | None = None

    def has(self, kind: str) -> bool:
        """Whether this row can serve a requirement."""
        if kind == "moments":
            return self.answer is not None and self.answer.variance is not None
        if kind == "text":
            return self.answer is not None
        return getattr(self, kind) not in (None, ())


@dataclass(frozen=True, kw_only=True)
class DetailedResult(MetricResult):
    """A result made of others.

    Attributes
    ----------
    parts : mapping of str to MetricResult
        Such as an attack's scores on the forget and on the holdout rows.
    """

    parts: Mapping[str, MetricResult] = field(default_factory=dict)


class Metric(Protocol):
    """A frozen dataclass of a metric's parameters."""

    @property
    def requires(self) -> frozenset[str]:
        """``"<group>.<kind>"`` for outputs (see `KINDS`), and ``"reference"``."""
        ...

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Compute the value; raises InputError where the context lacks something that is required."""
        ...


def score_of(row: Mapping[str, Any], where: str) -> float:
    """A row's ``score`` in a reference's result `where`.

    Raises
    ------
    InputError
        If it has none.
    """
    score = row.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise InputError(f"the reference's {where} has no number called 'score'")
    return float(score)


class EvaluationContext:
    """Outputs by group, an optional reference, and the results computed so far.

    Parameters
    ----------
    rows : mapping of str to sequence of ScoredRow
        Group (``forget``, ``retain``, ``ra``, ``wf``, ``holdout``) to its rows, in order.
    reference : mapping of str to MetricResult, optional
        Metric name to the reference model's result.
    """

    def __init__(
        self, rows: Mapping[str, Sequence[ScoredRow]], reference: Mapping[str, MetricResult] | None = None
    ) -> None:
        self.rows = rows
        self.reference = reference
        self._results: dict[Any, MetricResult] = {}

    def _rows_with(self, group: str, kinds: Sequence[str]) -> list[ScoredRow]:
        return [row for row in self.rows.get(group, ()) if all(row.has(kind) for kind in kinds)]

    def select(self, group: str, *kinds: str) -> list[ScoredRow]:
        """The rows of a group that have everything in `kinds`.

        Raises
        ------
        InputError
            If there is none.
        """
        found = self._rows_with(group, kinds)
        if not found:
            raise InputError(
                f"no row of group '{group}' has {' and '.join(kinds)}; there are rows of "
                f"{', '.join(sorted(self.rows)) or 'no group'}"
            )
        return found

    def missing(self, requires: frozenset[str]) -> list[str]:
        """What of `requires` this context cannot give, sorted."""
        kinds: dict[str, list[str]] = {}
        for requirement in requires - {REFERENCE}:
            group, _, kind = requirement.partition(".")
            kinds.setdefault(group, []).append(kind)
        lacking = [f"{g}.{kind}" for g, asked in kinds.items() if not self._rows_with(g, asked) for kind in asked]
        if REFERENCE in requires and self.reference is None:
            lacking.append(REFERENCE)
        return sorted(lacking)

    def result(self, metric: Metric) -> MetricResult:
        """The metric's result, computed once however many others build on it."""
        if metric not in self._results:
            self._results[metric] = metric.compute(self)
        return self._results[metric]

    def reference_result(self, *names: str) -> MetricResult:
        """The reference's result under the first of `names` that it has.

        Raises
        ------
        InputError
            If there is no reference, or it has none of them.
        """
        if self.reference is None:
            raise InputError(
                f"a reference is needed ({names[0]} of a model that never saw the forget rows), and none was given; "
                "give one with --reference"
            )
        for name in names:
            if name in self.reference:
                return self.reference[name]
        raise InputError(
            f"the reference has no metric '{names[0]}'; evaluate it on the same data with the same suite "
            f"(it has: {', '.join(sorted(self.reference)) or 'nothing'})"
        )
