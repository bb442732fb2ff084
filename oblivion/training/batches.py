"""Encode a client's rows, and order them for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from oblivion.tasks.task import Row, Task
from oblivion.types import Sample
from oblivion.visit_steps import WINDOW

if TYPE_CHECKING:
    import numpy as np

NO_ROWS = "no rows to train on"
"""The reason for a client without rows, or with none that fits into the context: it fails in every other round, too."""


@dataclass(frozen=True)
class Encoded:
    """A client's rows with their sample ids, and the ids of the samples that are too long for the model."""

    rows: tuple[tuple[str, Any], ...]
    skipped: tuple[str, ...]


def encode_rows(task: Task, samples: Sequence[Sample]) -> Encoded:
    """Encode samples; one whose row is too long is left out whole and named, for a row is never cut."""
    rows, skipped = [], []
    for sample in samples:
        row = task.encode(sample)
        if row is None:
            skipped.append(sample.id)
        else:
            rows.append((sample.id, row))
    return Encoded(tuple(rows), tuple(skipped))


AnyRow = TypeVar("AnyRow", bound=Row)


def epochs(
    rows: Sequence[AnyRow], batch_size: int, count: int, own: np.random.Generator, shared: np.random.Generator
) -> Iterator[list[AnyRow]]:
    """Yield the batches of `count` passes over `rows`.

    In every pass rows are shuffled, and sorted by size within windows of eight batches, so that a batch holds rows of
    similar size. The batches come in an order that is uniformly random, and the same for every client in this sense:
    each step takes the batch at a drawn place among those that are left, sorted by length. Clients that are trained
    together so have short rows at the same time and long ones at the same time, and little is padded, although no
    client's order depends on another's rows. The last batch of a window may be smaller.

    Parameters
    ----------
    rows : sequence of Row
        The rows of a client.
    batch_size, count : int
        The number of rows of a batch, and the number of passes.
    own, shared : Generator
        The client's own, for the shuffling; and one that begins alike for every client, for the places.
    """
    for _ in range(count):
        order = own.permutation(len(rows)).tolist()
        batches: list[list[AnyRow]] = []
        for start in range(0, len(order), batch_size * WINDOW):
            window = sorted(order[start : start + batch_size * WINDOW], key=lambda i: rows[i].size)
            batches += [[rows[i] for i in window[j : j + batch_size]] for j in range(0, len(window), batch_size)]
        batches.sort(key=lambda batch: max(row.size for row in batch))
        while batches:
            yield batches.pop(int(shared.random() * len(batches)))
