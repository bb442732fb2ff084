"""Local unlearning: the client itself unlearns from the global adapter, then the others recover.

The target client runs an unlearning objective (NPO, SimNPO, gradient ascent, ...) on its forget data, from the
global adapter; its update travels as a message like any other, but is applied on a path of its own: through no
momentum, no Adam and no robust rule, which would rescale it, keep it, or reject it. Then rounds without the forget
data repair what was hurt. The scheme is that of the client-side methods surveyed as "loss space" (Halimi et al.,
2022: local ascent followed by recovery rounds), with bounded language model objectives in place of the ascent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from oblivion.aggregation.gate import update_norm
from oblivion.errors import ConfigError, PlanRefusedError, plural
from oblivion.ledger.rounds import RoundState
from oblivion.objectives.terms import objective_from
from oblivion.removal.plan import (
    LearnPhase,
    Phase,
    RemovalPlan,
    Situation,
    UnlearnPhase,
    checklist,
    cost_fraction,
    from_round,
    invalidated,
)
from oblivion.types import ClientUpdate, ForgetRequest


@dataclass(frozen=True)
class Local:
    """The client unlearns its own data from the global adapter, then the others recover (approximate).

    Parameters
    ----------
    objective : str, default "npo"
        A registered unlearning objective.
    parameters : mapping
        Its parameters.
    scale : float, default 1
        ``next global = global + scale * update``.
    max_norm : float, default 100
        The update's L2 norm is scaled down to this.
    local_epochs : int, default 5
        Passes over the forget data.
    learning_rate : float, default 1e-3
        Of these passes.
    recovery_rounds : int, default 2
        Rounds without the forget data afterwards.
    """

    objective: str = "npo"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    max_norm: float = 100.0
    local_epochs: int = 5
    learning_rate: float = 1e-3
    recovery_rounds: int = 2
    requires: ClassVar[frozenset[str]] = frozenset({"target_online"})

    def plan(self, request: ForgetRequest, situation: Situation) -> RemovalPlan:
        """Plan one unlearning visit and the recovery rounds.

        Raises
        ------
        PlanRefusedError
            If the objective needs rows to keep and there are none: a client that leaves altogether keeps none of
            its own, so they can only be the server's public rows.
        """
        anchor, parameters = self._anchor(request, situation)
        round = situation.head + 1
        phases: tuple[Phase, ...] = (
            UnlearnPhase(
                round=round,
                objective=self.objective,
                parameters=parameters,
                scale=self.scale,
                max_norm=self.max_norm,
                local_epochs=self.local_epochs,
                learning_rate=self.learning_rate,
                anchor=anchor,
            ),
        )
        if self.recovery_rounds:
            last = round + self.recovery_rounds
            phases += (LearnPhase(start="continue", first=round + 1, last=last),)
        steps = situation.unlearn_steps + situation.rounds_cost(round + 1, round + self.recovery_rounds)
        return RemovalPlan(
            method="local",
            label=f"local {self.objective} + {plural(self.recovery_rounds, 'round')}",
            guarantee="approximate",
            from_round=from_round(request, situation),
            phases=phases,
            touches=checklist(
                situation,
                adapter=("cleaned", "moved by the client's own unlearning update; how far is measured, not proven"),
                rule_state=("cleaned", "begins anew after the unlearning update"),
                control=("cleaned", "begin anew after the unlearning update"),
                updates=("not covered", "computed from adapters that had learned the data"),
            ),
            client_steps=steps,
            fraction=cost_fraction(steps, situation),
            invalidates=invalidated(from_round(request, situation), request, situation),
        )

    def _anchor(
        self, request: ForgetRequest, situation: Situation
    ) -> tuple[Literal["public", "retained", "none"], dict[str, Any]]:
        if self.objective == "lm":
            raise ConfigError("forget.objective = 'lm' is the learning objective; choose one that unlearns")
        objective = objective_from(self.objective, self.parameters)
        if not objective.accepts_retain:
            return "none", dict(self.parameters)
        if not request.whole_client:
            return "retained", dict(self.parameters)
        if "public_data" in situation.available:
            return "public", {"retain_loss": "kl", **self.parameters}
        if "retain" in objective.needs:
            raise PlanRefusedError(
                f"local with '{self.objective}' needs rows to keep, but {request.client_id} leaves altogether and the "
                "server has no public rows; set data.public, or choose grad_ascent, npo or simnpo"
            )
        return "none", dict(self.parameters)


def apply_unlearning(head: RoundState, update: ClientUpdate, phase: UnlearnPhase) -> RoundState:
    """``global + scale * update``, the update first scaled down to `max_norm`; no rule state is touched."""
    import torch

    norm = update_norm(update.delta)
    factor = phase.scale * min(1.0, phase.max_norm / norm) if norm > 0 else 0.0
    moved = {
        name: (head.state.adapter[name].to(torch.float64) + factor * delta.to(torch.float64)).to(torch.float32)
        for name, delta in update.delta.items()
    }
    adapter = {name: moved.get(name, tensor) for name, tensor in head.state.adapter.items()}
    return replace(head, round=phase.round, state=replace(head.state, adapter=adapter))
