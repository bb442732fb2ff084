"""Objectives under what must not matter: how sequences are batched and ordered, and constants in logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.objectives.grad_ascent import GradAscent
from oblivion.objectives.grad_diff import GradDiff
from oblivion.objectives.lm import LanguageModel
from oblivion.objectives.npo import NPO
from oblivion.objectives.retain import token_kl
from oblivion.objectives.simnpo import SimNPO
from oblivion.objectives.terms import Answers, Objective

VOCABULARY = 5
OBJECTIVES = [LanguageModel(), GradAscent(), GradDiff(retain_loss="kl"), NPO(), SimNPO(delta=0.3)]

lengths = st.lists(st.integers(1, 6), min_size=1, max_size=5)
seeds = st.integers(0, 2**32)


def make(lengths: list[int], seed: int) -> tuple[list[Answers], list[torch.Tensor], list[torch.Tensor]]:
    """One batch of a single sequence per length: answers, logits, reference logits."""
    generator = torch.Generator().manual_seed(seed)
    answers, logits, references = [], [], []
    for length in lengths:
        labels = torch.randint(VOCABULARY, (length,), generator=generator)
        answers.append(Answers(labels, torch.zeros(length, dtype=torch.int64), 1))
        for into in (logits, references):
            into.append(3 * torch.randn(length, VOCABULARY, generator=generator, dtype=torch.float64))
    return answers, logits, references


def together(parts: list[Answers]) -> Answers:
    rows = torch.cat([torch.full_like(part.rows, index) for index, part in enumerate(parts)])
    return Answers(torch.cat([part.labels for part in parts]), rows, len(parts))


def loss(objective: Objective, answers: Answers, logits: torch.Tensor, reference: torch.Tensor) -> dict:
    roles = ("forget", "retain")
    outputs = {"logits": logits, "reference.logits": reference}
    terms = objective.loss(dict.fromkeys(roles, outputs), dict.fromkeys(roles, answers))
    return dict(terms)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
@settings(max_examples=20)
@given(lengths=lengths, seed=seeds)
def test_a_fused_batch_gives_each_sequence_what_it_has_alone(objective: Objective, lengths: list, seed: int) -> None:
    answers, logits, references = make(lengths, seed)
    fused = loss(objective, together(answers), torch.cat(logits), torch.cat(references))
    alone = [loss(objective, *parts) for parts in zip(answers, logits, references, strict=True)]
    for role, term in fused.items():
        torch.testing.assert_close(term.sums, torch.cat([a[role].sums for a in alone]), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(term.counts, torch.cat([a[role].counts for a in alone]), rtol=0, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
@settings(max_examples=20)
@given(lengths=lengths, seed=seeds, data=st.data())
def test_the_order_of_the_tokens_in_memory_does_not_matter(
    objective: Objective, lengths: list, seed: int, data: st.DataObject
) -> None:
    answers, logits, references = make(lengths, seed)
    batch = together(answers)
    order = torch.tensor(data.draw(st.permutations(range(sum(lengths)))))
    shuffled = Answers(batch.labels[order], batch.rows[order], batch.size)
    one = loss(objective, batch, torch.cat(logits), torch.cat(references))
    two = loss(objective, shuffled, torch.cat(logits)[order], torch.cat(references)[order])
    for role, term in one.items():
        torch.testing.assert_close(two[role].sums, term.sums, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
@settings(max_examples=20)
@given(lengths=lengths, seed=seeds, shift=st.floats(-50, 50))
def test_a_constant_added_to_the_logits_changes_nothing(
    objective: Objective, lengths: list, seed: int, shift: float
) -> None:
    answers, logits, references = make(lengths, seed)
    batch, current, reference = together(answers), torch.cat(logits), torch.cat(references)
    one = loss(objective, batch, current, reference)
    two = loss(objective, batch, current + shift, reference - shift)
    for role, term in one.items():
        torch.testing.assert_close(two[role].sums, term.sums, rtol=1e-9, atol=1e-9)


@settings(max_examples=50)
@given(lengths=lengths, seed=seeds)
def test_kl_is_positive_and_zero_only_for_the_same_distribution(lengths: list, seed: int) -> None:
    _, logits, references = make(lengths, seed)
    current, reference = torch.cat(logits), torch.cat(references)
    assert bool((token_kl(current, reference) > 0).all())
    torch.testing.assert_close(token_kl(current, current), torch.zeros(sum(lengths), dtype=torch.float64))


@pytest.mark.parametrize("objective", [NPO(), NPO(beta=2.0), SimNPO(), SimNPO(beta=1.0, delta=0.5)])
@settings(max_examples=20)
@given(lengths=lengths, seed=seeds)
def test_preference_losses_are_positive_and_fall_as_the_labels_become_unlikely(
    objective: Objective, lengths: list, seed: int
) -> None:
    answers, logits, references = make(lengths, seed)
    batch, current, reference = together(answers), torch.cat(logits), torch.cat(references)
    unlikely = current - torch.nn.functional.one_hot(batch.labels, VOCABULARY)
    before = loss(objective, batch, current, reference)["forget"].sums
    after = loss(objective, batch, unlikely, reference)["forget"].sums
    assert bool((before > after).all())
    assert bool((after > 0).all())
