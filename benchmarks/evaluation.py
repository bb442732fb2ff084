"""Evaluate in one pass for all metrics, with one sequence for all answers of a prompt, and wide generation.

The others are written here from their descriptions. *A pass each*: every metric forwards the whole data again, in
batches of 32 as the rows come, and makes all logits (open-unlearning). *A pass per kind of answer*: the truth ratio
from such batches of the right and of each wrong answer. *One by one*: transformers' ``generate``, a prompt at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Result, side_by_side
from benchmarks.rounds import PAD, VOCABULARY, Case, labelled, make_model
from oblivion.data.tokens import TokenRow
from oblivion.metrics.engine.context import AnswerScore
from oblivion.metrics.engine.generation import generate
from oblivion.metrics.engine.scoring import score_rows
from oblivion.metrics.exact_memorization import exact_memorization
from oblivion.metrics.extraction_strength import extraction_strength
from oblivion.metrics.mia_loss import LossAttack
from oblivion.metrics.mia_min_k import MinKAttack
from oblivion.metrics.mia_min_k_plus_plus import MinKPlusPlusAttack
from oblivion.metrics.mia_zlib import ZlibAttack

SHAPE = Case("4 layers of width 256", 4, 256, 64, 32)
EVERY_BATCH, QUESTIONS, WRONG, NEW_TOKENS, PROMPTS = 32, 24, 5, 64, 24

Measure = Callable[[AnswerScore], float | None]
METRICS: dict[str, Measure] = {
    "probability": lambda score: score.probability,
    "extraction strength": extraction_strength,
    "exact memorization": exact_memorization,
    "loss attack": LossAttack().score,
    "zlib attack": ZlibAttack().score,
    "min-k attack": MinKAttack().score,
    "min-k++ attack": MinKPlusPlusAttack().score,
}


class _Tokenizer:
    """What generation needs of a tokenizer; no id ends a text, so that all are equally long."""

    pad_token_id, eos_token_id = PAD, -1

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def _rows(generator: np.random.Generator, prompts: int, answers: int) -> list[list[TokenRow]]:
    """Make prompts of about 55 tokens with answers of about 45."""
    made = []
    for _ in range(prompts):
        prompt = generator.integers(3, VOCABULARY, int(generator.integers(40, 71))).tolist()
        texts = [generator.integers(3, VOCABULARY, int(generator.integers(25, 66))).tolist() for _ in range(answers)]
        made.append([TokenRow((*prompt, *text), len(prompt)) for text in texts])
    return made


def run() -> Iterator[Result]:
    """Make the three comparisons."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    generator = np.random.default_rng(0)
    model = make_model(SHAPE).eval()

    rows = [row for (row,) in _rows(generator, SHAPE.rows, 1)]
    ours, other = _all_metrics(model, rows), _pass_each(model, rows)
    _agree(ours(), other())
    yield _compared(f"seven metrics on {len(rows)} rows, {SHAPE.name}", ours, "a pass each", other, 8.0)

    questions = _rows(generator, QUESTIONS, 2 + WRONG)
    flat = [row for answers in questions for row in answers]
    by_kind = [[answers[i] for answers in questions] for i in range(2 + WRONG)]
    _agree([s.loss for s in score_rows(model, flat, pad_id=PAD)], _losses(model, flat))
    yield _compared(
        f"truth ratio: {QUESTIONS} questions with {2 + WRONG} answers, {SHAPE.name}",
        lambda: score_rows(model, flat, pad_id=PAD),
        "a pass per kind of answer",
        lambda: [_losses(model, answers) for answers in by_kind],
        2.0,
    )
    prompts = [row.ids[: row.prompt_length] for (row,) in _rows(generator, PROMPTS, 1)]
    limits = {"max_new_tokens": NEW_TOKENS, "max_length": 512}
    assert generate(model, _Tokenizer(), prompts, **limits, batch_size=PROMPTS) == _one_by_one(model, prompts)
    yield _compared(
        f"generation of {PROMPTS} x {NEW_TOKENS} tokens, {SHAPE.name}",
        lambda: generate(model, _Tokenizer(), prompts, **limits, batch_size=PROMPTS),
        "one by one",
        lambda: _one_by_one(model, prompts),
        5.0,
    )


def _compared(case: str, ours: Callable[[], Any], name: str, other: Callable[[], Any], bound: float) -> Result:
    ours_s, other_s = side_by_side(ours, other)
    return Result("evaluation", case, ours_s, name, other_s, bound_ratio=bound)


def _agree(ours: Sequence[float | None], other: Sequence[float | None]) -> None:
    np.testing.assert_allclose(np.array(ours, float), np.array(other, float), rtol=1e-3, atol=1e-4)


def _all_metrics(model: Any, rows: list[TokenRow]) -> Callable[[], list[float | None]]:
    def work() -> list[float | None]:
        scores = score_rows(model, rows, pad_id=PAD, moments=range(len(rows)))
        return [measure(score) for measure in METRICS.values() for score in scores]

    return work


def _pass_each(model: Any, rows: list[TokenRow]) -> Callable[[], list[float | None]]:
    def work() -> list[float | None]:
        found = []
        for name, measure in METRICS.items():
            for start in range(0, len(rows), EVERY_BATCH):
                found += [measure(s) for s in _scores(model, rows[start : start + EVERY_BATCH], "++" in name)]
        return found

    return work


def _scores(model: Any, rows: list[TokenRow], moments: bool) -> list[AnswerScore]:
    """Score a batch as it comes, with all logits."""
    batch = labelled(rows)
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    scores = []
    for index, row in enumerate(rows):
        logs = logits[index, row.prompt_length - 1 : len(row.ids) - 1].log_softmax(-1)
        labels = torch.tensor(row.labels)
        mean = variance = None
        if moments:
            mean = (logs.exp() * logs).sum(-1).double().numpy()
            variance = (logs.exp() * logs.square()).sum(-1).double().numpy() - mean**2
        own = logs.gather(-1, labels[:, None])[:, 0].double().numpy()
        scores.append(AnswerScore(own, (logs.argmax(-1) == labels).numpy(), mean, variance))
    return scores


def _losses(model: Any, rows: list[TokenRow]) -> list[float]:
    return [
        score.loss
        for start in range(0, len(rows), EVERY_BATCH)
        for score in _scores(model, rows[start : start + EVERY_BATCH], False)
    ]


def _one_by_one(model: Any, prompts: Sequence[tuple[int, ...]]) -> list[str]:
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                pad_token_id=PAD,
            )
        texts.append(_Tokenizer().decode(output[0, len(prompt) :].tolist(), skip_special_tokens=True))
    return texts
