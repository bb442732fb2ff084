"""Bulyan of Krum (El Mhamdi et al., 2018, "The hidden vulnerability of distributed learning in Byzantium").

1. Of n updates ``theta = n - 2 f`` are selected, one after the other: each time the winner of Krum among those not
   yet selected, f being `byzantine`.
2. In each coordinate the step is the mean of the ``beta = theta - 2 f`` selected values that are nearest to the median
   of the selected ones.

No weights. It has a proof for ``n >= 4 f + 3``.

Deviations: of an even number of values the median is the mean of the middle two (the paper's, a value that minimises
the distance to the others, is then not unique); of values equally near to it the smaller is taken. The last choices
of step 1 are made among fewer than ``f + 3`` updates, where the paper's number of neighbours, ``n - f - 2``, falls to
nought or below: one neighbour is counted then. Clients send updates, not gradients.

Flower's Bulyan scores all updates once and takes the theta best, instead of choosing again among those that are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oblivion.aggregation.checks import check_count
from oblivion.aggregation.rules.krum import by_score, squared_distances
from oblivion.aggregation.rules.robust import RobustRule, middle, stack
from oblivion.types import ClientUpdate

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Bulyan(RobustRule):
    """Choose updates by Krum, then average what is near the median in each coordinate.

    Attributes
    ----------
    byzantine : int, default 1
        How many of a round's updates may be hostile (f in the paper), at least 0. With 0 it is the mean.
    """

    byzantine: int = 1

    def __post_init__(self) -> None:
        check_count("byzantine", self.byzantine, 0)

    def combine(self, updates: Sequence[ClientUpdate]) -> Mapping[str, Tensor]:
        """Select, then average near the median."""
        distances = squared_distances(updates)
        left = list(range(len(updates)))
        selected: list[int] = []
        while len(selected) < len(updates) - 2 * self.byzantine:
            best = by_score(distances, left, self.byzantine)[0]
            left.remove(best)
            selected.append(best)
        chosen = [updates[i] for i in sorted(selected)]
        beta = len(chosen) - 2 * self.byzantine
        return {name: near_median(stack(chosen, name), beta) for name in chosen[0].delta}

    def needed(self) -> int:
        """``4 f + 3``, the paper's condition."""
        return 4 * self.byzantine + 3

    def min_clients(self, n: int, byzantine: int) -> int:
        """``4 f + 3`` with the rule's own f; more than `n` where more may be hostile than that."""
        return self.needed() if byzantine <= self.byzantine else n + 1


def near_median(values: Tensor, beta: int) -> Tensor:
    """Mean, along the first axis, of the `beta` values nearest to the median of each coordinate."""
    values = values.sort(0).values
    nearest = (values - middle(values)).abs().sort(stable=True, dim=0).indices[:beta]
    return values.gather(0, nearest).mean(0)
