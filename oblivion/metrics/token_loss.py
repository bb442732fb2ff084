"""Mean loss per token: the negative log-likelihood of the answers in nats, EOS counted.

Every token counts the same, so that long answers weigh more, as they do in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from oblivion.metrics.engine.context import EvaluationContext
from oblivion.types import MetricResult

LARGEST = 1e12
"""The largest loss in nats per token, far above that of a model that an unlearning objective has destroyed."""


@dataclass(frozen=True)
class TokenLoss:
    """Mean loss per answer token of a group, in nats.

    Parameters
    ----------
    group : str, default "forget"
        The group of rows.
    """

    group: str = "forget"
    value_range: ClassVar[tuple[float, float]] = (0.0, LARGEST)
    over: ClassVar[Literal["row", "token"]] = "token"

    @property
    def requires(self) -> frozenset[str]:
        """Ask for the scores of the answers."""
        return frozenset({f"{self.group}.answer"})

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Return the mean over tokens; n counts the rows."""
        rows = context.select(self.group, "answer")
        scores = [row.answer for row in rows if row.answer is not None]
        total = float(sum(-score.log_probs.sum() for score in scores))
        tokens = float(sum(len(score.log_probs) for score in scores))
        return MetricResult(value=total / tokens, n=len(scores), sums=(total, tokens))
