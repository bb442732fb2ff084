"""Token rows, batches of them, and the order in which a client sees its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oblivion.data.tokens import Template, TokenRow, encode
from oblivion.errors import InputError
from oblivion.objectives.terms import Answers
from oblivion.types import Sample
from oblivion.visits import WINDOW

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

NO_ROWS = "no rows to train on"
"""Why a client fails that has none, or none that fits into the context: it will fail in every other round, too."""


@dataclass(frozen=True)
class Tokens:
    """A client's rows as tokens, and the ids of the samples that were too long for the model's context."""

    rows: tuple[tuple[str, TokenRow], ...]
    skipped: tuple[str, ...]


def tokenize(samples: Sequence[Sample], tokenizer: Any, template: Template, max_length: int) -> Tokens:
    """Encode samples; a row that is longer than `max_length` is left out whole and named, never cut."""
    rows, skipped = [], []
    for sample in samples:
        try:
            row = encode(tokenizer, template, sample.prompt, sample.answer, max_length)
        except InputError as error:
            raise InputError(f"{sample.id}: {error}") from None
        if row is None:
            skipped.append(sample.id)
        else:
            rows.append((sample.id, row))
    return Tokens(tuple(rows), tuple(skipped))


@dataclass(frozen=True)
class PaddedBatch:
    """A right-padded batch, and where its labels are predicted from.

    Attributes
    ----------
    ids : Tensor (B, L) int64
        Token ids. There is no mask: padding is on the right, where a causal model never looks.
    positions : Tensor (T,) int64
        Position from which each label is predicted (label position - 1).
    answers : Answers
        The T labels and their rows.
    tokens : int
        Tokens without padding.
    """

    ids: Tensor
    positions: Tensor
    answers: Answers
    tokens: int


def collate(rows: Sequence[TokenRow], pad_id: int, device: Any = "cpu") -> PaddedBatch:
    """Pad rows to the longest of them."""
    import torch

    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    positions: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        positions += range(row.prompt_length - 1, len(row.ids) - 1)
        labels += row.labels
        owners += [index] * len(row.labels)
    answers = Answers(torch.tensor(labels, device=device), torch.tensor(owners, device=device), len(rows))
    tokens = sum(len(row.ids) for row in rows)
    return PaddedBatch(ids.to(device), torch.tensor(positions, device=device), answers, tokens)


def epochs(
    rows: Sequence[TokenRow], batch_size: int, count: int, own: np.random.Generator, shared: np.random.Generator
) -> Iterator[list[TokenRow]]:
    """Yield the batches of `count` passes over `rows`.

    In every pass rows are shuffled, and sorted by length within windows of eight batches, so that a batch holds rows of
    similar length. The batches come in an order that is uniformly random, and the same for every client in this sense:
    each step takes the batch at a drawn place among those that are left, sorted by length. Clients that are trained
    together so have short rows at the same time and long ones at the same time, and little is padded, although no
    client's order depends on another's rows. The last batch of a window may be smaller.

    Parameters
    ----------
    rows : sequence of TokenRow
        A client's.
    batch_size, count : int
        Rows of a batch; passes.
    own, shared : Generator
        The client's, for the shuffling; and one that begins alike for every client, for the places.
    """
    for _ in range(count):
        order = own.permutation(len(rows)).tolist()
        batches: list[list[TokenRow]] = []
        for start in range(0, len(order), batch_size * WINDOW):
            window = sorted(order[start : start + batch_size * WINDOW], key=lambda i: len(rows[i].ids))
            batches += [[rows[i] for i in window[j : j + batch_size]] for j in range(0, len(window), batch_size)]
        batches.sort(key=lambda batch: max(len(row.ids) for row in batch))
        while batches:
            yield batches.pop(int(shared.random() * len(batches)))
