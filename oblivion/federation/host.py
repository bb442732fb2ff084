"""A host: answers training and evaluation messages for the clients whose data it can see. Free of Flower.

A host keeps only caches between messages (the base model, a client's encoded rows). Every message is complete, so any
host that sees a client's data gives the same answer, and a repeated message gives the same answer again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from oblivion.aggregation import rule_of, scheme_of
from oblivion.config import RunConfig, TrainConfig, config_from_mapping
from oblivion.data.corpus import FederatedData
from oblivion.data.federation import resolve
from oblivion.errors import InputError
from oblivion.federation.client_rows import own_rows, portions_to_measure, rows_to_train
from oblivion.federation.client_store import ClientStore, personal
from oblivion.federation.resolving import with_dtype
from oblivion.learners import learner_of
from oblivion.models.factors import Factor, start_of
from oblivion.objectives.terms import FinishesVisit, objective_from
from oblivion.parts import run_fingerprint
from oblivion.privacy.noise import KEY_BYTES, derive_key
from oblivion.tasks.task import Learner
from oblivion.training.batches import Encoded, encode_rows
from oblivion.training.cohort import reason, train_cohort
from oblivion.training.local import LocalTask
from oblivion.types import (
    Adapter,
    ClientTask,
    ClientUpdate,
    DescribeRequest,
    EvaluateRequest,
    HostReply,
    HostRequest,
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
                        local = self._local_task(request, task, data, resident, config, terms)
                        tasks.append(_with_private(request, local))
                    except Exception as error:  # rows that cannot be read or tokenised cost their client alone
                        failures[task.client_id] = reason(error)
                done, failed = train_cohort(
                    resident, request.state.adapter, tasks, objective, settings, request.info, private
                )
                failures |= failed
                starts = {task.client_id: task.start or request.state.adapter for task in tasks}
                for update in done:
                    try:
                        ended = _finished(request, update, starts[update.client_id])
                        updates.append(replace(ended, fingerprint=fingerprint))
                    except Exception as error:  # what an objective makes of a visit costs its client alone
                        failures[update.client_id] = reason(error)
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
        objective = objective_from(request.objective, request.parameters)
        chosen = rows_to_train(request, task, encoded, data, resident.task, objective)
        own_rank = task.client_id in config.federation.ranks
        start = start_of(request.state.adapter, config.federation.ranks, task.client_id) if own_rank else None
        if chosen.learning:
            return LocalTask(
                client_id=task.client_id,
                rows=chosen.rows,
                skipped=chosen.skipped,
                proximal_mu=terms.proximal_mu,
                correction=task.correction,
                start=start,
                factors=terms.factors,
                noise_key=_noise_key(task),
            )
        return LocalTask(
            client_id=task.client_id, rows=chosen.rows, skipped=chosen.skipped, start=start, factors=terms.factors
        )

    def _evaluate(self, request: EvaluateRequest, config: RunConfig) -> HostReply:
        from oblivion.metrics.engine.one_pass import evaluate_client
        from oblivion.metrics.suites import suite_of

        data, resident = resolve(config), self._resident(config)
        suite = suite_of(config.evaluate)
        sizes = {"max_new_tokens": config.evaluate.max_new_tokens, "batch_size": config.evaluate.batch_size}
        shared, own = request.state.adapter, [task for cohort in request.cohorts for task in cohort]
        alike: list[ClientTask] = []
        passes = [(shared, alike)]
        failures: dict[str, str] = {}
        for task in own:
            try:
                adapter = personal(shared, _private(request, task.client_id))
            except Exception as error:  # what a client kept and cannot be read costs it alone
                failures[task.client_id] = reason(error)
                continue
            if adapter is shared:
                alike.append(task)
            else:
                passes.append((adapter, [task]))
        metrics: Metrics = {}
        with resident.over(request.state.residual):
            for adapter, tasks in (one for one in passes if one[1]):
                resident.write(adapter)
                with resident.merged() as model:
                    for name, samples in (part for task in tasks for part in portions_to_measure(task, data)):
                        metrics[name] = evaluate_client(model, resident.task, samples, suite=suite, **sizes)
        return HostReply(host=request.host, metrics=metrics, failures=failures)

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
            self._rows[key] = encode_rows(resident.task, own_rows(task, data))
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


def _private(request: TrainRequest | EvaluateRequest, client: str) -> Adapter:
    """What a client kept in the rounds that led here; nothing where the message names no store."""
    if not isinstance(request, VisitRequest | EvaluateRequest) or not request.store:
        return {}
    return ClientStore.of_message(request.store).newest(client, request.line)


def _with_private(request: TrainRequest, task: LocalTask) -> LocalTask:
    """The task of a client, which begins with its own tensors where it has any."""
    shared = task.start or request.state.adapter
    own = personal(shared, _private(request, task.client_id))
    return task if own is shared else replace(task, start=own)


def _finished(request: TrainRequest, update: ClientUpdate, before: Adapter) -> ClientUpdate:
    """What a client sends of a visit; what it keeps for itself is on the disk then."""
    objective = objective_from(request.objective, request.parameters)
    if not isinstance(request, VisitRequest) or not isinstance(objective, FinishesVisit):
        return update
    client, info = update.client_id, request.info
    outcome = objective.finish(before, update.delta, _private(request, client))
    if outcome.private:
        ClientStore.of_message(request.store).write(client, info.branch, info.round, outcome.private)
    return replace(update, delta=outcome.delta, statistics=outcome.statistics)


def visit_settings(request: VisitRequest, config: RunConfig) -> TrainConfig:
    """Return the training settings of a visit: those of the config, with the passes and the rate of the message."""
    return config.train.model_copy(
        update={"local_epochs": request.local_epochs, "learning_rate": request.learning_rate}
    )
