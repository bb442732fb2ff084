"""Retrain: the same federation from the first round, without the forgotten data.

This is the definition of exact unlearning (Cao and Yang, 2015; Bourtoule et al., 2021), in a federation: the seed, the
initial adapter and the selection of every other client are the same, and weights are renormalised. Its cost is 1 by
definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from oblivion.removal.checklist import MODEL, Verdict, checklist
from oblivion.removal.context import PlanningContext
from oblivion.removal.phases import Restore
from oblivion.removal.plan import RemovalPlan
from oblivion.types import ForgetRequest


@dataclass(frozen=True)
class Retrain:
    """Train again from scratch without the forgotten data (exact; also the oracle)."""

    requires: ClassVar[frozenset[str]] = frozenset()

    def plan(self, request: ForgetRequest, context: PlanningContext) -> RemovalPlan:
        """Plan all rounds again."""
        again: Verdict = ("cleaned", "computed again without the forgotten data")
        return RemovalPlan(
            label="retrain",
            guarantee="exact",
            phases=(Restore(0), *context.learning),
            checklist=checklist(context, dict.fromkeys(MODEL, again)),
        )
