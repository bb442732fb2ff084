"""The checks that removals with stored updates share: which requests and schemes they can answer."""

from __future__ import annotations

from collections.abc import Mapping

from oblivion.errors import PlanRefusedError
from oblivion.removal.checklist import ADAPTER, CONTROL, RULE_STATE, UPDATES, Verdict
from oblivion.removal.context import PlanningContext
from oblivion.types import ForgetRequest


def check_stored_updates(method: str, request: ForgetRequest, context: PlanningContext) -> None:
    """Refuse a request or a LoRA scheme for which a stored update says nothing.

    Raises
    ------
    PlanRefusedError
        If only some samples are to be forgotten, since an update is of all the client's rows; or if the scheme gives
        the global factors a new basis in every round, so that an earlier update of factors has no meaning later.
    """
    if not request.whole_client:
        raise PlanRefusedError(
            f"{method} works with the updates of a whole client, and {request.client_id} asks for some samples; "
            "choose rollback, exclude or local"
        )
    if context.scheme.of_products:
        raise PlanRefusedError(
            f"{method} adds up updates of the factors A and B, and the run's LoRA scheme makes new factors in every "
            "round; choose rollback, exclude or local"
        )


def moved_by_the_server(what: str) -> Mapping[str, Verdict]:
    """Return the verdicts on a removal that moves the adapter in one step of the server; `what` says by what."""
    anew: Verdict = ("cleaned", "begins anew after the step of the server")
    return {
        ADAPTER: ("cleaned", f"moved {what}; how far is measured, not proven"),
        RULE_STATE: anew,
        CONTROL: anew,
        UPDATES: ("not covered", "computed from adapters that had learned the data"),
    }
