"""Krum (Blanchard et al., 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent", section 4).

The score of a client is the sum of the squared distances from its update to the ``n - f - 2`` updates nearest to it,
f being `byzantine`. The update with the smallest score is the step; of equal scores the first client id wins, as in
the paper. The rule has a proof for ``2 f + 2 < n``. Examples are not counted: the step is one client's update.

Deviation: clients send updates after any number of local steps, not gradients at a common point.
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
class Krum(WeightedRule):
    """Take the one update that lies closest to most others.

    Attributes
    ----------
    byzantine : int, default 1
        How many of a round's updates may be hostile (f in the paper), at least 0.
    """

    byzantine: int = 1

    def __post_init__(self) -> None:
        check_count("byzantine", self.byzantine, 0)

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """Return 1 for the update with the smallest score and 0 for the others."""
        best = by_score(squared_distances(updates), range(len(updates)), self.byzantine)[0]
        return [float(i == best) for i in range(len(updates))]

    def needed(self, hostile: int = 0) -> float:
        """Return ``2 f + 3``, the paper's condition."""
        return 2 * self.byzantine + 3 if hostile <= self.byzantine else math.inf
