"""Measure one model: the server measures it on its rows, and every client on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.groups import evenly, shared_rows
from oblivion.errors import plural
from oblivion.federation.planning import oracle_seeds
from oblivion.federation.rounds import Federation
from oblivion.ledger.rounds import Absence, Branch
from oblivion.metrics.engine.layout import MANIFEST
from oblivion.metrics.engine.one_pass import NO_REFERENCE, Evaluation, evaluate_model, to_open_unlearning
from oblivion.metrics.engine.suite import Groups, RunRows, Suite
from oblivion.metrics.suites import suite_of
from oblivion.removal.plan import RemovalPlan
from oblivion.replies import heard, measured, unsaid
from oblivion.run.directory import RunDirectory
from oblivion.run.records import ChecklistEntry, CostRecord, Measure, ModelRecord
from oblivion.selection import assign
from oblivion.tasks.task import Learner
from oblivion.types import ClientTask, EvaluateRequest, ForgetRequest, GlobalState, MetricResult

_BESIDE = ("detectable", "left_out", "components")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model that is to be measured.

    Attributes
    ----------
    name, folder : str
        Its key in ``metrics.json``, and where its adapter lies in the run directory.
    state : GlobalState
        The model: adapter and residual.
    cost : CostRecord
        What it took, and the same in units of retraining; see `oblivion.federation.accounting.in_units`.
    plan : RemovalPlan or None
        For a trial, what was carried out.
    branch : str
        The branch whose rounds made it: clients measure with what they kept for themselves in these.
    """

    name: str
    state: GlobalState
    folder: str
    cost: CostRecord
    plan: RemovalPlan | None = None
    branch: str = ""


def measure_model(
    model: Trained,
    request: ForgetRequest | None,
    run: RunDirectory,
    data: FederatedData,
    resident: Learner,
    federation: Federation,
    exclusions: Sequence[Absence],
) -> ModelRecord:
    """Measure a model centrally and on every client; per-row results go to ``evaluations/``.

    Parameters
    ----------
    model : Trained
        What is measured.
    request : ForgetRequest, optional
        Whose rows are the rows to forget; None where nobody asks.
    run : RunDirectory
        Where per-row results go, and those of the oracle are.
    data : FederatedData
        The present clients' rows.
    resident : Learner
        The base model.
    federation : Federation
        The way to the clients.
    exclusions : sequence of Absence
        What was forgotten before.

    Returns
    -------
    ModelRecord
        The model's entry in ``metrics.json``.
    """
    federation.observer.event("phase", text=f"measuring {model.name}")
    where, config = f"evaluations/{request.id if request else 'learned'}", federation.config
    suite = suite_of(config.evaluate)
    rows = suite.rows(RunRows(data=data, request=request))
    groups = {name: evenly(some, config.evaluate.limit) for name, some in rows.items()}
    oracles = list(oracle_seeds(config))
    references = [] if model.name in oracles[:1] else _read_results(run, where, [n for n in oracles if n != model.name])
    evaluation = measure_centrally(model.state, resident, groups, config, references)
    if model.name in oracles[:1]:
        evaluation = _without_comparisons(evaluation, suite)
    run.write_json(f"{where}/{model.name}.json", to_open_unlearning(evaluation, {"model": model.name}))
    if evaluation.skipped:
        text = f"left out whole, because longer than the context: {plural(len(evaluation.skipped), 'evaluation row')}"
        federation.observer.event("warning", text=text, samples=evaluation.skipped)
    tasks = client_tasks(data, request, exclusions)
    checklist = model.plan.checklist if model.plan else ()
    return ModelRecord(
        label=model.plan.label if model.plan else model.name,
        guarantee=model.plan.guarantee if model.plan else None,
        adapter=model.folder,
        central=summary(evaluation),
        clients=measure_clients(model.state, federation, tasks, resident.max_length, model.branch),
        cost=model.cost,
        checklist=tuple(ChecklistEntry(**asdict(item)) for item in checklist),
    )


