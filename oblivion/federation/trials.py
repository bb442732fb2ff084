"""Trials: planning removals for a request, trying them, and measuring each beside the original and the oracle.

Everything can be interrupted and done again: what the ledger and the run directory hold already is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from oblivion.federation.absence import refusal
from oblivion.federation.accounting import in_units
from oblivion.federation.carrying_out import carry_out, runner
from oblivion.federation.learning import Learning
from oblivion.federation.measure import Trained
from oblivion.federation.opened import OpenRun
from oblivion.federation.planner import Planner
from oblivion.federation.planning import oracle_seeds, request_entry
from oblivion.federation.results import Results
from oblivion.learning import learning_phases
from oblivion.ledger.register import RequestStatus
from oblivion.ledger.requests import issue
from oblivion.ledger.rounds import Branch
from oblivion.removal.context import from_round
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

    def receive(self, wanted: ForgetRequest) -> RequestStatus:
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

    def answer(self, asked: RequestStatus, methods: Sequence[str]) -> dict[str, str]:
        """Try removals on a request and measure each beside the original and the oracle.

        Returns
        -------
        dict
            Method to the name of its trial; a trial that exists already is not run again.
        """
        run = self.opened
        Learning(run).keep_original()
        _ = run.resident  # what follows needs it: so the plans say what holds on this machine
        request = asked.request
        planner = Planner(run, request)
        entry = self._request_entry(planner)
        if entry.never:
            self.results.enter(entry)
            raise refusal(run.run.root, request, entry.never)
        plans = {method: planner.plan(method) for method in methods}
        names = {method: self._trial_name(entry, plan) for method, plan in plans.items()}
        new = [plan for method, plan in plans.items() if names[method] not in entry.models]
        oracles = [name for name in oracle_seeds(run.config) if name not in entry.models]
        planner.check_budget(new, oracles)
        if oracles:
            planner.check_oracle()
        if entry.shared and not entry.models:
            text = f"of what {request.client_id} asks to be forgotten, others also hold {in_short(entry.shared)}: "
            run.observer.event("warning", text=text + "that stays learned from them, and is measured separately")
        if plans and asked.state == "received":
            run.register.move(request.id, "planned")
        entry = self._measure_oracles(planner, entry)
        if "original" not in entry.models:
            entry = self.results.measure(self.results.original(), request, entry)
        for method, plan in plans.items():
            if names[method] not in entry.models:
                entry = carry_out(run, names[method], plan, request, entry)
        return names

    def _request_entry(self, planner: Planner) -> RequestRecord:
        known = self.results.record().request(planner.request.id)
        return known or request_entry(self.opened.data, planner.request, planner.context, planner.never)

    def _trial_name(self, entry: RequestRecord, plan: RemovalPlan) -> str:
        """The trial of this very plan if there is one, else a new name."""
        content = json.loads(to_json(plan_values(plan)))
        number = 1
        while True:
            name = plan.name if number == 1 else f"{plan.name}-{number}"
            known = self.opened.run.read_json(f"forgets/{entry.id}/{name}/plan.json", None)
            if name not in entry.models or known == content:
                return name
            number += 1

    def _measure_oracles(self, planner: Planner, entry: RequestRecord) -> RequestRecord:
        """Train the federation that never saw the data, once per seed; the first seed is the run's own."""
        run, federation, request = self.opened, self.opened.federation, planner.request
        rounds = run.config.federation.rounds
        for index, (name, seed) in enumerate(oracle_seeds(run.config).items()):
            branch = f"{request.id}/{name}"
            if name not in entry.models:
                run.observer.event("phase", text=f"training the {name}: the federation without the data to forget")
                start = run.initial if index == 0 else run.resident.initial_adapter(seed)
                oracle = Branch(name=branch, seed=seed, rounds=rounds, absent=run.absent(request), history=False)
                federation.begin(oracle, start)
                t_u = from_round(request, planner.context)
                phases = learning_phases(run.config, replay=index == 0)
                run_phases(phases, runner(run, t_u), branch, request, 0)
                state, cost = federation.head(branch).state, self.results.cost(branch)
                units = in_units(cost, cost)
                folder = f"adapters/{name}-{request.id}"
                self.results.save_adapter(folder, state)
                model = Trained(name=name, state=state, folder=folder, cost=units, branch=branch)
                entry = self.results.measure(model, request, entry)
            if run.has(branch):
                federation.forget_branch(branch)
        return entry
