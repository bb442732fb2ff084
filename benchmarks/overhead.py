"""Measure what the framework adds to a round: the wall time of its rounds against the bare loop over clients.

The bare loop trains the same clients from the same data with the same code in a process of its own: no messages, no
gate, no ledger. It and a round take turns, so that both see the same machine, and the medians of both are compared. One
host, so that both have one core. The first round, in which a host loads the model, does not count.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.measure import Result
from oblivion.config import RunConfig, config_from_mapping
from oblivion.data.federation import resolve
from oblivion.learners import learner_of
from oblivion.objectives.terms import objective_from
from oblivion.training.batches import encode_rows
from oblivion.training.cohort import train_cohort
from oblivion.training.local import LocalTask
from oblivion.types import RoundInfo
from simulations.simulate import simulate

ROUNDS, EPOCHS = 8, 18


def _config(engine: str) -> RunConfig:
    return config_from_mapping(
        {
            "engine": engine,
            "simulation": {"hosts": 1},
            "federation": {"rounds": ROUNDS},
            "data": {"parameters": {"rows_per_client": 24}},
            "train": {"local-epochs": EPOCHS, "learning-rate": 5e-4, "cohort": 1},
            "evaluate": {"limit": 1, "max-new-tokens": 1},
        },
        "benchmark",
    )


def run() -> Iterator[Result]:
    """Measure a round inline, and on Ray."""
    logging.disable(logging.WARNING)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for engine in ("inline", "ray"):
            round_s, loop_s = _medians(engine, pool)
            case = f"a round on {engine}, median of {ROUNDS - 1}"
            yield Result("overhead", case, round_s, "bare loop over clients", loop_s, bound_ratio=1 / 1.05)


def _medians(engine: str, pool: ProcessPoolExecutor) -> tuple[float, float]:
    """Return the seconds of a round, and of the bare loop that follows each round in the pool's process."""
    rounds: list[float] = []
    loops: list[float] = []

    def take_turns(event: dict[str, Any]) -> None:
        if event["event"] == "round_committed":
            rounds.append(event["seconds"])
            loops.append(pool.submit(_bare_loop).result())

    with tempfile.TemporaryDirectory() as folder:
        simulate(_config(engine), Path(folder) / "run", sinks=[take_turns])
    return statistics.median(rounds[1:]), statistics.median(loops[1:])


def _bare_loop() -> float:
    """Train every client once in this process, and return the seconds without loading, which is done only once."""
    import torch

    config = _config("inline")
    torch.set_num_threads(config.train.threads)
    data, resident = resolve(config), learner_of(config)
    tasks = [
        LocalTask(
            client_id=client,
            rows={"retain": [row for _, row in encode_rows(resident.task, rows).rows]},
        )
        for client, rows in data.clients.items()
    ]
    start, objective = resident.initial_adapter(0), objective_from("lm", {})
    info = RoundInfo(branch="main", round=1, rounds=1, population=tuple(sorted(data.clients)), seed=0)
    since = time.perf_counter()
    for task in tasks:
        train_cohort(resident, start, [task], objective, config.train, info)
    return time.perf_counter() - since
