"""Run a scenario from beginning to end, on whatever engine supplies the hosts. It can be interrupted and repeated."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from oblivion.config import RunConfig
from oblivion.errors import OblivionError, PlanRefusedError, plural
from oblivion.federation.commits import commit_trial, finish_commits, unfinished
from oblivion.federation.hosts import Hosts
from oblivion.federation.learning import Learning
from oblivion.federation.opened import OpenRun
from oblivion.federation.planner import Planner
from oblivion.federation.planning import make_request
from oblivion.federation.trials import Trials
from oblivion.ledger.opening import open_ledger
from oblivion.removal.plan import plan_values
from oblivion.report import write_report
from oblivion.run.directory import RunDirectory
from oblivion.run.events import Observer
from oblivion.run.manifest import note_code
from oblivion.types import ForgetRequest
from server.prepare import check_objectives

BUSY_SECONDS = 24 * 3600.0
"""How long a request waits for a run or another removal that is under way, to be answered after it."""


def run_scenario(config: RunConfig, hosts: Hosts, run: RunDirectory, observer: Observer) -> None:
    """Learn; answer the scenario's request, if it has one; write the report. What is done already is not repeated."""
    with closing(OpenRun(config, hosts, run, observer)) as opened:
        note_code(run, config, observer)
        before = run.read_json("metrics.json", None) if (run.root / "report.html").is_file() else None
        committed = _finish(opened)
        learning = Learning(opened)
        if learning.rounds_left():
            clients, rounds = len(opened.federation.sizes), config.federation.rounds
            observer.event("phase", text=f"learning: {plural(clients, 'client')}, {plural(rounds, 'round')}")
        learning.learn()
        if not opened.register.removals():  # else the scenario's request has been answered
            try:
                _answer_scenario(opened)
            except PlanRefusedError:
                _report(run, observer)  # reports what was learned, and why nothing was done about the request
                raise
        already = not committed and before is not None and before == run.read_json("metrics.json", None)
        _report(run, observer, already)


def _finish(opened: OpenRun) -> dict[str, str]:
    """Finish commits; one that cannot be finished yet is reported, and keeps nothing else from being done."""
    done = finish_commits(opened)
    for trial, problem in done.items():
        if problem:
            opened.observer.event("warning", text=unfinished(opened, trial, problem))
    return done


def _answer_scenario(opened: OpenRun) -> None:
    forget = opened.config.forget
    if forget.client:
        request = make_request(opened.data, forget.client, forget.samples)
        trials = Trials(opened)
        trials.answer(trials.receive(request), list(forget.methods))
    else:
        Learning(opened).measure_learned()


def _report(run: RunDirectory, observer: Observer, already: bool = False) -> None:
    write_report([run.root], run.root / "report.html")
    observer.event("finished", report=str(run.root / "report.html"), already=already)


def run_plan(
    config: RunConfig, run: RunDirectory, observer: Observer, signed: ForgetRequest | None = None
) -> dict[str, Any]:
    """Plan the one removal that ``forget.methods`` names, as plain values; the request is not taken in."""
    with closing(OpenRun(config, None, run, observer, BUSY_SECONDS)) as opened:
        planner = _planner(opened, signed)
        plan = planner.plan(next(iter(config.forget.methods)))
        planner.check_budget([plan])
        return plan_values(plan)


def check_plans(config: RunConfig, run: RunDirectory, signed: ForgetRequest | None = None) -> None:
    """Refuse removals that cannot be planned: before an engine is started, and before the request is taken in.

    A request about data that was never learned passes, because it is taken in and then refused in ``metrics.json``.

    Raises
    ------
    PlanRefusedError
        Saying why the first of them cannot be planned.
    """
    with closing(OpenRun(config, None, run, Observer(), BUSY_SECONDS)) as opened:
        planner = _planner(opened, signed)
        for name in () if planner.never else config.forget.methods:
            planner.plan(name)


def _planner(opened: OpenRun, signed: ForgetRequest | None) -> Planner:
    """Return what plans removals for a request that its client signed, or for what the config asks."""
    Learning(opened).check_learned()
    forget = opened.config.forget
    return Planner(opened, signed or make_request(opened.data, forget.client, forget.samples))


def run_forget(
    config: RunConfig, hosts: Hosts, run: RunDirectory, observer: Observer, signed: ForgetRequest | None = None
) -> dict[str, str]:
    """Answer one more request, or try another removal on one, in a run that has learned.

    Parameters
    ----------
    config, hosts, run, observer
        See `OpenRun`.
    signed : ForgetRequest, optional
        A request that its client signed elsewhere; by default ``forget`` says what is asked, and the simulated
        client's key signs it.

    Returns
    -------
    dict
        ``{"request": id, method: trial name}``.
    """
    with closing(OpenRun(config, hosts, run, observer, BUSY_SECONDS)) as opened:
        note_code(run, config, observer)
        _finish(opened)
        Learning(opened).check_learned()
        check_objectives(config)
        trials = Trials(opened)
        asked = trials.receive(signed or make_request(opened.data, config.forget.client, config.forget.samples))
        names = trials.answer(asked, list(config.forget.methods))
        _report(run, observer)
        return {"request": asked.request.id, **names}


def run_commit(
    config: RunConfig, run: RunDirectory, observer: Observer, trial: str, accept_no_guarantee: bool = False
) -> dict[str, Any]:
    """Make a trial (``"<request>/<name>"``) the head of the run, erase what it invalidates, write the evidence.

    Returns
    -------
    dict
        ``evidence``: its path; ``guarantee``; ``erased``: how many records by kind.

    Raises
    ------
    OblivionError
        If it was committed, and what must go afterwards cannot be removed yet; given again, it is finished.
    """
    with closing(OpenRun(config, None, run, observer, BUSY_SECONDS)) as opened:
        problem = _finish(opened).get(trial)
        Learning(opened).check_learned()
        if problem is None:  # else an earlier commit was interrupted, and is finished now
            problem = commit_trial(opened, trial, accept_no_guarantee)
        if problem:
            raise OblivionError(unfinished(opened, trial, problem))
        (said,) = [r.content for r in opened.register.removals() if r.content["branch"] == trial]
        observer.event("finished", report=str(run.root / "report.html"))
        evidence = str(run.root / "forgets" / trial / "evidence.json")
        return {"evidence": evidence, "guarantee": said["guarantee"], "erased": dict(said["erased"])}


def run_refuse(config: RunConfig, run: RunDirectory, observer: Observer, request: str, ground: str) -> None:
    """Refuse an open request; the ground stays in the ledger."""
    ledger, register = open_ledger(run.root, config.ledger, BUSY_SECONDS)
    try:
        if ahead := ledger.book.ahead():
            observer.event("warning", text=ahead)
        register.move(request, "refused", ground)
    finally:
        ledger.close()
