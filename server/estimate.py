"""Say what a run would do, how long it would take and how much memory it would need, before it runs."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from oblivion.aggregation import rule_of, scheme_of
from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.groups import asked_rows
from oblivion.errors import OblivionError
from oblivion.federation.planning import make_context, make_plan, make_request, usable, visits
from oblivion.federation.too_long import unfit
from oblivion.learners import learner_of
from oblivion.objectives.terms import objective_from
from oblivion.removal.plan import in_short
from oblivion.selection import client_steps
from oblivion.training.batches import encode_rows
from oblivion.training.local import LocalTask, train_client
from oblivion.types import RoundInfo

_PROBE_STEPS = 3
_BYTES_PER_FP32 = 4
_BYTES_PER_BF16 = 2
_ADAM_COPIES = 4  # the parameters, the gradients and two moments
_PROCESS_MEGABYTES = 600


def estimate(config: RunConfig, data: FederatedData) -> dict[str, Any]:
    """Say what a run would do, and estimate its time by timing a few training steps on this machine.

    Returns
    -------
    dict
        ``clients`` (rows of each), ``rounds``, ``client_steps`` of learning; with a request ``forget``, ``oracles``
        and ``removals``; ``seconds`` for all the training, ``memory_mb`` over all processes, ``ledger_mb`` on disk,
        ``writes``.
    """
    federation = config.federation
    sizes = {client: len(rows) for client, rows in data.clients.items()}
    idle = unfit(config, data, config.forget.client)
    steps = visits(config, usable(data, idle))
    learning = client_steps(steps, federation.joins, federation.clients_per_round, config.seed, 1, federation.rounds)
    expected: dict[str, Any] = {"clients": sizes, "rounds": federation.rounds, "client_steps": learning}
    total = learning
    if config.forget.client:
        request = make_request(data, config.forget.client, config.forget.samples)
        context = make_context(config, data, request, unfit=idle)
        plans = [make_plan(config, request, context, method) for method in config.forget.methods]
        oracles = config.evaluate.oracle_seeds
        rows = len(asked_rows(data.clients[request.client_id], request))
        expected["forget"] = f"{rows} of {sizes[request.client_id]} rows of {request.client_id}"
        if context.shared:
            expected["forget"] += f"; others also hold {in_short(context.shared)} of these, which no removal forgets"
        expected["oracles"] = oracles
        expected["removals"] = [
            f"{plan.label}: guarantee {plan.guarantee}, {plan.fraction:.2f} of retraining" for plan in plans
        ]
        total += oracles * context.rounds_cost(1, federation.rounds)
        total += sum(plan.client_steps for plan in plans)
    hosts = config.simulation.host_count
    workers = 1 if config.engine == "inline" else hosts
    expected["seconds"] = round(_seconds_per_step(config, data) * total / workers)
    expected["memory_mb"] = _megabytes(config, processes=1 if config.engine == "inline" else hosts + 1)
    expected["ledger_mb"] = round(ledger_bytes(config, data) / 2**20, 1)
    expected["writes"] = "a new run directory under runs/, or --out"
    return expected


def ledger_bytes(config: RunConfig, data: FederatedData) -> int:
    """Estimate how much the ledger of a run will hold: its contributions and states, and those of its removals."""
    resident = learner_of(config)
    values: int = sum(p.numel() for p in resident.parameters.values())
    federation, settings = config.federation, config.ledger
    update = values * (_BYTES_PER_FP32 if settings.precision == "float32" else _BYTES_PER_BF16)
    rule = rule_of(config)
    kept = len(data.clients) if rule.needs_client_state else len(rule.state_fields)
    state = values * _BYTES_PER_FP32 * (1 + kept)
    grows = bool(scheme_of(config).state_fields)  # the residual's rank grows by that of every client's update
    rank = grows * (1 + federation.clients_per_round) * config.lora.rank * federation.rounds
    for layer in resident.lora_layers.values():
        tall, wide = layer.base_layer.weight.shape
        state += min(rank, tall, wide) * (tall + wide) * _BYTES_PER_FP32
    rounds = min(federation.rounds, settings.retention or federation.rounds)
    visits_per_round = min(federation.clients_per_round, len(data.clients))
    states = federation.rounds // settings.checkpoint_every + 2
    branch = rounds * visits_per_round * update + states * state
    return branch * (1 + len(config.forget.methods))


def check_disk(config: RunConfig, data: FederatedData, folder: Path) -> None:
    """Refuse a run whose ledger would not fit on the disk.

    Raises
    ------
    OblivionError
        Saying how much is needed, how much is free, and what makes it smaller.
    """
    needed = ledger_bytes(config, data)
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OblivionError(
            f"the ledger of this run will hold about {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free at "
            f"{there}; choose another --out, or set ledger.precision=bfloat16 or ledger.retention"
        )


def _megabytes(config: RunConfig, processes: int) -> int:
    resident = learner_of(config)
    base = resident.size_bytes
    adapter: int = sum(p.numel() for p in resident.parameters.values()) * _BYTES_PER_FP32
    return round(processes * (_PROCESS_MEGABYTES + (base + _ADAM_COPIES * adapter) / 2**20))


def _seconds_per_step(config: RunConfig, data: FederatedData) -> float:
    import torch

    torch.set_num_threads(config.train.threads)
    resident = learner_of(config)
    client, samples = max(data.clients.items(), key=lambda item: len(item[1]))
    count = config.train.batch_size * _PROBE_STEPS
    rows = [row for _, row in encode_rows(resident.task, samples[:count]).rows]
    if not rows:
        return 0.0
    info = RoundInfo(branch="estimate", round=1, rounds=1, population=(client,), seed=config.seed)
    task = LocalTask(client_id=client, rows={"retain": rows})
    settings = config.train.model_copy(update={"local_epochs": 1})
    start, lm = resident.initial_adapter(config.seed), objective_from("lm", {})
    # Loads what is loaded lazily, before time is taken.
    train_client(resident, start, replace(task, rows={"retain": rows[:1]}), lm, settings, info)
    since = time.perf_counter()
    update = train_client(resident, start, task, lm, settings, info)
    return (time.perf_counter() - since) / update.steps
