"""The checklist: every place where a client leaves something, and what a removal does about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from oblivion.removal.context import PlanningContext

Status: TypeAlias = Literal["cleaned", "unaffected", "not covered"]
Verdict: TypeAlias = tuple[Status, str]

ADAPTER = "global adapter"
RESIDUAL = "residual beside the base model"
RULE_STATE = "server rule state"
UPDATES = "other clients' later updates"
CONTROL = "control variates of other clients"
MODEL = (ADAPTER, RULE_STATE, CONTROL, UPDATES)
"""The items that depend on the method; a method that names none of them leaves them uncovered."""

NOT_SAID: Verdict = ("not covered", "the method does nothing about it")


@dataclass(frozen=True)
class ChecklistItem:
    """One item of the checklist: what happens to a place where the client left something."""

    item: str
    status: Status
    why: str


def checklist(context: PlanningContext, overrides: Mapping[str, Verdict]) -> tuple[ChecklistItem, ...]:
    """Fill in the checklist.

    Parameters
    ----------
    context : PlanningContext
        Its rule and its scheme say what they keep.
    overrides : mapping of str to (status, why)
        The method's own verdicts, by item. A verdict on something that the rule or the scheme does not keep is left
        out. Without a verdict on the residual, that of the adapter counts where later updates are covered, too.
        An item that the list does not have is added at its end.

    Returns
    -------
    tuple of ChecklistItem
        The items in their order, the method's own ones last.
    """
    items: dict[str, Verdict] = {
        ADAPTER: overrides.get(ADAPTER, NOT_SAID),
        RESIDUAL: _of_residual(context, overrides),
        RULE_STATE: _of_rule(context, overrides),
        "aggregation weights, population count": ("cleaned", "over who is left"),
        "learning-rate schedule": ("unaffected", "depends on the round and on the branch's last, on no client"),
        "clients that the rule needs": ("unaffected", "every round still has enough, or the plan is refused"),
        "selection": ("unaffected", "each client's hash is its own; rounds that had selected it fill the place"),
        UPDATES: overrides.get(UPDATES, NOT_SAID),
        CONTROL: _of_control(context, overrides),
        "gate state": ("cleaned", "without the norms of the client's updates"),
        "adapter initialisation, ranks, base model": ("unaffected", "from seed and config, before any data"),
        "model selection": ("unaffected", "the last round is taken, nothing is chosen by results"),
        "stored contributions, states, adapters, keys": ("cleaned", "erased when the removal is committed"),
        "coming back": ("cleaned", "an exclusion list keeps it out of later rounds and of restored copies"),
    }
    items |= {item: verdict for item, verdict in overrides.items() if item not in (*MODEL, RESIDUAL)}
    return tuple(ChecklistItem(item, status, why) for item, (status, why) in items.items())


def _of_rule(context: PlanningContext, overrides: Mapping[str, Verdict]) -> Verdict:
    kept = ", ".join(context.aggregator.state_fields)
    if not kept:
        return "unaffected", "the rule keeps none"
    status, why = overrides.get(RULE_STATE, NOT_SAID)
    return status, f"{kept}: {why}"


def _of_control(context: PlanningContext, overrides: Mapping[str, Verdict]) -> Verdict:
    if not context.aggregator.needs_client_state:
        return "unaffected", "the rule keeps none"
    return overrides.get(CONTROL, NOT_SAID)


def _of_residual(context: PlanningContext, overrides: Mapping[str, Verdict]) -> Verdict:
    kept = ", ".join(context.scheme.state_fields)
    if not kept:
        return "unaffected", "the LoRA scheme keeps none"
    if RESIDUAL in overrides:
        status, why = overrides[RESIDUAL]
        return status, f"{kept}: {why}"
    if overrides.get(UPDATES, NOT_SAID)[0] == "not covered":  # the removal moves the adapter alone
        return "not covered", f"{kept}: stays"
    status, why = overrides.get(ADAPTER, NOT_SAID)
    return status, f"{kept}: {why}"
