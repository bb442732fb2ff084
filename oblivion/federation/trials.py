"""Trials: planning removals for a request, trying them, and measuring each beside the original and the oracle.

Everything can be interrupted and done again: what the ledger and the run directory hold already is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from oblivion.federation.absence import never_took_part, refusal
from oblivion.federation.accounting import in_units, rounded_otherwise
from oblivion.federation.carrying_out import carry_out, runner
from oblivion.federation.fitting import nothing_fits, unfit
from oblivion.federation.learning import Learning, learning_phases
from oblivion.federation.measure import Trained
from oblivion.federation.opened import OpenRun
from oblivion.federation.planning import make_context, make_plan, oracle_seeds, request_entry
from oblivion.federation.results import Results
from oblivion.federation.spending import check_removals
from oblivion.ledger.register import Asked
from oblivion.ledger.requests import issue
from oblivion.ledger.rounds import Branch
from oblivion.privacy.spending import spent
from oblivion.removal.context import PlanningContext, from_round
from oblivion.removal.phases import run_phases
from oblivion.removal.plan import RemovalPlan, in_short, plan_values
from oblivion.run.directory import to_json
from oblivion.run.records import RequestRecord
from oblivion.types import ForgetRequest


class Trials:
    """Plans and tries removals in a run that has learned.

    Parameters
    ----------
    opened : OpenRun
        The run.
    """

    def __init__(self, opened: OpenRun) -> None:
        self.opened = opened
        self.results = Results(opened)

    def receive(self, wanted: ForgetRequest) -> Asked:
        """The open request for exactly this, or a new one: signed already, or by the simulated client's key."""
        register = self.opened.register
        if wanted.signature:
            return register.receive(wanted)
        known = register.open_request(wanted.client_id, wanted.sample_ids)
        if known is not None:
            return known
        key = register.simulated_key(wanted.client_id)
        now = self.opened.ledger.book.now()
        return register.receive(issue(wanted.client_id, wanted.sample_ids, key, register.federation, now))

    def plan(self, request: ForgetRequest, method: str) -> RemovalPlan:
        """Plan a removal without running anything.

        Raises
        ------
        PlanRefusedError
            If nothing of the data is in the model, or the removal cannot be done.
        """
        if never := self._never(request):
            raise refusal(self.opened.run.root, request, never)
        return make_plan(self.opened.config, request, self._context(request), method)

    def check_budget(self, request: ForgetRequest, plans: Sequence[RemovalPlan], oracles: Sequence[str] = ()) -> None:
        """Refuse removals that the privacy budget has no room for."""
        config = self.opened.config
        left = self._context(request).samples
        check_removals(spent(config, self.opened.ledger), config, left, oracles, plans)

    def _context(self, request: ForgetRequest) -> PlanningContext:
        run = self.opened
        records, restorable = run.ledger.records(run.head), run.ledger.restorable(run.head)
        rounding = rounded_otherwise(run.resident.repeats_bits, records)
        rows = unfit(run.config, run.data, request.client_id)
        stored = run.ledger.stored(run.head)
        return make_context(run.config, run.data, request, records, restorable, stored, rows, rounding)

    def _never(self, request: ForgetRequest) -> str:
        """Why nothing of the data is in the model, in words; empty where something may be."""
        asked = never_took_part(self.opened.ledger.records(self.opened.head), request.client_id)
        return nothing_fits(self.opened.config, self.opened.data, request) or asked

    def answer(self, asked: Asked, methods: Sequence[str]) -> dict[str, str]:
        """Try removals on a request and measure each beside the original and the oracle.

        Returns
        -------
        dict
            Method to the name of its trial; a trial that exists already is not run again.
        """
        run = self.opened
        Learning(run).keep_original()
        request = asked.request
        entry = self._request_entry(request)
        if entry.never:
            self.results.enter(entry)
            raise refusal(run.run.root, request, entry.never)
        plans = {method: self.plan(request, method) for method in methods}
        names = {method: self._trial_name(entry, plan) for method, plan in plans.items()}
        new = [plan for method, plan in plans.items() if names[method] not in entry.models]
        self.check_budget(request, new, [name for name in oracle_seeds(run.config) if name not in entry.models])
        if entry.shared and not entry.models:
            text = f"of what {request.client_id} asks to be forgotten, others also hold {in_short(entry.shared)}: "
            run.observer.event("warning", text=text + "that stays learned from them, and is measured separately")
        if plans and asked.state == "received":
            run.register.move(request.id, "planned")
        entry = self._measure_oracles(request, entry)
        if "original" not in entry.models:
            entry = self.results.measure(self.results.original(), request, entry)
        for method, plan in plans.items():
            if names[method] not in entry.models:
                entry = carry_out(run, names[method], plan, request, entry)
        return names

    def _request_entry(self, request: ForgetRequest) -> RequestRecord:
        return self.results.record().request(request.id) or request_entry(
            self.opened.data, request, self._context(request), self._never(request)
        )

    def _trial_name(self, entry: RequestRecord, plan: RemovalPlan) -> str:
        """The trial of this very plan if there is one, else a new name."""
        content = json.loads(to_json(plan_values(plan)))
        number = 1
        while True:
            name = plan.method if number == 1 else f"{plan.method}-{number}"
            known = self.opened.run.read_json(f"forgets/{entry.id}/{name}/plan.json", None)
            if name not in entry.models or known == content:
                return name
            number += 1

    def _measure_oracles(self, request: ForgetRequest, entry: RequestRecord) -> RequestRecord:
        """Train the federation that never saw the data, once per seed; the first seed is the run's own."""
        run, federation = self.opened, self.opened.federation
        rounds = run.config.federation.rounds
        for index, (name, seed) in enumerate(oracle_seeds(run.config).items()):
            branch = f"{request.id}/{name}"
            if name not in entry.models:
                run.observer.event("phase", text=f"training the {name}: the federation without the data to forget")
                start = run.initial if index == 0 else run.resident.initial_adapter(seed)
                oracle = Branch(name=branch, seed=seed, rounds=rounds, absent=run.absent(request), history=False)
                federation.begin(oracle, start)
                t_u = from_round(request, self._context(request))
                phases = learning_phases(run.config, replay=index == 0)
                run_phases(phases, runner(run, t_u), branch, request, 0)
                state, cost = federation.head(branch).state, self.results.cost(branch)
                units = in_units(cost, cost)
                folder = f"adapters/{name}-{request.id}"
                self.results.save_adapter(folder, state)
                model = Trained(name=name, state=state, folder=folder, cost=units)
                entry = self.results.measure(model, request, entry)
            if run.has(branch):
                federation.forget_branch(branch)
        return entry
