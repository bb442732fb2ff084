"""Bulyan of Krum (El Mhamdi et al., 2018, "The hidden vulnerability of distributed learning in Byzantium").

1. Of n updates ``theta = n - 2 f`` are selected, one after the other: each time the winner of Krum among those not
   yet selected, f being `byzantine`.
2. In each coordinate the step is the mean of the ``beta = theta - 2 f`` selected values that are nearest to the median
   of the selected ones.

Clients have no weights. The rule has a proof for ``n >= 4 f + 3``.

Deviations: of an even number of values the median is the mean of the middle two (the paper's, a value that minimises
the distance to the others, is then not unique); of values equally near to it the smaller is taken. The last choices
of step 1 are made among fewer than ``f + 3`` updates, where the paper's number of neighbours, ``n - f - 2``, falls to
nought or below: one neighbour is counted then. Clients send updates, not gradients.

Flower's Bulyan scores all updates once and takes the theta best, instead of choosing again among those that are left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.rules.krum_scores import by_score, squared_distances
from oblivion.aggregation.rules.order_statistics import near_median, stack
from oblivion.aggregation.sums import moved
from oblivion.parameters import check_count
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class Bulyan(Rule):
    """Choose updates by Krum, then average what is near the median in each coordinate.

    Attributes
    ----------
    byzantine : int, default 1
        How many of a round's updates may be hostile (f in the paper), at least 0. With 0 it is the mean.
    """

    byzantine: int = 1

    def __post_init__(self) -> None:
        check_count("byzantine", self.byzantine, 0)

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Select updates, and add the mean of what is near their median in each coordinate."""
        distances = squared_distances(updates)
        left = list(range(len(updates)))
        selected: list[int] = []
        while len(selected) < len(updates) - 2 * self.byzantine:
            best = by_score(distances, left, self.byzantine)[0]
            left.remove(best)
            selected.append(best)
        chosen = [updates[i] for i in sorted(selected)]
        beta = len(chosen) - 2 * self.byzantine
        means = {name: near_median(stack(chosen, name), beta) for name in chosen[0].delta}
        return moved(state, means), rule_state

    def needed(self, hostile: int = 0) -> float:
        """Return ``4 f + 3``, the paper's condition."""
        return 4 * self.byzantine + 3 if hostile <= self.byzantine else math.inf
