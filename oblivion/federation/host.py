"""A host: answers training and evaluation messages for the clients whose data it can see. Free of Flower.

A host keeps only caches between messages (the base model, a client's encoded rows). Every message is complete, so any
host that sees a client's data gives the same answer, and a repeated message gives the same answer again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oblivion.aggregation import rule_of, scheme_of
from oblivion.config import RunConfig, TrainConfig, config_from_mapping
from oblivion.data.corpus import FederatedData
from oblivion.data.federation import resolve
from oblivion.data.keyed_ids import keyed_rows
from oblivion.errors import InputError
from oblivion.federation.resolving import with_dtype
from oblivion.learners import learner_of
from oblivion.models.factors import Factor, start_of
from oblivion.objectives.needs import Role, parse_needs
from oblivion.objectives.terms import objective_from
from oblivion.parts import run_fingerprint
from oblivion.privacy.noise import KEY_BYTES, derive_key
from oblivion.tasks.task import Learner, Row, Task
from oblivion.training.batches import Encoded, encode_rows
from oblivion.training.cohort import reason, train_cohort
from oblivion.training.local import LocalTask
from oblivion.types import (
    ClientTask,
    ClientUpdate,
    DescribeRequest,
    EvaluateRequest,
    HostReply,
    HostRequest,
    Sample,
    StartRequest,
    TrainRequest,
    VisitRequest,
)

NOISE_SECRET = "OBLIVION_NOISE_SECRET"
"""Environment variable of a host that names a file with a secret of its own, which no message holds."""
Metrics = dict[str, dict[str, tuple[float, float]]]


@dataclass(frozen=True)
class _Terms:
    """What rule and scheme ask of every client of a round."""

    proximal_mu: float
    factors: tuple[Factor, ...]


class Host:
    """Serves clients from data that a run config names."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, ...], Encoded] = {}

    def answer(self, request: HostRequest) -> HostReply:
        """Answer one message."""
        config = config_from_mapping(request.config, "message")
        match request:
            case DescribeRequest():
                return self._describe(request, config)
            case StartRequest():
                self._resident(with_dtype(config))
                return HostReply(host=request.host)
            case EvaluateRequest():
                return self._evaluate(request, config)
            case TrainRequest():
                return self._train(request, config)
        raise TypeError(f"a host answers no {type(request).__name__}")

    def _describe(self, request: DescribeRequest, config: RunConfig) -> HostReply:
        clients = {client: {"samples": len(rows)} for client, rows in resolve(config).clients.items()}
        return HostReply(host=request.host, clients=clients)

    def _train(self, request: TrainRequest, config: RunConfig) -> HostReply:
        data, resident = resolve(config), self._resident(config)
        objective = objective_from(request.objective, request.parameters)
        settings = visit_settings(request, config) if isinstance(request, VisitRequest) else config.train
        terms = _Terms(rule_of(config).proximal_mu, scheme_of(config).trained(request.info.round))
        learns = not isinstance(request, VisitRequest)
        private = config.privacy if config.privacy.unit == "sample" and learns else None
        fingerprint = run_fingerprint(config)
        updates: list[ClientUpdate] = []
        failures: dict[str, str] = {}
        with resident.over(request.state.residual):
            for cohort in request.cohorts:
                tasks = []
                for task in cohort:
                    try:
                        tasks.append(self._local_task(request, task, data, resident, config, terms))
                    except Exception as error:  # rows that cannot be read or tokenised cost their client alone
                        failures[task.client_id] = reason(error)
                done, failed = train_cohort(
                    resident, request.state.adapter, tasks, objective, settings, request.info, private
                )
                updates += [replace(update, fingerprint=fingerprint) for update in done]
                failures |= failed
        return HostReply(host=request.host, updates=tuple(updates), failures=failures)

    def _local_task(
        self,
        request: TrainRequest,
        task: ClientTask,
        data: FederatedData,
        resident: Learner,
        config: RunConfig,
        terms: _Terms,
    ) -> LocalTask:
        encoded = self._encoded(task, data, resident, config)
        own, excluded = encoded.rows, set(task.excluded)
        skipped = sum(1 for sample in encoded.skipped if sample not in excluded)
        kept = [row for sample, row in own if sample not in excluded]
        own_rank = task.client_id in config.federation.ranks
        start = start_of(request.state.adapter, config.federation.ranks, task.client_id) if own_rank else None
        if not isinstance(request, VisitRequest) or task.forget == ():
            return LocalTask(
                client_id=task.client_id,
                rows={"retain": kept},
                skipped=skipped,
                proximal_mu=terms.proximal_mu,
                correction=task.correction,
                start=start,
                factors=terms.factors,
                noise_key=_noise_key(task),
            )
        if task.forget is None:
            forget = [(sample, row) for sample, row in own if sample not in excluded]
            anchor = [row for _, row in encode_rows(resident.task, request.public).rows]
        else:
            asked = set(task.forget)
            forget = [(sample, row) for sample, row in own if sample in asked]
            same = {row for _, row in forget}  # rows under other ids; nobody unlearns and keeps one row at once
            anchor = [row for sample, row in own if sample not in asked and sample not in excluded and row not in same]
        objective = objective_from(request.objective, request.parameters)
        rows: dict[Role, Sequence[Row]] = {"forget": [row for _, row in forget]}
        if any(need.role == "alternate" for need in parse_needs(objective.needs)):
            rows = _with_alternates(forget, _own_rows(task, data), resident.task)
            skipped += len(forget) - len(rows["forget"])
        if anchor and objective.accepts_retain:
            rows["retain"] = anchor
        return LocalTask(client_id=task.client_id, rows=rows, skipped=skipped, start=start, factors=terms.factors)

    def _evaluate(self, request: EvaluateRequest, config: RunConfig) -> HostReply:
        from oblivion.metrics.engine.one_pass import evaluate_client
        from oblivion.metrics.suites import suite_of

        data, resident = resolve(config), self._resident(config)
        suite = suite_of(config.evaluate)
        sizes = {"max_new_tokens": config.evaluate.max_new_tokens, "batch_size": config.evaluate.batch_size}
        resident.write(request.state.adapter)
        metrics: Metrics = {}
        with resident.over(request.state.residual), resident.merged() as model:
            for task in (task for cohort in request.cohorts for task in cohort):
                for name, samples in _portions(task, data):
                    metrics[name] = evaluate_client(model, resident.task, samples, suite=suite, **sizes)
        return HostReply(host=request.host, metrics=metrics)

    def _resident(self, config: RunConfig) -> Learner:
        import torch

        torch.set_num_threads(config.train.threads)
        return learner_of(config)

    def _encoded(self, task: ClientTask, data: FederatedData, resident: Learner, config: RunConfig) -> Encoded:
        key = (
            task.client_id,
            task.id_key,
            data.digest,
            repr(config.data),
            str(config.federation.clients),
            repr(config.model),
            str(config.train.max_length),
            str(config.seed),
        )
        if key not in self._rows:
            self._rows[key] = encode_rows(resident.task, _own_rows(task, data))
        return self._rows[key]


