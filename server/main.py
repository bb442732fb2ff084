"""A scenario from beginning to end, on whatever engine supplies the hosts."""

from __future__ import annotations

from typing import Any

from oblivion.config import RunConfig
from oblivion.report import write_report
from server.events import Observer
from server.planning import make_request, plan_values
from server.rounds import Hosts
from server.run_directory import RunDirectory
from server.workflow import Workflow


def run_scenario(config: RunConfig, hosts: Hosts, run: RunDirectory, observer: Observer) -> None:
    """Learn; answer the scenario's request, if it has one; write the report."""
    workflow = Workflow(config, hosts, run, observer)
    observer.event(
        "phase", text=f"learning: {len(workflow.federation.sizes)} clients, {config.federation.rounds} rounds"
    )
    workflow.learn()
    if config.forget.client:
        request = make_request(workflow.data, config.forget.client, config.forget.samples)
        workflow.answer(request, config.forget.methods)
    else:
        workflow.measure_learned()
    write_report([run.root], run.root / "report.html")
    observer.event("finished", report=str(run.root / "report.html"))


def run_plan(config: RunConfig, hosts: Hosts, run: RunDirectory, observer: Observer) -> dict[str, Any]:
    """The plan of the one removal that ``forget.methods`` names, as plain values."""
    workflow = Workflow(config, hosts, run, observer)
    workflow.restore()
    request = make_request(workflow.data, config.forget.client, config.forget.samples)
    return plan_values(workflow.plan(request, config.forget.methods[0]))


def run_forget(config: RunConfig, hosts: Hosts, run: RunDirectory, observer: Observer) -> dict[str, str]:
    """Answer one more request, or try another removal on one, in a finished run.

    Returns
    -------
    dict
        ``{"request": id, method: trial name}``.
    """
    workflow = Workflow(config, hosts, run, observer)
    workflow.restore()
    request = make_request(workflow.data, config.forget.client, config.forget.samples)
    trials = workflow.answer(request, config.forget.methods)
    write_report([run.root], run.root / "report.html")
    observer.event("finished", report=str(run.root / "report.html"))
    return {"request": request.id, **trials}
