"""Measure how time and memory grow: with clients, tokens, rank and clients that share a pass.

Memory is the largest resident set of this process so far; the cases go from small to large. ``ours_s`` is the process
CPU time of a round: training cohort after cohort, and aggregation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.measure import Result, cpu_seconds
from benchmarks.rounds import VOCABULARY, Case, make_model
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.config import LoraConfig, TrainConfig
from oblivion.data.tokens import TokenRow
from oblivion.models.loading import Base
from oblivion.models.resident import ResidentModel
from oblivion.objectives.terms import objective_from
from oblivion.training.cohort import train_cohort
from oblivion.training.local import LocalTask
from oblivion.types import ClientUpdate, GlobalState, RoundInfo

MEBIBYTE = 1024
MANY, ROWS, PER_ROUND, MANY_ROUNDS = 1000, 4, 20, 100
MOST_MIB, FLAT = 4096, 1.1
_SCENARIO = """engine = "ray"
data.name = "jsonl"
data.path = "{rows}"
data.columns.client = "client"
federation.clients = 1000
federation.rounds = 100
federation.clients-per-round = 20
train.local-epochs = 1
train.batch-size = 2
evaluate.limit = 4
evaluate.max-new-tokens = 4
"""


class _Padding:
    pad_token_id = 0


@dataclasses.dataclass(frozen=True)
class _Shape:
    """One case; the others differ from it in one number."""

    clients: int = 8
    length: int = 64
    rank: int = 8
    cohort: int = 4


def run() -> Iterator[Result]:
    """Measure one thing at a time, then a thousand clients for a hundred rounds."""
    torch.set_num_threads(1)
    plain = _Shape()
    for field, values in (("clients", (8, 32, 128)), ("length", (32, 64, 128, 256)), ("rank", (4, 16, 64))):
        for value in values:
            yield _case(f"{field} {value}", dataclasses.replace(plain, **{field: value}))
    for cohort in (1, 2, 4, 8):
        yield _case(f"clients in one pass {cohort}", dataclasses.replace(plain, cohort=cohort))
    yield _hosts()
    yield from _many()


def _resident(rank: int) -> ResidentModel:
    base = Base(make_model(Case("", 4, 64, 4, 1)).eval(), _Padding(), 512, "float32")
    return ResidentModel(base, LoraConfig(rank=rank, alpha=2 * rank))


def _task(client: str, length: int, rows: int = 4) -> LocalTask:
    generator = np.random.default_rng(int(client.rpartition("-")[2]))
    made = [TokenRow(tuple(generator.integers(3, VOCABULARY, length).tolist()), length // 2) for _ in range(rows)]
    return LocalTask(client_id=client, rows={"retain": made})


def _round(
    resident: ResidentModel, state: GlobalState, clients: list[str], shape: _Shape, number: int
) -> tuple[GlobalState, list[ClientUpdate]]:
    info = RoundInfo(branch="main", round=number, rounds=MANY_ROUNDS, population=tuple(clients), seed=0)
    settings = TrainConfig(batch_size=1, local_epochs=1, learning_rate=1e-3)
    updates: list[ClientUpdate] = []
    for start in range(0, len(clients), shape.cohort):
        tasks = [_task(client, shape.length) for client in clients[start : start + shape.cohort]]
        done, failures = train_cohort(resident, state.adapter, tasks, objective_from("lm", {}), settings, info)
        assert not failures
        updates += done
    rule = FedAvg()
    return rule.step(updates, state, rule.init(state), info)[0], updates


def _case(name: str, shape: _Shape) -> Result:
    resident = _resident(shape.rank)
    state = GlobalState(adapter=resident.initial_adapter(0))
    clients = [f"client-{index}" for index in range(shape.clients)]
    seconds = cpu_seconds(lambda: _round(resident, state, clients, shape, 1))
    return Result("scaling", f"{name} ({_memory():.0f} MiB)", seconds)


def _hosts() -> Result:
    """Measure a round of eight clients on Ray with two hosts and with one: the best wall time after the first round."""
    seconds = {}
    for hosts in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            settings = (f"simulation.hosts={hosts}", "federation.rounds=4", "train.local-epochs=8", "evaluate.limit=2")
            (Path(folder) / "scenario.toml").write_text('engine = "ray"\n', "utf-8")
            command = [sys.executable, "-m", "oblivion.cli", "run", f"{folder}/scenario.toml", "--out", str(out)]
            command += [part for setting in settings for part in ("--set", setting)]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            events = [json.loads(line) for line in (out / "events.jsonl").read_text("utf-8").splitlines()]
        rounds = [event["seconds"] for event in events if event["event"] == "round_committed"]
        seconds[hosts] = min(rounds[1:])
    return Result("scaling", "a round of 8 clients on 2 hosts (wall time)", seconds[2], "on 1 host", seconds[1])


def _many() -> Iterator[Result]:
    """Measure the memory of all processes with a thousand clients, twenty a round, for a hundred rounds on Ray."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "rows.jsonl").write_text("".join(_lines()), "utf-8")
        (where / "scenario.toml").write_text(_SCENARIO.format(rows=where / "rows.jsonl"), "utf-8")
        command = [
            sys.executable,
            "-m",
            "oblivion.cli",
            "run",
            str(where / "scenario.toml"),
            "--out",
            str(where / "run"),
        ]
        since = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            seen = _watch(psutil.Process(process.pid), where / "run" / "events.jsonl")
        if process.returncode:
            raise SystemExit(f"the run of {MANY} clients ended with {process.returncode}")
        seconds = (time.perf_counter() - since) / MANY_ROUNDS
    early, late = max(m for r, m in seen if 5 <= r <= 20), max(m for r, m in seen if r > MANY_ROUNDS - 15)
    case = f"{MANY} clients, {PER_ROUND} a round, {MANY_ROUNDS} rounds on Ray: a round of wall time"
    yield Result("scaling", f"{case}; {early:.0f} MiB at rounds 5 to 20, {late:.0f} MiB at the last 15", seconds)
    if late > MOST_MIB or late > FLAT * early:
        raise SystemExit(
            f"memory: {late:.0f} MiB at the end, {early:.0f} MiB at the beginning; at most {MOST_MIB}, flat"
        )


def _lines() -> Iterator[str]:
    generator = np.random.default_rng(0)
    for client in range(MANY):
        for row in range(ROWS):
            words = " ".join(generator.choice(["red", "blue", "old", "new", "house", "river", "walks", "sees"], 8))
            row_of = {"client": f"client-{client}", "question": f"What of {client} and {row}?", "answer": words}
            yield json.dumps(row_of) + "\n"


def _watch(process: psutil.Process, events: Path) -> list[tuple[int, float]]:
    """Return (rounds committed, MiB of the process and its children, shared pages counted once) until it ends."""
    seen = []
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        memory = 0
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                memory += one.memory_full_info().pss
        done = events.read_text("utf-8").count('"round_committed"') if events.is_file() else 0
        seen.append((done, memory / MEBIBYTE / 1024))
        time.sleep(1)
    return seen


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBIBYTE
