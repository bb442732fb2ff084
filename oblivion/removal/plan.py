"""What a removal is: a plan made of phases, with the checklist of everything that a client leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from oblivion.errors import InputError, PlanRefusedError, nearest, plural
from oblivion.removal import removals
from oblivion.removal.checklist import ChecklistItem
from oblivion.removal.context import REQUIREMENTS, PlanningContext, from_round
from oblivion.removal.phases import Phase, starts
from oblivion.types import ForgetRequest, Guarantee

_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class RemovalPlan:
    """What a removal will do, what it promises, and what it costs.

    A removal says the first four; `plan_removal` adds what follows from them.

    Attributes
    ----------
    label : str
        What is done, in a few words.
    guarantee : str
        `oblivion.types.Guarantee`.
    phases : tuple of Phase
        What is done, in order.
    checklist : tuple of ChecklistItem
        What becomes of every place where the forgotten data left something, in the model that the removal makes and
        in what later rounds go on from.
    method : str
        The registered name of the removal.
    name : str
        The name of its settings: the trial's folder, and the row in tables.
    head : int
        The round at which the run stands.
    from_round : int
        t_u, the first round that the client has a part in; see `from_round`.
    invalidates : tuple of str
        What in the run directory holds the forgotten data, and goes when the trial is committed.
    client_steps : int
        The estimated optimizer steps. How many tokens they take is only known afterwards.
    fraction : float
        The same as a fraction of retraining.
    charges : tuple of mapping of str to int
        Who pays for its rounds from the privacy budget; empty without privacy.
    shared : tuple of str
        The ids of the rows to be forgotten of which a copy stays elsewhere, one for each row: no removal forgets them.
    """

    label: str
    guarantee: Guarantee
    phases: tuple[Phase, ...]
    checklist: tuple[ChecklistItem, ...]
    method: str = ""
    name: str = ""
    head: int = 0
    from_round: int = 0
    invalidates: tuple[str, ...] = ()
    client_steps: int = 0
    fraction: float = 0.0
    charges: tuple[Mapping[str, int], ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def placed(self) -> list[tuple[Phase, int]]:
        """Each phase with the round at which it begins, if those before it run all of their rounds."""
        return starts(self.phases, self.head)

    @property
    def fork(self) -> int:
        """The round from whose state the removal begins."""
        return self.phases[0].begins(self.head) if self.phases else self.head

    @property
    def last_round(self) -> int:
        """The last round that the removal can commit."""
        return max((at + phase.rounds for phase, at in self.placed), default=self.head)


class Removal(Protocol):
    """A federated forgetting procedure: a frozen dataclass of its settings that makes a plan."""

    @property
    def requires(self) -> frozenset[str]:
        """What it needs of the federation.

        The words are ``target_online`` (the client answers), ``updates`` and ``norms`` (a contribution of the client
        is stored), ``checkpoints`` (a state from before its first round can be restored) and ``public_data``.
        """
        ...

    def plan(self, request: ForgetRequest, context: PlanningContext) -> RemovalPlan:
        """Make the plan, or refuse with `PlanRefusedError`."""
        ...


def plan_removal(
    removal: Removal, method: str, request: ForgetRequest, context: PlanningContext, name: str = ""
) -> RemovalPlan:
    """Plan a removal if there is everything that it requires.

    Parameters
    ----------
    removal : Removal
        The removal, with its settings.
    method : str
        The name under which it is registered.
    request : ForgetRequest
        What is to be forgotten.
    context : PlanningContext
        What is known of the run.
    name : str, optional
        The name of its settings; by default that of the removal.

    Raises
    ------
    PlanRefusedError
        If something is missing, the federation cannot run one of the phases, or the removal itself refuses.
    InputError
        If the removal, which then comes from another package, requires what there is no word for, or makes something
        else than a plan.
    """
    name = name or method
    for word in sorted(set(removal.requires) - set(REQUIREMENTS)):
        raise InputError(f"removal '{method}' is not valid: it requires '{word}'; {nearest(word, REQUIREMENTS)}")
    missing = sorted(removal.requires - context.available)
    if missing:
        raise PlanRefusedError(
            f"{name} requires {', '.join(missing)}, which this federation does not have for {request.client_id}"
        )
    with removals.calling(method, "cannot make a plan"):
        made = removal.plan(request, context)
    if not isinstance(made, RemovalPlan) or not all(isinstance(phase, Phase) for phase in made.phases):
        raise InputError(
            f"removal '{method}' is not valid: its plan is no RemovalPlan of phases (oblivion.removal.plan)"
        )
    plan = replace(made, method=method, name=name, head=context.head)
    placed = plan.placed
    for (phase, at), before in zip(placed[1:], placed, strict=False):
        if at != before[1] + before[0].rounds:
            raise PlanRefusedError(f"{name}: its phase '{phase.kind}' goes back, which only the first phase can")
    for phase, at in placed:
        if reason := phase.refusal(request, context, at):
            raise PlanRefusedError(f"{name}: {reason}")
    steps = sum(phase.cost(context, at) for phase, at in placed)
    charges = tuple(charge for phase, at in placed for charge in phase.charge(context, at))
    first = from_round(request, context)
    items = (*plan.checklist, *_shared_item(request, context), _budget_item(charges, context))
    if context.private:
        items += (_private_item(plan),)
    if context.rounding and plan.guarantee == "exact":
        items += (ChecklistItem("rounding", "unaffected", f"exact up to rounding: {context.rounding}"),)
    return replace(
        plan,
        label=plan.label if name == method else f"{name}: {plan.label}",
        from_round=first,
        invalidates=_invalidated(first, request, context),
        client_steps=steps,
        fraction=steps / max(1, context.rounds_cost(1, context.rounds)),
        charges=charges,
        checklist=items,
        shared=context.shared,
    )


def plan_values(plan: RemovalPlan) -> dict[str, Any]:
    """Return a plan as plain JSON values; every phase names its kind, and ``shared`` is left out if it is empty."""
    phases = []
    for phase, at in plan.placed:
        numbers = {"first": at + 1, "last": at + phase.rounds} if phase.rounds else {}
        phases.append({"kind": phase.kind, **numbers, **phase.values()})
    return {
        "method": plan.method,
        "name": plan.name,
        "label": plan.label,
        "guarantee": plan.guarantee,
        "from_round": plan.from_round,
        "phases": phases,
        "checklist": [{"item": one.item, "status": one.status, "why": one.why} for one in plan.checklist],
        "client_steps": plan.client_steps,
        "fraction": plan.fraction,
        "invalidates": list(plan.invalidates),
        **({"shared": list(plan.shared)} if plan.shared else {}),
    }


def _shared_item(request: ForgetRequest, context: PlanningContext) -> tuple[ChecklistItem, ...]:
    """Say what becomes of rows to be forgotten that others hold, too; no line if there are none."""
    if not context.shared:
        return ()
    why = f"also learned from rows that stay, so no removal of {request.client_id} forgets them; measured separately"
    return (ChecklistItem("rows that others hold, too", "unaffected", f"{in_short(context.shared)}, {why}"),)


def _private_item(plan: RemovalPlan) -> ChecklistItem:
    """Say what becomes of what clients kept for themselves; there is no line if they kept nothing."""
    item, own = "what clients keep for themselves", "what the client made with the data goes"
    if plan.guarantee == "exact":
        return ChecklistItem(item, "cleaned", f"{own}, and what others made in rounds that are replaced")
    return ChecklistItem(item, "not covered", f"{own}; what others made last stays, with models that had the data")


def in_short(ids: Sequence[str]) -> str:
    """Say how many rows there are, with the first of their ids, such as ``1 row (id 17)``."""
    named = list(dict.fromkeys(ids))
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    what = "id" if len(named) == 1 else "ids"
    return f"{plural(len(ids), 'row')} ({what} {', '.join(named[:_NAMED])}{more})"


def _budget_item(charges: Sequence[Mapping[str, int]], context: PlanningContext) -> ChecklistItem:
    """Say what the plan spends by itself; not what was spent before, so that the same plan is the same again."""
    if context.budget is None:
        return ChecklistItem("privacy budget", "unaffected", "privacy.unit is none: there is no budget")
    if not charges:
        return ChecklistItem("privacy budget", "unaffected", "no client is asked again")
    epsilon = context.budget.trail(charges)[-1]
    return ChecklistItem(
        "privacy budget",
        "unaffected",
        f"what was spent on the data stays spent; the clients that stay spend {plural(len(charges), 'more round')}, "
        f"which cost epsilon {epsilon:.3g} by themselves, at delta {context.budget.privacy.delta:g}",
    )


def _invalidated(first: int, request: ForgetRequest, context: PlanningContext) -> tuple[str, ...]:
    """Say what holds the data from t_u on; nothing where the client has no part in any round."""
    if not first:
        return ()
    return (
        "the adapters of the present model, and of every removal and oracle that had the data",
        f"the states and contributions of rounds {first} to {context.head} in the ledger",
        "the client's keys, and its other requests"
        if request.whole_client
        else f"the client's keys of rounds {first} to {context.head} (the client and its other requests stay)",
    )
