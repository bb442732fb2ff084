"""The input of the metrics: the model's outputs on every row, which are made once and which all metrics share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from oblivion.errors import InputError
from oblivion.types import MetricResult

REFERENCE = "reference"
"""The word by which `Metric.requires` asks for the results of a model that never saw the forget rows."""

REFINEMENTS = ("moments", "text")
"""Kinds of outputs that add something to the score of a row's answer."""

KINDS = ("answer", "generation", "generations", "paraphrase", "wrong", *REFINEMENTS)
"""All kinds of outputs that `Metric.requires` can ask for."""

SHARE = (0.0, 1.0)
"""The range of probabilities, recalls and ratios."""

ANY = (-math.inf, math.inf)
"""The range of scores without bounds."""


@dataclass(frozen=True)
class AnswerScore:
    """The score of one answer under teacher forcing.

    Attributes
    ----------
    log_probs : array (T,) float64
        Log-probability of every label in nats.
    matches : array (T,) bool
        Whether the label is the most likely one.
    mean, variance : array (T,) float64 or None
        Mean and variance of the log-probability over the vocabulary, under the model's own distribution.
    text : str
        The labelled tokens decoded without special tokens; empty where no metric asks for it.
    ended : bool
        Whether the last label only ends the answer, as EOS does.
    """

    log_probs: NDArray[np.float64]
    matches: NDArray[np.bool_]
    mean: NDArray[np.float64] | None = None
    variance: NDArray[np.float64] | None = None
    text: str = ""
    ended: bool = True

    def before_end(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return what `values`, one per label, hold for the labels before the end of the answer."""
        return values[:-1] if self.ended else values

    @property
    def loss(self) -> float:
        """Return the mean negative log-likelihood per token, EOS counted."""
        return float(-self.log_probs.mean())

    @property
    def probability(self) -> float:
        """Return the geometric mean of the token probabilities, EOS counted: ``exp(-loss)``."""
        return float(np.exp(-self.loss))


@dataclass(frozen=True, kw_only=True)
class ScoredRow:
    """The model's outputs on one sample.

    Attributes
    ----------
    index : int
        The sample's position in its group.
    target : str
        Its true answer as plain text.
    outputs : mapping of str to Any
        Kind of output to what the model gave: ``answer`` and ``paraphrase`` (`AnswerScore`), ``wrong`` (a tuple of
        them), ``generation`` (the text that it wrote after the prompt), ``generations`` (a tuple of texts, one after
        each prompt in ``Sample.extras["prompts"]``), and ``rouge`` (how the generation agrees with `target`). A kind
        that was not asked for, or that the sample cannot have, is missing.
    """

    index: int
    target: str = ""
    outputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> AnswerScore | None:
        """Return the score of the true answer."""
        return self.outputs.get("answer")

    @property
    def paraphrase(self) -> AnswerScore | None:
        """Return the score of the true answer in other words."""
        return self.outputs.get("paraphrase")

    @property
    def wrong(self) -> tuple[AnswerScore, ...]:
        """Return the scores of the wrong answers."""
        scores: tuple[AnswerScore, ...] = self.outputs.get("wrong", ())
        return scores

    def has(self, kind: str) -> bool:
        """Return whether this row has an output of a kind."""
        if kind == "moments":
            return self.answer is not None and self.answer.variance is not None
        if kind == "text":
            return self.answer is not None
        return self.outputs.get(kind) not in (None, ())


@dataclass(frozen=True, kw_only=True)
class DetailedResult(MetricResult):
    """A result that is made of other results.

    Attributes
    ----------
    parts : mapping of str to MetricResult
        Such as an attack's scores on the forget and on the holdout rows.
    """

    parts: Mapping[str, MetricResult] = field(default_factory=dict)


class Metric(Protocol):
    """A frozen dataclass of a metric's parameters.

    A metric may have `value_range`, what its value can be (by default any number), and `row_ranges`, the same for the
    numbers of a row by their names; the results of a reference are checked against them.
    """

    @property
    def requires(self) -> frozenset[str]:
        """Return ``"<group>.<kind>"`` for outputs (see `ScoredRow` and `REFINEMENTS`), and ``"reference"``."""
        ...

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Compute the value; raises InputError where the context lacks something that is required."""
        ...


class MergeableMetric(Metric, Protocol):
    """A metric whose results have `MetricResult.sums`, so that those of several clients can be merged.

    Its value is not negative and at most the upper end of `value_range`; `over` is what its weight counts.
    """

    @property
    def value_range(self) -> tuple[float, float]:
        """Return the least and the largest value."""
        ...

    @property
    def over(self) -> Literal["row", "token"]:
        """Return what the weight counts."""
        ...


def score_of(row: Mapping[str, Any], where: str) -> float:
    """Return a row's ``score`` in a reference's result; `where` names the row in messages.

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
    """The outputs by group, the references, and the results that were computed so far.

    Parameters
    ----------
    rows : mapping of str to sequence of ScoredRow
        Name of a group to its rows, in order.
    references : sequence of mapping, optional
        For each model that never saw the forget rows, its results by name; a metric that compares with one model takes
        the first.
    """

    def __init__(
        self, rows: Mapping[str, Sequence[ScoredRow]], references: Sequence[Mapping[str, MetricResult]] = ()
    ) -> None:
        self.rows = rows
        self.references = tuple(references)
        self._results: dict[Any, MetricResult] = {}

    def _rows_with(self, group: str, kinds: Sequence[str]) -> list[ScoredRow]:
        return [row for row in self.rows.get(group, ()) if all(row.has(kind) for kind in kinds)]

    def select(self, group: str, *kinds: str) -> list[ScoredRow]:
        """Return the rows of a group that have outputs of all `kinds`.

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
        """Return the requirements that this context cannot meet, sorted."""
        kinds: dict[str, list[str]] = {}
        for requirement in requires - {REFERENCE}:
            group, _, kind = requirement.partition(".")
            kinds.setdefault(group, []).append(kind)
        lacking = [f"{g}.{kind}" for g, asked in kinds.items() if not self._rows_with(g, asked) for kind in asked]
        if REFERENCE in requires and not self.references:
            lacking.append(REFERENCE)
        return sorted(lacking)

    def result(self, metric: Metric) -> MetricResult:
        """Return the metric's result; it is computed once, however many other metrics build on it."""
        if metric not in self._results:
            self._results[metric] = metric.compute(self)
        return self._results[metric]

    def reference_result(self, *names: str) -> MetricResult:
        """Return the first reference's result under the first of `names` that it has.

        Raises
        ------
        InputError
            If there is no reference, or it has none of them.
        """
        if not self.references:
            raise InputError(
                f"a reference is needed ({names[0]} of a model that never saw the forget rows), and none was given; "
                "give one with --reference"
            )
        for name in names:
            if name in self.references[0]:
                return self.references[0][name]
        raise InputError(
            f"the reference has no metric '{names[0]}'; evaluate it on the same data with the same suite "
            f"(it has: {', '.join(sorted(self.references[0])) or 'nothing'})"
        )
