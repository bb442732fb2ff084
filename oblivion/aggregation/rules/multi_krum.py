"""Multi-Krum (Blanchard et al., 2017): the mean of the `selected` updates with the smallest Krum scores.

Scores are those of Krum, computed once over all updates of the round; the mean counts each selected client once, as
in the paper. With ``selected = 1`` it is Krum.

Deviations: that of Krum; and the paper lets m, here `selected`, go up to n. More than ``n - f`` would let a hostile
update in for certain, so that such a round is refused.

Flower's MultiKrum weights the selected clients by their number of examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from oblivion.aggregation.rule import WeightedRule
from oblivion.aggregation.rules.krum_scores import by_score, squared_distances
from oblivion.parameters import check_count
from oblivion.types import ClientUpdate, RoundInfo


@dataclass(frozen=True, kw_only=True)
class MultiKrum(WeightedRule):
    """Average the updates that lie closest to most others.

    Attributes
    ----------
    byzantine : int, default 1
        How many of a round's updates may be hostile (f in the paper), at least 0.
    selected : int or None, default None
        How many updates are averaged (m in the paper), at least 1; None for all but `byzantine` of them.
    """

    byzantine: int = 1
    selected: int | None = None

    def __post_init__(self) -> None:
        check_count("byzantine", self.byzantine, 0)
        if self.selected is not None:
            check_count("selected", self.selected, 1)

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """Return ``1 / m`` for the m updates with the smallest scores and 0 for the others."""
        m = len(updates) - self.byzantine if self.selected is None else self.selected
        best = by_score(squared_distances(updates), range(len(updates)), self.byzantine)[:m]
        return [1 / len(best) if i in best else 0.0 for i in range(len(updates))]

    def needed(self, hostile: int = 0) -> float:
        """Return ``2 f + 3`` as for Krum, or ``selected + f`` if that is more."""
        least = max(2 * self.byzantine + 3, (self.selected or 0) + self.byzantine)
        return least if hostile <= self.byzantine else math.inf
