"""Membership by loss against compressibility (Carlini et al., 2021, Extracting training data from LLMs).

The score is the mean loss per token, EOS counted, over the length in bytes of the zlib-compressed answer. The paper
scores whole texts; as in open-unlearning the prompt counts in neither of the two numbers.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from oblivion.metrics.engine.context import AnswerScore
from oblivion.metrics.engine.membership import MembershipAttack


@dataclass(frozen=True)
class ZlibAttack(MembershipAttack):
    """The membership AUC of the loss divided by the compressed length."""

    def kinds(self) -> tuple[str, ...]:
        """Ask for the answer's text, decoded from its tokens."""
        return ("text",)

    def score(self, answer: AnswerScore) -> float | None:
        """Return the loss per compressed byte; None if there is no text."""
        if not answer.text:
            return None
        return answer.loss / len(zlib.compress(answer.text.encode("utf-8")))
