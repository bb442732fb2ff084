"""Membership by the least likely tokens, Min-K% (Shi et al., 2023, eq. 1): ``-mean`` of their log-probabilities.

The score takes the lowest ``int(k T)`` tokens, at least one, of the T before EOS. Deviation: k = 0.4 as in MUSE and
open-unlearning, where the paper finds 0.2 best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oblivion.metrics.engine.context import AnswerScore
from oblivion.metrics.engine.membership import MembershipAttack, lowest_count


@dataclass(frozen=True)
class MinKAttack(MembershipAttack):
    """The membership AUC of the least likely tokens.

    Parameters
    ----------
    k : float, default 0.4
        Share of the tokens.
    """

    k: float = 0.4

    def score(self, answer: AnswerScore) -> float | None:
        """Return the mean loss of the least likely tokens; None if there is no token before EOS."""
        body = answer.before_end(answer.log_probs)
        if not len(body):
            return None
        return float(-np.sort(body)[: lowest_count(len(body), self.k)].mean())
