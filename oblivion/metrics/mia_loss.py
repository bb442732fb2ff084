"""Membership by loss (Yeom et al., 2018): the mean negative log-likelihood per token, EOS counted."""

from __future__ import annotations

from dataclasses import dataclass

from oblivion.metrics.engine.context import AnswerScore
from oblivion.metrics.engine.membership import MembershipAttack


@dataclass(frozen=True)
class LossAttack(MembershipAttack):
    """The membership AUC of the loss."""

    def score(self, answer: AnswerScore) -> float | None:
        """Return the loss in nats per token."""
        return answer.loss
