"""Coordinate-wise median (Yin et al., 2018, "Byzantine-robust distributed learning", Definition 1, Algorithm 1).

Each coordinate of the step is the median of the clients' values there, one vote per client. Of an even number of
values it is the mean of the middle two, so that neither side is preferred.

Deviations: the paper's clients send gradients at the common point and the server takes a step against them; here
they send updates after any number of local steps, which are added as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.rules.order_statistics import middle, stack
from oblivion.aggregation.sums import moved
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class Median(Rule):
    """Take the median of the updates in each coordinate, without weights."""

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Add the median of each coordinate."""
        medians = {name: middle(stack(updates, name).sort(0).values) for name in updates[0].delta}
        return moved(state, medians), rule_state

    def needed(self, hostile: int = 0) -> float:
        """Return ``2 f + 1``: the honest clients must be more than half."""
        return 2 * hostile + 1
