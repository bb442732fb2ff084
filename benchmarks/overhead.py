"""What the framework adds to a round: the wall time of its rounds against the bare loop over clients.

The bare loop trains the same clients from the same data with the same code in this process: no messages, no gate, no
ledger. One host, so that both have one core; the best of several of each. The first round, in which a host loads the
model, does not count.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import Result, best_wall
from oblivion.config import RunConfig, config_from_mapping
from oblivion.data import templates
from oblivion.data.federation import resolve
from oblivion.models.resident import load_resident
from oblivion.objectives.terms import objective_from
from oblivion.training.batches import tokenize
from oblivion.training.cohort import train_cohort
from oblivion.training.local import LocalTask
from oblivion.types import RoundInfo
from simulations.simulate import simulate

ROUNDS, EPOCHS = 5, 14


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
    """Inline, and on Ray."""
    logging.disable(logging.WARNING)
    loop = _bare(_config("inline"))
    for engine in ("inline", "ray"):
        before = best_wall(loop)
        with tempfile.TemporaryDirectory() as folder:
            history = simulate(_config(engine), Path(folder) / "run").history
        round_s = min(entry["seconds"] for entry in history if entry["round"] > 1)
        bare = min(before, best_wall(loop))  # on both sides, since the machine may be shared
        yield Result("overhead", f"a round on {engine}", round_s, "bare loop over clients", bare, bound_ratio=1 / 1.05)


def _bare(config: RunConfig) -> Callable[[], None]:
    import torch

    torch.set_num_threads(config.train.threads)
    data, resident = resolve(config), load_resident(config.model, config.lora, config.train.max_length)
    template = templates.get(config.data.template)()
    tasks = [
        LocalTask(
            client_id=client,
            rows={"retain": [row for _, row in tokenize(rows, resident.tokenizer, template, resident.max_length).rows]},
        )
        for client, rows in data.clients.items()
    ]
    start, objective = resident.initial_adapter(0), objective_from("lm", {})
    info = RoundInfo(branch="main", round=1, rounds=1, population=tuple(sorted(data.clients)), seed=0)

    def loop() -> None:
        for task in tasks:
            train_cohort(resident, start, [task], objective, config.train, info)

    loop()
    return loop
