"""Planning removals in a run that has learned: from its ledger, its census and its settings, without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

from oblivion.federation.absence import never_took_part, refusal
from oblivion.federation.accounting import rounded_otherwise
from oblivion.federation.client_store import ClientStore
from oblivion.federation.opened import OpenRun
from oblivion.federation.planning import check_oracle, make_context, make_plan
from oblivion.federation.spending import check_removals
from oblivion.federation.too_long import nothing_fits, unfit
from oblivion.ledger.rounds import line
from oblivion.privacy.budget_checks import spent
from oblivion.removal.context import PlanningContext
from oblivion.removal.plan import RemovalPlan
from oblivion.run_format import CLIENT_STORE
from oblivion.types import ForgetRequest


class Planner:
    """Plans removals for one request, from what the run knows now.

    Parameters
    ----------
    opened : OpenRun
        The run; its base model is loaded only where the run did not note which rows fit into the context.
    request : ForgetRequest
        What is asked for.
    """

    def __init__(self, opened: OpenRun, request: ForgetRequest) -> None:
        self.opened = opened
        self.request = request

    @cached_property
    def never(self) -> str:
        """Why nothing of the data is in the model; empty where something may be."""
        run = self.opened
        unfitting = nothing_fits(run.config, run.data, self.request, run.unfit_rows)
        return unfitting or never_took_part(run.ledger.records(run.head), self.request.client_id)

    @cached_property
    def context(self) -> PlanningContext:
        """What is known of the run and the request."""
        run = self.opened
        records, restorable = run.ledger.records(run.head), run.ledger.restorable(run.head)
        rounding = rounded_otherwise(run.repeats_bits, records)
        rows = unfit(run.config, run.data, self.request.client_id, run.unfit_rows)
        stored = run.ledger.stored(run.head)
        context = make_context(run.config, run.data, self.request, records, restorable, stored, rows, rounding)
        return dataclasses.replace(context, private=self._private())

    def _private(self) -> bool:
        """Whether clients kept something in the rounds of the head: what a trial makes does not change its own plan."""
        run = self.opened
        branches = {branch.name: branch for branch in run.ledger.branches()}
        there = {name for name, _, _ in line(branches, run.head, branches[run.head].rounds)}
        return any(kept.branch in there for kept in ClientStore(run.run.root / CLIENT_STORE).kept())

    def check_learned(self) -> None:
        """Raise `PlanRefusedError` where nothing of the data is in the model."""
        if self.never:
            raise refusal(self.opened.run.root, self.request, self.never)

    def plan(self, method: str) -> RemovalPlan:
        """Plan a removal without running anything.

        Raises
        ------
        PlanRefusedError
            If nothing of the data is in the model, or the removal cannot be done.
        """
        self.check_learned()
        return make_plan(self.opened.config, self.request, self.context, method)

    def check_oracle(self) -> None:
        """Refuse a request whose oracle could not be trained; see `oblivion.federation.planning.check_oracle`."""
        check_oracle(self.opened.config, self.request, self.context)

    def check_budget(self, plans: Sequence[RemovalPlan], oracles: Sequence[str] = ()) -> None:
        """Refuse removals that the privacy budget has no room for."""
        config = self.opened.config
        check_removals(spent(config, self.opened.ledger), config, self.context.samples, oracles, plans)
