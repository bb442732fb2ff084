"""The frame of the membership attacks: a score per row, and how well it separates forget from holdout rows.

Convention of MUSE (Shi et al., 2024) as in open-unlearning: a high score means "not a member"; forget rows have
label 0 and holdout rows label 1, so that an AUC of 1 says that every forget row still looks like training data,
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
    """How many of `tokens` tokens are the lowest share `k`: rounded down, at least 1."""
    return max(1, int(tokens * k))


@dataclass(frozen=True)
class MembershipAttack(abc.ABC):
    """AUC of a score on forget rows (label 0) against holdout rows (label 1); subclasses say which score."""

    value_range: ClassVar[tuple[float, float]] = SHARE

    @abc.abstractmethod
    def score(self, answer: AnswerScore) -> float | None:
        """One answer's score, high for rows that look new; None if the answer cannot be scored."""

    def kinds(self) -> tuple[str, ...]:
        """What the score needs besides the token log-probabilities: of ``moments`` and ``text``."""
        return ()

    @property
    def requires(self) -> frozenset[str]:
        """The answers' scores on both groups."""
        return frozenset(f"{group}.{kind}" for group in GROUPS for kind in ("answer", *self.kinds()))

    def compute(self, context: EvaluationContext) -> MetricResult:
        """The AUC; `parts` hold the mean score and the score per row on both groups."""
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
