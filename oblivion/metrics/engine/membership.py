"""The base of the membership attacks, which measure how well a score per row separates forget from holdout rows.

The convention is that of MUSE (Shi et al., 2024) as in open-unlearning: a high score means "not a member"; forget rows
have label 0 and holdout rows label 1, so that an AUC of 1 says that every forget row still looks like training data,
and 0.5 that nothing can be told.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

from oblivion.metrics.engine.auc import auc, auc_interval
from oblivion.metrics.engine.averages import mean_of_answers
from oblivion.metrics.engine.context import ANY, SHARE, AnswerScore, DetailedResult, EvaluationContext
from oblivion.types import MetricResult

GROUPS = ("forget", "holdout")


def lowest_count(tokens: int, k: float) -> int:
    """Return how many of `tokens` tokens the lowest share `k` holds, rounded down, at least 1."""
    return max(1, int(tokens * k))


@dataclass(frozen=True)
class MembershipAttack(abc.ABC):
    """The AUC of a score on forget rows (label 0) against holdout rows (label 1); subclasses define the score."""

    value_range: ClassVar[tuple[float, float]] = SHARE

    @abc.abstractmethod
    def score(self, answer: AnswerScore) -> float | None:
        """Return one answer's score, which is high for rows that look new; None if the answer cannot be scored."""

    def kinds(self) -> tuple[str, ...]:
        """Return what the score needs besides the token log-probabilities: ``moments``, ``text``, or nothing."""
        return ()

    @property
    def requires(self) -> frozenset[str]:
        """Ask for the scores of the answers of both groups."""
        return frozenset(f"{group}.{kind}" for group in GROUPS for kind in ("answer", *self.kinds()))

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Return the AUC; `parts` hold the mean score, and the score per row, of both groups."""
        parts = {group: mean_of_answers(context, group, self.score, *self.kinds(), bounds=ANY) for group in GROUPS}
        members, others = ([row["score"] for row in parts[g].per_example.values()] for g in GROUPS)
        if not members or not others:
            reason = next(part.reason for part in parts.values() if part.reason)
            return DetailedResult(value=None, parts=parts, reason=reason)
        area = auc(members, others)
        return DetailedResult(
            value=area,
            n=len(members) + len(others),
            interval=auc_interval(area, len(members), len(others)),
            parts=parts,
            extra={"auc": area},
        )
