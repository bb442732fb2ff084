"""Exact memorization (Tirumala et al., 2022): the share of answer tokens that greedy decoding gets right.

Teacher-forced. As in open-unlearning the last token (EOS) does not count. An answer without any other token is
left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from oblivion.metrics.averages import mean_of_answers
from oblivion.metrics.context import AnswerScore, EvaluationContext
from oblivion.types import MetricResult


def exact_memorization(answer: AnswerScore) -> float | None:
    """Share of the tokens before EOS that are the most likely ones; None if there is no token before EOS."""
    body = answer.matches[:-1]
    return float(body.mean()) if len(body) else None


@dataclass(frozen=True)
class ExactMemorization:
    """Mean share of answer tokens that the model predicts exactly.

    Parameters
    ----------
    group : str, default "forget"
        Whose rows.
    """

    group: str = "forget"

    @property
    def requires(self) -> frozenset[str]:
        """The scores of the answers."""
        return frozenset({f"{self.group}.answer"})

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Per row ``score``."""
        return mean_of_answers(context, self.group, exact_memorization)
