"""Multi-Krum (Blanchard et al., 2017): the mean of the `selected` updates with the smallest Krum scores.

Scores are those of Krum, computed once over all updates of the round; the mean counts each selected client once, as
in the paper. With ``selected = 1`` it is Krum.

Deviations: those of Krum; and the paper lets m, here `selected`, go up to n. More than ``n - f`` would let a hostile
update in for certain, so that such a round is refused.

Flower's MultiKrum weights the selected clients by their number of examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oblivion.aggregation.checks import check_count
from oblivion.aggregation.rule import equal_mean
from oblivion.aggregation.rules.krum import by_score, squared_distances
from oblivion.aggregation.rules.robust import RobustRule
from oblivion.types import ClientUpdate, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MultiKrum(RobustRule):
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

    def combine(self, updates: Sequence[ClientUpdate]) -> Mapping[str, Tensor]:
        """Choose updates and average them."""
        return equal_mean([updates[i] for i in self._best(updates)])

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """``1 / m`` for the updates that are chosen of some in client-id order, 0 for the others."""
        self.check_enough(updates, info)
        best = self._best(updates)
        return [1 / len(best) if i in best else 0.0 for i in range(len(updates))]

    def _best(self, updates: Sequence[ClientUpdate]) -> list[int]:
        m = len(updates) - self.byzantine if self.selected is None else self.selected
        return by_score(squared_distances(updates), range(len(updates)), self.byzantine)[:m]

    def needed(self) -> int:
        """``2 f + 3`` as for Krum, and ``selected + f``."""
        return max(2 * self.byzantine + 3, (self.selected or 0) + self.byzantine)

    def min_clients(self, n: int, byzantine: int) -> int:
        """As `needed` says; more than `n` where more may be hostile than the rule's own f."""
        return self.needed() if byzantine <= self.byzantine else n + 1