def _noise_key(task: ClientTask) -> bytes:
    """The secret of a visit; a host that has one of its own mixes it in, so that the server cannot make the noise."""
    given, path = bytes.fromhex(task.noise_key), os.environ.get(NOISE_SECRET)
    if not given or not path:
        return given
    try:
        own = Path(path).read_bytes()
        return derive_key(own, task.noise_key)
    except (OSError, InputError):
        raise InputError(f"{NOISE_SECRET} = {path}: not a file of at least {KEY_BYTES} secret bytes") from None


def _own_rows(task: ClientTask, data: FederatedData) -> Sequence[Sample]:
    """A client's rows with the ids that the message goes by."""
    rows = data.clients[task.client_id]
    return keyed_rows(rows, bytes.fromhex(task.id_key)) if task.id_key else rows


def _with_alternates(
    forget: Sequence[tuple[str, Row]], samples: Sequence[Sample], modality: Task
) -> dict[Role, Sequence[Row]]:
    """The rows to forget, each with its alternate; a row whose alternate is too long is left out."""
    by_id = {sample.id: sample for sample in samples}
    pairs = [(row, modality.alternate(by_id[name])) for name, row in forget]
    whole = [(row, other) for row, other in pairs if other is not None]
    return {"forget": [row for row, _ in whole], "alternate": [other for _, other in whole]}


def _portions(task: ClientTask, data: FederatedData) -> list[tuple[str, list[Sample]]]:
    """A client's own rows, in two parts where only some of them are asked to be forgotten."""
    gone = set(task.excluded)
    rows = [row for row in _own_rows(task, data) if row.id not in gone]
    if task.forget is None:
        return [(task.client_id, rows)]
    asked = set(task.forget)
    portions = [
        (f"{task.client_id} (forgotten)", [row for row in rows if row.id in asked]),
        (f"{task.client_id} (kept)", [row for row in rows if row.id not in asked]),
    ]
    return [(name, own) for name, own in portions if own]


def visit_settings(request: VisitRequest, config: RunConfig) -> TrainConfig:
    """Return the training settings of a visit: those of the config, with the passes and the rate of the message."""
    return config.train.model_copy(
        update={"local_epochs": request.local_epochs, "learning_rate": request.learning_rate}
    )
