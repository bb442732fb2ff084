"""Exclude: drop the forgotten data and go on training. The baseline that every method must beat at equal cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from oblivion.errors import plural
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
class Exclude:
    """Go on for some rounds without the forgotten data (guarantee none; the baseline).

    Parameters
    ----------
    recovery_rounds : int, default 2
        Rounds to go on for.
    """

    recovery_rounds: int = 2
    requires: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.recovery_rounds < 0:
            raise ValueError(f"recovery_rounds = {self.recovery_rounds}; it must be at least 0")

    def plan(self, request: ForgetRequest, situation: Situation) -> RemovalPlan:
        """Plan `recovery_rounds` more rounds from the head, the rule's state as it stands."""
        first, last = situation.head + 1, situation.head + self.recovery_rounds
        steps = situation.rounds_cost(first, last)
        return RemovalPlan(
            method="exclude",
            label=f"exclude + {plural(self.recovery_rounds, 'round')}",
            guarantee="none",
            from_round=from_round(request, situation),
            phases=(LearnPhase(start="continue", first=first, last=last),),
            touches=checklist(
                situation,
                adapter=("not covered", "what was learned from the data is only trained over"),
                rule_state=_rule_state(request, situation),
                control=("not covered", "computed from adapters that had learned the data"),
                updates=("not covered", "computed from adapters that had learned the data"),
            ),
            client_steps=steps,
            fraction=cost_fraction(steps, situation),
            invalidates=invalidated(from_round(request, situation), request, situation),
        )


def _rule_state(request: ForgetRequest, situation: Situation) -> Verdict:
    if situation.aggregator.needs_client_state and request.whole_client:
        return "cleaned", "the client's own is dropped, and the mean is over who is left"
    return "not covered", "goes on with sums over the forgotten updates"
