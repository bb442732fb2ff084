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

from oblivion.removal.plan import (
    LearnPhase,
    Phase,
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
class Rollback:
    """Restore the state from before the client took part, and train again from there (exact)."""

    requires: ClassVar[frozenset[str]] = frozenset({"checkpoints"})

    def plan(self, request: ForgetRequest, situation: Situation) -> RemovalPlan:
        """Plan every round from t_u on; nothing where the client has no part in any."""
        t_u = from_round(request, situation)
        phases: tuple[Phase, ...] = ()
        steps = 0
        if t_u:
            first = max(round for round in situation.restorable if round < t_u) + 1
            last = situation.rounds if t_u <= situation.rounds else situation.head
            phases = (LearnPhase(start="restore", first=first, last=last, replay=True),)
            steps = situation.rounds_cost(first, last)
        verdict: Verdict = (
            ("cleaned", "restored from before the data and computed again without it")
            if t_u
            else ("unaffected", "the client was never selected")
        )
        return RemovalPlan(
            method="rollback",
            label="rollback",
            guarantee="exact",
            from_round=t_u,
            phases=phases,
            touches=checklist(situation, adapter=verdict, rule_state=verdict, control=verdict, updates=verdict),
            client_steps=steps,
            fraction=cost_fraction(steps, situation),
            invalidates=invalidated(t_u, request, situation),
        )
