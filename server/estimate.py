"""How long a run will take and how much memory it needs, before it runs."""

from __future__ import annotations

import time
from typing import Any

from oblivion.config import RunConfig
from oblivion.data import templates
from oblivion.data.corpus import FederatedData
from oblivion.models.resident import load_resident
from oblivion.objectives.terms import objective_from
from oblivion.selection import population, select_clients
from oblivion.training.batches import steps_per_visit, tokenize
from oblivion.training.local import LocalTask, train_client
from oblivion.types import RoundInfo

_PROBE_STEPS = 3
_BYTES_PER_FP32 = 4
_ADAM_COPIES = 4  # parameters, gradients, two moments
_PROCESS_MEGABYTES = 600


def estimate(config: RunConfig, data: FederatedData) -> dict[str, Any]:
    """Estimate by timing a few training steps on this machine.

    Returns
    -------
    dict
        ``rounds``, ``client_steps`` of learning, ``seconds`` for training everything that the scenario asks for,
        ``memory_mb`` over all processes.
    """
    train = config.train
    steps = {c: steps_per_visit(len(rows), train.batch_size, train.local_epochs) for c, rows in data.clients.items()}
    total = 0
    for number in range(1, config.federation.rounds + 1):
        there = population(list(steps), config.federation.joins, number)
        total += sum(steps[c] for c in select_clients(there, config.federation.clients_per_round, config.seed, number))
    branches = 1 + (config.evaluate.oracle_seeds if config.forget.client else 0)
    recovery = sum(steps.values()) * config.forget.recovery_rounds * len(config.forget.methods)
    seconds = _seconds_per_step(config, data) * (total * branches + recovery)
    hosts = config.simulation.hosts
    assert hosts != "auto"
    resident = load_resident(config.model, config.lora, train.max_length)
    base = sum(p.numel() * p.element_size() for p in resident.base.model.parameters())
    adapter = sum(p.numel() for p in resident.parameters.values()) * _BYTES_PER_FP32
    processes = 1 if config.engine == "inline" else hosts + 1
    megabytes = processes * (_PROCESS_MEGABYTES + (base + _ADAM_COPIES * adapter) / 2**20)
    workers = 1 if config.engine == "inline" else hosts
    return {
        "rounds": config.federation.rounds,
        "client_steps": total,
        "seconds": round(seconds / workers),
        "memory_mb": round(megabytes),
        "writes": "a new run directory under runs/, or --out",
    }


def _seconds_per_step(config: RunConfig, data: FederatedData) -> float:
    import torch

    torch.set_num_threads(config.train.threads)
    resident = load_resident(config.model, config.lora, config.train.max_length)
    client, samples = max(data.clients.items(), key=lambda item: len(item[1]))
    template = templates.get(config.data.template)()
    count = config.train.batch_size * _PROBE_STEPS
    rows = [row for _, row in tokenize(samples[:count], resident.tokenizer, template, resident.max_length).rows]
    if not rows:
        return 0.0
    info = RoundInfo(branch="estimate", round=1, rounds=1, population=(client,), seed=config.seed)
    task = LocalTask(client_id=client, rows={"retain": rows})
    settings = config.train.model_copy(update={"local_epochs": 1})
    start = resident.initial_adapter(config.seed)
    since = time.perf_counter()
    update = train_client(resident, start, task, objective_from("lm", {}), settings, info)
    return (time.perf_counter() - since) / update.steps
