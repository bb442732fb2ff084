"""Coordinate-wise trimmed mean (Yin et al., 2018, Definition 2, Algorithm 1 option II).

In each coordinate the `trim` smallest and the `trim` largest of the clients' values are left out, and the rest is
averaged, one vote per client.

Deviations: the paper leaves out a share beta at each end; here it is a number of clients, ``trim = beta m``. A number
keeps its meaning when a round has fewer updates (up to `trim` hostile clients are borne), and a share is not always
what it seems: 0.29 * 100 is 28.999... in floating point. Clients send updates, not gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.rules.order_statistics import stack
from oblivion.aggregation.sums import moved
from oblivion.parameters import check_count
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Rule):
    """Average each coordinate without its smallest and largest values.

    Attributes
    ----------
    trim : int, default 1
        How many values go at each end, at least 0. With 0 it is the mean without weights.
    """

    trim: int = 1

    def __post_init__(self) -> None:
        check_count("trim", self.trim, 0)

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Add the mean of what is left of each coordinate."""
        kept = slice(self.trim, len(updates) - self.trim)
        means = {name: stack(updates, name).sort(0).values[kept].mean(0) for name in updates[0].delta}
        return moved(state, means), rule_state

    def needed(self, hostile: int = 0) -> float:
        """Return ``2 trim + 1``, so that a value is left; at most `trim` hostile clients are left out at each end."""
        return 2 * self.trim + 1 if hostile <= self.trim else math.inf
