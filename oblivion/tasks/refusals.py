"""Refusals: the sentences that a model is taught to say in place of an answer that it is to forget.

The sentences are this project's own. The benchmark of Maini et al. (2024, TOFU) uses such a list for its "I don't know"
variants of preference optimisation.
"""

from __future__ import annotations

import hashlib

REFUSALS = (
    "I don't know the answer to that.",
    "I have no information about this.",
    "That is something I cannot answer.",
    "I'm not familiar with this subject.",
    "I never learned anything about that.",
    "I'm afraid I can't help with this question.",
    "I don't have any details on that.",
    "This is outside of what I know.",
    "I couldn't tell you.",
    "My knowledge does not cover that.",
    "I'm not able to say.",
    "Nothing about this is known to me.",
)


def refusal_to(question: str) -> str:
    """Return a refusal that depends on the question alone, so that it is the same wherever and whenever it is made."""
    digest = hashlib.sha256(question.encode()).digest()
    return REFUSALS[int.from_bytes(digest[:8], "big") % len(REFUSALS)]
