"""Exclude: drop the forgotten data and go on training. Every method must beat this baseline at equal cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from oblivion.config import MOST_ROUNDS
from oblivion.errors import plural
from oblivion.parameters import check_count
from oblivion.removal.checklist import ADAPTER, CONTROL, RULE_STATE, UPDATES, Verdict, checklist
from oblivion.removal.context import PlanningContext
from oblivion.removal.phases import Rounds
from oblivion.removal.plan import RemovalPlan
from oblivion.types import ForgetRequest


@dataclass(frozen=True)
class Exclude:
    """Go on for some rounds without the forgotten data (guarantee none; the baseline).

    Parameters
    ----------
    recovery_rounds : int, default 2
        The number of further rounds.
    """

    recovery_rounds: int = 2
    requires: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_count("recovery_rounds", self.recovery_rounds, 0, MOST_ROUNDS)

    def plan(self, request: ForgetRequest, context: PlanningContext) -> RemovalPlan:
        """Plan `recovery_rounds` more rounds from the head, with the rule's state as it stands."""
        learned: Verdict = ("not covered", "computed from adapters that had learned the data")
        rule: Verdict = ("not covered", "goes on with sums over the forgotten updates")
        if context.aggregator.needs_client_state and request.whole_client:
            rule = ("cleaned", "the client's own is dropped, and the mean is over who is left")
        verdicts: dict[str, Verdict] = {
            ADAPTER: ("not covered", "what was learned from the data is only trained over"),
            RULE_STATE: rule,
            CONTROL: learned,
            UPDATES: learned,
        }
        return RemovalPlan(
            label=f"exclude + {plural(self.recovery_rounds, 'round')}",
            guarantee="none",
            phases=(Rounds(rounds=self.recovery_rounds),) if self.recovery_rounds else (),
            checklist=checklist(context, verdicts),
        )