def _read_results(run: RunDirectory, where: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the results of those models that have been measured already."""
    written = (run.read_json(f"{where}/{name}.json", None) for name in names)
    # A model of which nothing could be measured, since no row fits into the context, is no reference.
    return [results for results in written if results and results.keys() - {MANIFEST}]


def _without_comparisons(evaluation: Evaluation, suite: Suite) -> Evaluation:
    """Take out the results that compare with the oracle, because they say nothing of the oracle itself."""
    nothing = MetricResult(value=None, reason=NO_REFERENCE)
    results = {name: nothing if name in suite.relative else result for name, result in evaluation.results.items()}
    return replace(evaluation, results=results)


def measure_centrally(
    state: GlobalState,
    resident: Learner,
    groups: Groups,
    config: RunConfig,
    references: Sequence[Mapping[str, Any]] = (),
) -> Evaluation:
    """Run the suite on the base model with residual and adapter merged into it, in one pass."""
    import torch

    torch.set_num_threads(config.train.threads)
    resident.write(state.adapter)
    with resident.over(state.residual), resident.merged() as model:
        return evaluate_model(
            model,
            resident.task,
            groups,
            max_new_tokens=config.evaluate.max_new_tokens,
            batch_size=config.evaluate.batch_size,
            references=references,
            suite=suite_of(config.evaluate),
        )


def client_tasks(data: FederatedData, request: ForgetRequest | None, exclusions: Sequence[Absence]) -> list[ClientTask]:
    """Return what each remaining client has to measure: its own rows, without those that were forgotten before.

    Rows of the request that others hold, too, are left out: they are measured separately.
    """
    gone = Branch(name="", seed=0, rounds=0, absent=tuple(exclusions))
    tasks = []
    for client, rows in sorted(data.clients.items()):
        excluded, forget = set(gone.excluded(client)), None
        if request and request.client_id == client:
            excluded |= {row.id for row in shared_rows(data, request)}
            forget = request.sample_ids
        if not excluded >= {row.id for row in rows}:
            key = data.keys.get(client, b"").hex()
            tasks.append(ClientTask(client_id=client, excluded=tuple(sorted(excluded)), forget=forget, id_key=key))
    return tasks


def measure_clients(
    state: GlobalState, federation: Federation, tasks: Sequence[ClientTask], max_length: int, branch: str = ""
) -> dict[str, dict[str, Measure]]:
    """Ask the clients to measure a model on their own rows; only numbers that can be true are kept.

    `max_length` is the number of tokens that a row can have, and `branch` the one whose rounds made the model.

    Returns
    -------
    dict
        Client (in two parts where only some of its rows are asked for) to metric to its value and number of rows.
    """
    by_client = {task.client_id: task for task in tasks}
    given = assign([(client,) for client in by_client], federation.sizes, federation.serves)
    config, bounds = federation.config.to_json(), suite_of(federation.config.evaluate).client_bounds()
    store, line = federation.private_store(branch) if branch else ("", ())
    requests = [
        EvaluateRequest(
            host=host,
            config=config,
            state=state,
            cohorts=tuple((by_client[client],) for (client,) in mine),
            store=store,
            line=line,
        )
        for host, mine in given.items()
    ]
    found: dict[str, dict[str, Measure]] = {}
    silent = set(given)
    for client in sorted(by_client.keys() - federation.serves.keys()):
        federation.observer.event("warning", text=f"{client} could not be measured: no host serves it", client=client)
    for reply in heard(federation.hosts.ask(requests), requests):
        silent.remove(reply.host)
        asked = {name: n for (c,) in given[reply.host] for name, n in _portions(by_client[c], federation).items()}
        taken, dropped = measured(reply.metrics, asked, max_length, bounds)
        for text in dropped:
            federation.observer.event("warning", text=f"host {reply.host}: {text}", host=reply.host)
        for name in unsaid(reply.metrics, asked, bounds):
            client = name.partition(" ")[0]
            if client not in reply.failures:
                text = f"host {reply.host}: it does not tell all that was to be measured of {name}"
                federation.observer.event("warning", text=text, host=reply.host, client=client)
        for client, metrics in taken.items():
            found[client] = {
                name: Measure(value=total / weight if weight else None, n=weight)
                for name, (total, weight) in metrics.items()
            }
        for client, reason in reply.failures.items():
            federation.observer.event("warning", text=f"{client} could not be measured: {reason}", client=client)
    for host in sorted(silent):
        for (client,) in given[host]:
            federation.observer.event("warning", text=f"{client} could not be measured: no reply", client=client)
    return dict(sorted(found.items()))


def _portions(task: ClientTask, federation: Federation) -> dict[str, int]:
    """Return the names under which a client may answer, each with the largest number of rows that it can have."""
    copies = federation.copies.get(task.client_id, {})
    left = federation.sizes[task.client_id] - sum(copies.get(sample, 1) for sample in task.excluded)
    if task.forget is None:
        return {task.client_id: left}
    asked = sum(copies.get(sample, 1) for sample in set(task.forget) - set(task.excluded))
    return {f"{task.client_id} (forgotten)": asked, f"{task.client_id} (kept)": left - asked}


def summary(evaluation: Evaluation) -> dict[str, Measure]:
    """Return the measures by metric, with the reason for a missing value and what stands beside the value."""
    return {
        name: Measure(
            value=result.value,
            interval=result.interval,
            n=result.n,
            **({"reason": result.reason} if result.reason else {}),
            **{key: result.extra[key] for key in _BESIDE if key in result.extra},
        )
        for name, result in evaluation.results.items()
    }
