"""Local unlearning: the client itself unlearns from the global adapter, then the others recover.

The target client runs an unlearning objective (NPO, SimNPO, gradient ascent, ...) on its forget data, from the
global adapter; its update travels as a message like any other, but is applied on a path of its own: through no
momentum, no Adam and no robust rule, which would rescale it, keep it, or reject it. Then rounds without the forget
data repair what was hurt. The scheme is that of the client-side methods surveyed as "loss space" (Halimi et al.,
2022: local ascent followed by recovery rounds), with bounded language model objectives in place of the ascent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from oblivion.config import MOST_ROUNDS
from oblivion.errors import PlanRefusedError, plural
from oblivion.objectives.terms import objective_from
from oblivion.parameters import ParameterError, check_count, check_positive
from oblivion.removal.checklist import ADAPTER, CONTROL, RULE_STATE, UPDATES, Verdict, checklist
from oblivion.removal.combinations import Add
from oblivion.removal.context import PlanningContext
from oblivion.removal.phases import Phase, Rounds, Visit
from oblivion.removal.plan import RemovalPlan
from oblivion.types import ForgetRequest

_EPOCHS, _SCALE, _NORM, _RATE = 10_000, 1e6, 1e12, 1e3


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
        The factor of the update: ``next global = global + scale * update``.
    max_norm : float, default 100
        The largest L2 norm of the update, which is scaled down to it.
    local_epochs : int, default 5
        The number of passes over the forget data.
    learning_rate : float, default 1e-3
        The learning rate of these passes.
    recovery_rounds : int, default 2
        The number of rounds without the forget data afterwards.
    """

    objective: str = "npo"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    max_norm: float = 100.0
    local_epochs: int = 5
    learning_rate: float = 1e-3
    recovery_rounds: int = 2
    requires: ClassVar[frozenset[str]] = frozenset({"target_online"})

    def __post_init__(self) -> None:
        if self.objective == "lm":
            raise ParameterError("objective = 'lm' is the learning objective; choose one that unlearns")
        check_positive("scale", self.scale, _SCALE)
        check_positive("max_norm", self.max_norm, _NORM)
        check_positive("learning_rate", self.learning_rate, _RATE)
        check_count("local_epochs", self.local_epochs, 1, _EPOCHS)
        check_count("recovery_rounds", self.recovery_rounds, 0, MOST_ROUNDS)

    def plan(self, request: ForgetRequest, context: PlanningContext) -> RemovalPlan:
        """Plan one unlearning visit and the recovery rounds.

        Raises
        ------
        PlanRefusedError
            If the objective needs rows to keep and there are none: a client that leaves altogether keeps none of
            its own, so they can only be the server's public rows.
        """
        anchor, parameters = self._anchor(request, context)
        visit = Visit(
            clients=(request.client_id,),
            objective=self.objective,
            parameters=parameters,
            local_epochs=self.local_epochs,
            learning_rate=self.learning_rate,
            combine=Add(scale=self.scale, max_norm=self.max_norm),
            anchor=anchor,
        )
        recovery: tuple[Phase, ...] = (Rounds(rounds=self.recovery_rounds),) if self.recovery_rounds else ()
        verdicts: dict[str, Verdict] = {
            ADAPTER: ("cleaned", "moved by the client's own unlearning update; how far is measured, not proven"),
            RULE_STATE: ("cleaned", "begins anew after the unlearning update"),
            CONTROL: ("cleaned", "begin anew after the unlearning update"),
            UPDATES: ("not covered", "computed from adapters that had learned the data"),
        }
        return RemovalPlan(
            label=f"local {self.objective} + {plural(self.recovery_rounds, 'round')}",
            guarantee="approximate",
            phases=(visit, *recovery),
            checklist=checklist(context, verdicts),
        )

    def _anchor(
        self, request: ForgetRequest, context: PlanningContext
    ) -> tuple[Literal["public", "retained", "none"], dict[str, Any]]:
        objective = objective_from(self.objective, self.parameters)
        if not objective.accepts_retain:
            return "none", dict(self.parameters)
        if not request.whole_client:
            return "retained", dict(self.parameters)
        if "public_data" in context.available:
            kl = (
                {"retain_loss": "kl"}
                if hasattr(objective, "retain_loss") and "retain-loss" not in self.parameters
                else {}
            )
            return "public", {**kl, **self.parameters}
        if "retain" in objective.needs:
            raise PlanRefusedError(
                f"local with '{self.objective}' needs rows to keep, but {request.client_id} leaves altogether and the "
                "server has no public rows; set data.public, or choose one that needs none, such as npo or shred"
            )
        return "none", dict(self.parameters)
