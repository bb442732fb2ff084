"""Measure what the ledger costs: a contribution of 16 MiB, a commit, the verification of 100,000 entries."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.measure import Result, cpu_seconds, wall_median
from oblivion.aggregation.gate import Gate
from oblivion.config import LedgerConfig
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.rounds import Branch, CohortOutcome
from oblivion.ledger.store import StoredLedger
from oblivion.ledger.verify import verify_ledger
from oblivion.run_format import FILE, format_file
from oblivion.types import ClientUpdate

LAYERS, SHAPE = 64, (256, 256)  # 64 x 65,536 fp32 values are 16 MiB
ENTRIES, BATCH, COMMITS = 100_000, 1000, 300


def run() -> Iterator[Result]:
    """Measure each case in a ledger of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        yield from _contributions(root / "contributions")
        yield from _commits(root / "commits")
        yield from _verification(root / "verification")


def _open(root: Path) -> StoredLedger:
    root.mkdir()
    (root / FILE).write_bytes(format_file())  # verification refuses what is no run
    (root / "config.toml").touch()
    ledger, _ = open_ledger(root, LedgerConfig())
    ledger.open_branch(Branch(name="main", seed=0, rounds=1))
    return ledger


def _contributions(root: Path) -> Iterator[Result]:
    """Measure gate, norms, encryption, digest, durable write and the record, against a plain safetensors file."""
    reference = {f"layer.{i:02d}": torch.zeros(SHAPE) for i in range(LAYERS)}
    gate = Gate(reference, 1e9, "code")
    delta = {name: torch.randn(SHAPE) for name in reference}
    update = ClientUpdate(client_id="a", round=1, delta=delta, num_examples=1, steps=1, fingerprint="code")
    ledger = _open(root)
    numbers = iter(range(1000))

    def ours() -> None:
        number = next(numbers)
        client = f"client-{number}"
        accepted, _ = gate.admit([dataclasses.replace(update, client_id=client)], {client: 1}, 1)
        ledger.append(CohortOutcome(branch="main", round=1, cohort=number, updates=accepted))

    plain = cpu_seconds(lambda: save_file(delta, root / "plain.safetensors"), repeat=5)
    case = "one contribution of 16 MiB, CPU"
    yield Result("ledger", case, cpu_seconds(ours, repeat=5), "a plain safetensors file", plain, 0.150)
    ledger.close()


def _commits(root: Path) -> Iterator[Result]:
    """Measure a transaction of one record, as it waits for the disk."""
    ledger = _open(root)
    numbers = iter(range(10_000))

    def commit() -> None:
        with ledger.book.transaction() as writer:
            writer.add("cohort", f"main/1/{next(numbers)}", {"refused": {}, "failed": {}}, branch=1, round=1)

    yield Result("ledger", "one commit, wall, median of 300", wall_median(commit, COMMITS), bound_s=0.015)
    ledger.close()


def _verification(root: Path) -> Iterator[Result]:
    """Measure the verification of the whole log and every record of it."""
    ledger = _open(root)
    for start in range(0, ENTRIES, BATCH):
        with ledger.book.transaction() as writer:
            for number in range(start, start + BATCH):
                writer.add("cohort", f"main/1/{number}", {"refused": {}, "failed": {}}, branch=1, round=1)
    ledger.close()

    def verify() -> None:
        done = verify_ledger(root)
        assert done.entries > ENTRIES and not done.findings

    yield Result("ledger", "verification of 100,000 entries, CPU", cpu_seconds(verify, repeat=2), bound_s=10.0)
