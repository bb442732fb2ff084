"""Retrain: the same federation from the first round, without the forgotten data.

The definition of exact unlearning (Cao and Yang, 2015; Bourtoule et al., 2021), in the federation: same seed, same
initial adapter, same selection of every other client, weights renormalised. Its cost is 1 by definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from oblivion.removal.plan import (
    LearnPhase,
    RemovalPlan,
    Situation,
    Verdict,
    checklist,
    cost_fraction,
    from_round,
    invalidated,
)
from oblivion.types import ForgetRequest


@dataclass(frozen=True)
class Retrain:
    """Train again from scratch without the forgotten data (exact; also the oracle)."""

    requires: ClassVar[frozenset[str]] = frozenset()

    def plan(self, request: ForgetRequest, situation: Situation) -> RemovalPlan:
        """Plan all rounds again."""
        steps = situation.rounds_cost(1, situation.rounds)
        again: Verdict = ("cleaned", "computed again without the forgotten data")
        return RemovalPlan(
            method="retrain",
            label="retrain",
            guarantee="exact",
            from_round=from_round(request, situation),
            phases=(LearnPhase(start="restore", first=1, last=situation.rounds, replay=True),),
            touches=checklist(situation, adapter=again, rule_state=again, control=again, updates=again),
            client_steps=steps,
            fraction=cost_fraction(steps, situation),
            invalidates=invalidated(from_round(request, situation), request, situation),
        )
