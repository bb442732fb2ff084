"""Exact memorization (Tirumala et al., 2022): the share of answer tokens that greedy decoding gets right.

The answers are teacher-forced. As in open-unlearning the last token (EOS) does not count. An answer without any other
token is left out.
"""

from __future__ import annotations

from oblivion.metrics.engine.averages import MeanOverAnswers
from oblivion.metrics.engine.context import AnswerScore


def exact_memorization(answer: AnswerScore) -> float | None:
    """Return the share of the tokens before EOS that are the most likely ones; None if there is no token before EOS."""
    body = answer.before_end(answer.matches)
    return float(body.mean()) if len(body) else None


class ExactMemorization(MeanOverAnswers):
    """Mean share of answer tokens that the model predicts exactly."""

    measure = staticmethod(exact_memorization)
