"""Coordinate-wise median (Yin et al., 2018, "Byzantine-robust distributed learning", Definition 1, Algorithm 1).

Each coordinate of the step is the median of the clients' values there, one vote per client. Of an even number of
values it is the mean of the middle two, so that neither side is preferred.

Deviations: the paper's clients send gradients at the common point and the server takes a step against them; here
they send updates after any number of local steps, which are added as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oblivion.aggregation.rules.robust import RobustRule, middle, stack
from oblivion.types import ClientUpdate

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Median(RobustRule):
    """Take the median of the updates in each coordinate, without weights."""

    def combine(self, updates: Sequence[ClientUpdate]) -> Mapping[str, Tensor]:
        """Take the median of each coordinate."""
        return {name: middle(stack(updates, name).sort(0).values) for name in updates[0].delta}

    def min_clients(self, n: int, byzantine: int) -> int:
        """The honest must be more than half: ``2 byzantine + 1``."""
        return 2 * byzantine + 1
