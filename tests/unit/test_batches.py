"""Batches by hand, and the order in which rows are seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from oblivion.config import ModelConfig
from oblivion.data.tokens import TokenRow
from oblivion.models.loading import load_tokenizer
from oblivion.seeding import numpy_generator
from oblivion.tasks.causal_lm import CausalLM, collate
from oblivion.training.batches import encode_rows, epochs
from oblivion.types import Sample
from oblivion.visit_steps import steps_per_visit


def row(index: int, length: int = 3) -> TokenRow:
    return TokenRow((index, *[9] * (length - 1)), 1)


def batches_of(rows: list[TokenRow], size: int, count: int, seed: int = 0, client: str = "c") -> list[list[TokenRow]]:
    own, shared = numpy_generator(seed, "own", 1, client), numpy_generator(seed, "shared", 1)
    return list(epochs(rows, size, count, own, shared))


def test_collate_by_hand() -> None:
    # Row 0: prompt 5 6, answer 7 8 (predicted at positions 1 and 2). Row 1: prompt 5, answer 9 (at position 0).
    batch = collate([TokenRow((5, 6, 7, 8), 2), TokenRow((5, 9), 1)], pad_id=0)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert batch.size == 6
    assert batch.positions.tolist() == [1, 2, 0]
    assert batch.answers.labels.tolist() == [7, 8, 9]
    assert batch.answers.rows.tolist() == [0, 0, 1]
    assert batch.answers.size == 2 and batch.size == 6
    assert {t.dtype for t in (batch.ids, batch.positions, batch.answers.labels)} == {torch.int64}


def test_labels_are_the_token_after_their_position() -> None:
    rows = [TokenRow(tuple(range(10, 10 + n)), p) for n, p in ((5, 2), (9, 8), (2, 1))]
    batch = collate(rows, pad_id=3)
    assert torch.equal(batch.ids[batch.answers.rows, batch.positions + 1], batch.answers.labels)
    assert batch.answers.labels.shape[0] == sum(len(r.labels) for r in rows)


def test_padding_that_is_eos_is_still_masked() -> None:
    batch = collate([TokenRow((5, 6, 2), 1), TokenRow((5, 2), 1)], pad_id=2)
    assert batch.size == 5 and batch.answers.labels.tolist() == [6, 2, 2]


def test_every_pass_sees_every_row_once() -> None:
    rows = [row(i, 2 + i % 7) for i in range(21)]
    batches = batches_of(rows, 4, 3)
    per_pass = steps_per_visit(21, 4, 1)
    assert per_pass == 6 and len(batches) == 18
    for start in range(0, 18, per_pass):
        part = batches[start : start + per_pass]
        assert sorted(r.ids[0] for batch in part for r in batch) == list(range(21))
        assert Counter(len(batch) for batch in part) == {4: 5, 1: 1}


def test_order_is_a_function_of_the_generators() -> None:
    rows = [row(i) for i in range(12)]

    def order(seed: int) -> list[list[int]]:
        return [[r.ids[0] for r in batch] for batch in batches_of(rows, 4, 2, seed)]

    assert order(0) == order(0) and order(0) != order(1)
    assert order(0)[:3] != order(0)[3:], "each pass is shuffled anew"


def test_batches_hold_rows_of_similar_length() -> None:
    rows = [row(i, 2 + i) for i in range(16)]
    batches = batches_of(rows, 2, 1)
    spans = [max(len(r.ids) for r in b) - min(len(r.ids) for r in b) for b in batches]
    assert spans == [1] * 8  # one window of 8 batches, sorted: neighbours


def test_clients_have_short_and_long_rows_at_the_same_steps() -> None:
    # Eight batches each, of other rows and other lengths: the k-th shortest comes at the same step for both.
    first = batches_of([row(i, 2 + i) for i in range(16)], 2, 3, client="first")
    second = batches_of([row(i, 200 - 5 * i) for i in range(16)], 2, 3, client="second")
    for start in (0, 8, 16):
        ranks = [
            [sorted(lengths).index(length) for length in lengths]
            for lengths in ([max(len(r.ids) for r in b) for b in part[start : start + 8]] for part in (first, second))
        ]
        assert ranks[0] == ranks[1] and sorted(ranks[0]) == list(range(8))


def test_every_order_of_batches_is_equally_likely() -> None:
    rows = [row(i, 2 + i) for i in range(3)]
    orders = Counter(tuple(b[0].ids[0] for b in batches_of(rows, 1, 1, seed)) for seed in range(1200))
    assert len(orders) == 6
    assert sum((count - 200) ** 2 / 200 for count in orders.values()) < 20.5  # chi-square, 5 degrees, p = 0.001


@pytest.mark.parametrize(("rows", "size", "count", "steps"), [(1, 8, 4, 4), (8, 8, 1, 1), (9, 8, 2, 4), (64, 8, 1, 8)])
def test_steps_by_hand(rows: int, size: int, count: int, steps: int) -> None:
    assert steps_per_visit(rows, size, count) == steps


def test_too_long_rows_are_left_out_whole_and_named(micro_model: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(name=str(micro_model)))
    samples = [
        Sample(id="short", prompt="q", answer="a"),
        Sample(id="long", prompt="q", answer="a" * 300),
        Sample(id="also short", prompt="q", answer="b"),
    ]
    tokens = encode_rows(CausalLM(tokenizer, 100), samples)
    assert [name for name, _ in tokens.rows] == ["short", "also short"] and tokens.skipped == ("long",)
    # the boundary: exactly as long as the context is kept, one less is not
    exact = len(tokens.rows[0][1].ids)
    assert encode_rows(CausalLM(tokenizer, exact), samples[:1]).skipped == ()
    assert encode_rows(CausalLM(tokenizer, exact - 1), samples[:1]).skipped == ("short",)
    whole = tokens.rows[0][1]
    assert whole.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(list(whole.labels), skip_special_tokens=True).strip() == "a"
