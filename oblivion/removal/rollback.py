"""Rollback and replay: take up the state from before the client took part, and train again from there without it.

The state before t_u, the first round that selected the client, holds nothing of it: adapters begin at the seed's, and
the selection of the others does not depend on it. Every later round is trained again, since all of its updates were
computed at a model that had seen the data; contributions that are kept serve only to reach the state before t_u from
the last checkpoint. What comes out is bit for bit what training from the beginning without the data gives.

With client-steps ``s_t`` of round t without the data and the last restorable round ``r < t_u``, the cost as a fraction
of retraining is ``sum(s_t, t = r+1..T) / sum(s_t, t = 1..T)``. The idea is older than federations (checkpoint and
retrain); Bourtoule et al., 2021 ("Machine unlearning") use it over shards of one training set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from oblivion.removal.checklist import MODEL, Verdict, checklist
from oblivion.removal.context import PlanningContext, from_round
from oblivion.removal.phases import Phase, Restore, Rounds
from oblivion.removal.plan import RemovalPlan
from oblivion.types import ForgetRequest


@dataclass(frozen=True)
class Rollback:
    """Restore the state from before the client took part, and train again from there (exact)."""

    requires: ClassVar[frozenset[str]] = frozenset({"checkpoints"})

    def plan(self, request: ForgetRequest, context: PlanningContext) -> RemovalPlan:
        """Plan every round from t_u on; nothing where the client has no part in any."""
        t_u = from_round(request, context)
        phases: tuple[Phase, ...] = ()
        verdict: Verdict = ("unaffected", "the client was never selected")
        if t_u:
            fork = max(round for round in context.restorable if round < t_u)
            last = context.rounds if t_u <= context.rounds else context.head
            phases = (Restore(fork), Rounds(rounds=last - fork, replay=True))
            verdict = ("cleaned", "restored from before the data and computed again without it")
        verdicts = dict.fromkeys(MODEL, verdict)
        return RemovalPlan(label="rollback", guarantee="exact", phases=phases, checklist=checklist(context, verdicts))
