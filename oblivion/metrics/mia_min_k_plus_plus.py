"""Membership by the least likely tokens, standardised, Min-K%++ (Zhang et al., 2024).

This is Min-K% on ``(log p_t - mu_t) / sigma_t``, with mean and standard deviation of the log-probability over the
vocabulary. As in open-unlearning the variance is at least 1e-6, and k = 0.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oblivion.metrics.engine.context import AnswerScore
from oblivion.metrics.engine.membership import MembershipAttack, lowest_count

VARIANCE_FLOOR = 1e-6


@dataclass(frozen=True)
class MinKPlusPlusAttack(MembershipAttack):
    """The membership AUC of the least likely tokens relative to the whole vocabulary.

    Parameters
    ----------
    k : float, default 0.4
        Share of the tokens.
    """

    k: float = 0.4

    def kinds(self) -> tuple[str, ...]:
        """Ask for mean and variance over the vocabulary."""
        return ("moments",)

    def score(self, answer: AnswerScore) -> float | None:
        """Return minus the mean of the lowest standardised log-probabilities; None if there is no token before EOS."""
        body = answer.before_end(answer.log_probs)
        if not len(body):
            return None
        assert answer.mean is not None and answer.variance is not None
        mean, variance = answer.before_end(answer.mean), answer.before_end(answer.variance)
        standardised = (body - mean) / np.sqrt(np.maximum(variance, VARIANCE_FLOOR))
        return float(-np.sort(standardised)[: lowest_count(len(body), self.k)].mean())
