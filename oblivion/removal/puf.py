"""PUF: negate the client's update, so that the global adapter takes a step back (arXiv 2504.05822).

``w' = w - scale * d_u``, with ``d_u`` the last contribution of the client u that the ledger has.

Deviations. In the paper the client trains once more from ``w``, and its negated update is averaged with the updates of
the other clients; here its last stored update takes that place, so the client need not be there and nothing is
trained, and it counts in full. The step passes no momentum, no moment and no robust rule, which would rescale it, keep
it, or reject it. The recovery rounds are the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from oblivion.aggregation.round import RoundState
from oblivion.config import MOST_ROUNDS
from oblivion.errors import plural
from oblivion.parameters import check_count, check_positive
from oblivion.removal.checklist import checklist
from oblivion.removal.combinations import moved
from oblivion.removal.context import PlanningContext
from oblivion.removal.ledger_reader import LedgerReader
from oblivion.removal.phases import Phase, Rounds, ServerStep
from oblivion.removal.plan import RemovalPlan
from oblivion.removal.stored_updates import check_stored_updates, moved_by_the_server
from oblivion.types import ForgetRequest


@dataclass(frozen=True)
class Puf:
    """Take the client's last stored update back, then recover (approximate; the client need not be there).

    Parameters
    ----------
    scale : float, default 0.5
        The factor of the negated update.
    recovery_rounds : int, default 0
        The number of rounds without the client afterwards.
    """

    scale: float = 0.5
    recovery_rounds: int = 0
    requires: ClassVar[frozenset[str]] = frozenset({"updates"})

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)
        check_count("recovery_rounds", self.recovery_rounds, 0, MOST_ROUNDS)

    def plan(self, request: ForgetRequest, context: PlanningContext) -> RemovalPlan:
        """Plan the step back and the recovery rounds."""
        check_stored_updates("puf", request, context)
        last = context.stored_rounds(request.client_id)[-1]
        step = ServerStep(
            name="negate the last update",
            function=partial(negate, client=request.client_id, round=last, scale=self.scale),
            settings={"round": last, "scale": self.scale},
        )
        recovery: tuple[Phase, ...] = (Rounds(rounds=self.recovery_rounds),) if self.recovery_rounds else ()
        return RemovalPlan(
            label=f"puf + {plural(self.recovery_rounds, 'round')}",
            guarantee="approximate",
            phases=(step, *recovery),
            checklist=checklist(context, moved_by_the_server("against the client's last update")),
        )


def negate(before: RoundState, history: LedgerReader, client: str, round: int, scale: float) -> RoundState:
    """Return the state moved by ``-scale`` times a client's contribution to a round."""
    import torch

    update = history.contribution(client, round)
    return moved(before, {name: -scale * delta.to(torch.float64) for name, delta in update.delta.items()})
