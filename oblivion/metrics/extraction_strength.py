"""Extraction strength (Wang et al., 2025, after Carlini et al., 2021): how short a prefix gives the rest away.

``1 - k / T``, where k is the smallest number of answer tokens after which greedy decoding (teacher-forced) gets
all others right.

As in open-unlearning: the last token (EOS) does not count, and k is at most T - 1, so that the floor is ``1 / T``
and not 0 (short answers have a high floor). Deviation: an answer without a token before EOS is left out, where
open-unlearning counts it as 0.
"""

from __future__ import annotations

import numpy as np

from oblivion.metrics.engine.averages import MeanOverAnswers
from oblivion.metrics.engine.context import AnswerScore


def extraction_strength(answer: AnswerScore) -> float | None:
    """Return ``1 - k / T`` over the tokens before EOS; None if there is none."""
    body = answer.before_end(answer.matches)
    if not len(body):
        return None
    wrong = np.flatnonzero(~body)
    prefix = min(int(wrong[-1]) + 1, len(body) - 1) if len(wrong) else 0
    return 1 - prefix / len(body)


class ExtractionStrength(MeanOverAnswers):
    """Mean share of an answer that the model completes by itself."""

    measure = staticmethod(extraction_strength)
