"""Properties of batching: every row once a pass, and steps that can be counted beforehand."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.data.tokens import TokenRow
from oblivion.seeding import numpy_generator
from oblivion.tasks.causal_lm import collate
from oblivion.training.batches import epochs
from oblivion.visit_steps import steps_per_visit

lengths = st.lists(st.integers(2, 12), min_size=1, max_size=60)


@settings(max_examples=60)
@given(lengths=lengths, batch_size=st.integers(1, 9), count=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_steps_and_coverage(lengths: list[int], batch_size: int, count: int, seed: int) -> None:
    rows = [TokenRow((index, *[1] * (length - 1)), 1) for index, length in enumerate(lengths)]
    batches = list(epochs(rows, batch_size, count, numpy_generator(seed, "own"), numpy_generator(seed, "shared")))
    assert len(batches) == steps_per_visit(len(rows), batch_size, count)
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert Counter(row.ids[0] for batch in batches for row in batch) == dict.fromkeys(range(len(rows)), count)
    per_pass = len(batches) // count
    for start in range(0, len(batches), per_pass):
        part = batches[start : start + per_pass]
        assert len({row.ids[0] for batch in part for row in batch}) == len(rows)
        assert sum(len(batch) < batch_size for batch in part) <= 1


@settings(max_examples=60)
@given(shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8))
def test_collate_loses_nothing(shapes: list[tuple[int, int]]) -> None:
    rows = [TokenRow(tuple(range(10, 10 + prompt + answer)), prompt) for prompt, answer in shapes]
    batch = collate(rows, pad_id=0)
    for index, row in enumerate(rows):
        mine = batch.answers.rows == index
        assert tuple(batch.answers.labels[mine].tolist()) == row.labels
        assert tuple(batch.ids[index, : len(row.ids)].tolist()) == row.ids
        assert batch.positions[mine].tolist() == list(range(row.prompt_length - 1, len(row.ids) - 1))
    assert batch.size == sum(len(row.ids) for row in rows)
    assert torch.equal(batch.ids[batch.answers.rows, batch.positions + 1], batch.answers.labels)
