"""Carrying a plan out: the rounds and visits of a removal, on a branch of its own."""

from __future__ import annotations

import json

from oblivion.aggregation import scheme_of
from oblivion.federation.absence import to_replay
from oblivion.federation.accounting import in_units
from oblivion.federation.measure import Trained
from oblivion.federation.opened import OpenRun
from oblivion.federation.phase_runner import PhaseRunner
from oblivion.federation.results import Results
from oblivion.ledger.rounds import Branch
from oblivion.objectives.terms import objective_from
from oblivion.removal.phases import run_phases
from oblivion.removal.plan import RemovalPlan, plan_values
from oblivion.run.directory import to_json
from oblivion.run.records import RequestRecord
from oblivion.training.outputs import check_needs
from oblivion.types import ForgetRequest


def carry_out(
    opened: OpenRun, name: str, plan: RemovalPlan, request: ForgetRequest, entry: RequestRecord
) -> RequestRecord:
    """Carry a plan out on a branch of its own as the trial `name`, measure it, and return the request's entry."""
    federation, run, results = opened.federation, opened.run, Results(opened)
    _check_objectives(opened, plan)
    opened.observer.event("phase", text=f"removal {plan.label} (guarantee: {plan.guarantee})")
    opened.register.move(request.id, "running")
    where, branch = f"forgets/{request.id}/{name}", f"{request.id}/{name}"
    content = json.loads(to_json(plan_values(plan)))
    if opened.has(branch) and run.read_json(f"{where}/plan.json", None) != content:
        federation.forget_branch(branch)  # interrupted, and then asked for with other parameters
    run.write_json(f"{where}/plan.json", content)
    _run_phases(opened, branch, request, plan)
    state, cost = federation.head(branch).state, results.cost(branch, own=True)
    units = in_units(cost, entry.models["oracle"].cost if "oracle" in entry.models else None, plan.fraction)
    results.save_adapter(f"{where}/adapters", state)
    trial = Trained(name=name, state=state, folder=f"{where}/adapters", cost=units, plan=plan, branch=branch)
    model = results.measured(trial, request, entry)
    run.write_json(f"{where}/metrics.json", model.to_json())
    federation.replay.check(branch)
    opened.register.move(request.id, "verified")
    entry = entry.with_model(name, model)
    results.enter(entry)  # last: from here on the trial is not run again
    return entry


def _check_objectives(opened: OpenRun, plan: RemovalPlan) -> None:
    """Refuse a plan with an objective that needs what the model cannot give, before anything is done."""
    residual = bool(scheme_of(opened.config).state_fields)
    for name, parameters in (one for phase in plan.phases for one in phase.objectives()):
        objective = objective_from(name, parameters)
        check_needs(name, objective, opened.resident.task, opened.resident.model, residual)


def _run_phases(opened: OpenRun, name: str, request: ForgetRequest, plan: RemovalPlan) -> None:
    federation, fork = opened.federation, plan.fork
    branch = Branch(
        name=name,
        seed=opened.config.seed,
        rounds=plan.last_round,
        # Not always the head: a branch that has none of the rounds up to there need not be kept for them.
        parent=federation.replay.owner(opened.head, fork).name if fork else None,
        fork=fork,
        absent=opened.absent(request),
    )
    federation.begin(branch, None if fork else opened.initial)
    run_phases(plan.phases, runner(opened, plan.from_round), name, request, plan.head)


def runner(opened: OpenRun, t_u: int) -> PhaseRunner:
    """Return what runs the phases of a removal, or of an oracle, of data that came in at round `t_u`."""
    replayed = to_replay(opened.ledger.records(opened.head), t_u)
    return PhaseRunner(opened.federation, opened.head, replayed, opened.data.public)
