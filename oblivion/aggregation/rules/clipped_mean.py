"""Mean of norm-clipped updates (Sun et al., 2019, "Can you really backdoor federated learning?", norm thresholding).

``x <- x + (1 / m) sum_k delta_k / max(1, |delta_k| / bound)`` over the m updates of the round, with the L2 norm over
all tensors together. Each client counts once, so that none moves the adapter further than ``bound / m``.

Deviations: the paper writes a sum; here it is divided by the number of updates, as a mean. The paper goes on to add
noise to it; this rule does not, and gives no privacy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oblivion.aggregation.gate import update_norm
from oblivion.aggregation.rule import WeightedRule
from oblivion.parameters import check_positive
from oblivion.types import ClientUpdate, RoundInfo


@dataclass(frozen=True, kw_only=True)
class ClippedMean(WeightedRule):
    """Average the updates after each was shortened to a bound.

    Attributes
    ----------
    bound : float, default 1.0
        The largest L2 norm that an update counts with (M in the paper), above 0; in the unit of the parameters.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        check_positive("bound", self.bound)

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """Return ``min(1, bound / |delta_k|) / m``."""
        norms = [update_norm(update.delta) for update in updates]
        return [1 / max(1.0, norm / self.bound) / len(updates) for norm in norms]
