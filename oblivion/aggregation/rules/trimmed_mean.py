"""Coordinate-wise trimmed mean (Yin et al., 2018, Definition 2, Algorithm 1 option II).

In each coordinate the `trim` smallest and the `trim` largest of the clients' values are left out, and the rest is
averaged, one vote per client.

Deviations: the paper leaves out a share beta at each end; here it is a number of clients, ``trim = beta m``. A number
keeps its meaning when a round has fewer updates (up to `trim` hostile clients are borne), and a share is not always
what it seems: 0.29 * 100 is 28.999... in floating point. Clients send updates, not gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oblivion.aggregation.checks import check_count
from oblivion.aggregation.rules.robust import RobustRule, stack
from oblivion.types import ClientUpdate

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(RobustRule):
    """Average each coordinate without its smallest and largest values.

    Attributes
    ----------
    trim : int, default 1
        How many values go at each end, at least 0. With 0 it is the mean without weights.
    """

    trim: int = 1

    def __post_init__(self) -> None:
        check_count("trim", self.trim, 0)

    def combine(self, updates: Sequence[ClientUpdate]) -> Mapping[str, Tensor]:
        """Average what is left of each coordinate."""
        kept = slice(self.trim, len(updates) - self.trim)
        return {name: stack(updates, name).sort(0).values[kept].mean(0) for name in updates[0].delta}

    def needed(self) -> int:
        """Something must be left: ``2 trim + 1``."""
        return 2 * self.trim + 1

    def min_clients(self, n: int, byzantine: int) -> int:
        """``2 trim + 1``; more than `n` where more may be hostile than values are left out at an end."""
        return self.needed() if byzantine <= self.trim else n + 1
