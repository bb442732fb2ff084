"""Run rounds of local training on one GPU, with a random Llama of the shape of Llama 3.2 1B and LoRA rank 32.

It needs neither Flower nor Ray. Without a GPU the same code runs on a small model with few rows: that shows that it
works, and says nothing of speed, so no bound is asked for. ``ours_s`` is wall time, after the device has finished.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Result
from oblivion.config import LoraConfig, TrainConfig
from oblivion.data.tokens import TokenRow
from oblivion.models.loading import Base
from oblivion.models.resident import ResidentModel
from oblivion.objectives.terms import objective_from
from oblivion.training.cohort import train_cohort
from oblivion.training.local import LocalTask
from oblivion.training.slots import slots_for
from oblivion.types import RoundInfo

GIBIBYTE = 2**30


class _Padding:
    pad_token_id = 0


@dataclass(frozen=True)
class _Size:
    """The size of the model, and the share of each case's rows that is used."""

    width: int
    layers: int
    vocabulary: int
    dtype: torch.dtype
    share: float


LARGE = _Size(2048, 16, 128_256, torch.bfloat16, 1.0)
SMALL = _Size(64, 2, 2000, torch.float32, 0.02)


@dataclass(frozen=True)
class _Case:
    clients: int
    rows: int
    batch: int
    seconds: float


CASES = (_Case(8, 500, 4, 8.0), _Case(64, 16, 1, 3.0))


def run() -> Iterator[Result]:
    """Measure both cases, one client at a time and in cohorts."""
    there = torch.cuda.is_available()
    size = LARGE if there else SMALL
    resident = _resident(size, "cuda" if there else "cpu")
    for case in CASES:
        rows = max(case.batch, round(case.rows * size.share))
        tasks = [_task(index, rows, size.vocabulary) for index in range(case.clients)]
        alone, _ = _round(resident, tasks, case.batch, 1)
        slots = slots_for(resident.width, case.batch, resident.device, case.clients)
        together, peak = _round(resident, tasks, case.batch, slots)
        yield Result(
            "gpu",
            f"{torch.cuda.get_device_name() if there else 'no GPU, small model'}: {case.clients} clients, {rows} rows, "
            f"batch {case.batch}, {slots} in one pass, {peak:.1f} GiB at most",
            together,
            "one client at a time",
            alone,
            bound_s=case.seconds if there else None,
        )


def _resident(size: _Size, device: str) -> ResidentModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = size.width // 64
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        dtype=size.dtype,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).to(size.dtype).requires_grad_(False).eval()
    return ResidentModel(
        Base(model, _Padding(), 2048, str(size.dtype).removeprefix("torch.")), LoraConfig(rank=32, alpha=64)
    )


def _task(client: int, rows: int, vocabulary: int) -> LocalTask:
    """Make rows of TOFU's lengths: prompts of about 55 tokens, answers of about 55."""
    generator = np.random.default_rng(client)
    made = []
    for _ in range(rows):
        prompt, answer = int(generator.integers(40, 71)), int(generator.integers(35, 76))
        made.append(TokenRow(tuple(generator.integers(3, vocabulary, prompt + answer).tolist()), prompt))
    return LocalTask(client_id=f"client-{client:03d}", rows={"retain": made})


def _round(resident: ResidentModel, tasks: list[LocalTask], batch: int, slots: int) -> tuple[float, float]:
    """Return the seconds of a round, and the most device memory in GiB; a first cohort of two rows warms it up."""
    start, objective = resident.initial_adapter(0), objective_from("lm", {})
    settings = TrainConfig(batch_size=batch, local_epochs=1, learning_rate=1e-4)
    info = RoundInfo(branch="main", round=1, rounds=1, population=(), seed=0)
    warm = [LocalTask(client_id=task.client_id, rows={"retain": task.rows["retain"][:batch]}) for task in tasks[:slots]]

    def train(chosen: list[LocalTask]) -> None:
        for first in range(0, len(chosen), slots):
            updates, failures = train_cohort(resident, start, chosen[first : first + slots], objective, settings, info)
            assert not failures and all(np.isfinite(update.metrics["loss"]) for update in updates)

    train(warm)
    _wait()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    since = time.perf_counter()
    train(tasks)
    _wait()
    peak: Any = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return time.perf_counter() - since, peak / GIBIBYTE


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
