"""Score all answers in one teacher-forced pass, which gives every likelihood-based metric what it needs.

The answers of a prompt share one sequence (`oblivion.metrics.engine.trees`), sequences of similar length share a
batch, and logits are made at answer positions only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oblivion.data.tokens import TokenRow
from oblivion.errors import InputError
from oblivion.metrics.engine.context import AnswerScore
from oblivion.metrics.engine.trees import LONGEST, Tree, plant, takes_trees, tree_logits
from oblivion.models.attention import changes_with_length
from oblivion.models.loading import context_of

if TYPE_CHECKING:
    from torch import Tensor

_MAX_LOGITS = 1 << 27  # in numbers: 512 MiB in fp32, or 1024 answer tokens a batch on a vocabulary of 128 k
_CPU_TOKENS = 1024  # on a CPU, larger batches do not fit into its caches, and a pass takes 10 to 20 % longer
_CHUNK = 1 << 24  # in numbers that are normalised at a time, since each takes several temporaries


def score_rows(
    model: Any,
    rows: Sequence[TokenRow],
    *,
    pad_id: int,
    max_tokens: int = 4096,
    moments: Collection[int] = (),
) -> list[AnswerScore]:
    """Score every row's labels.

    Parameters
    ----------
    model : transformers or peft model
        Any causal LM, in evaluation mode.
    rows : sequence of TokenRow
        Prompts with answers; a row's numbers do not depend on the others beyond rounding (about 1e-6).
    pad_id : int
        Any id of the vocabulary, because no answer can see the padding after it.
    max_tokens : int, default 4096
        The most tokens in a batch, padding included (a longer sequence goes alone); on a CPU never above 1,024.
    moments : collection of int
        Positions in `rows` whose mean and variance over the vocabulary are wanted.

    Returns
    -------
    list of AnswerScore
        One per row, in order, without texts.

    Raises
    ------
    InputError
        If the model gives a log-probability that is not finite.
    """
    import torch

    if not rows:
        return []
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    scores: list[AnswerScore | None] = [None] * len(rows)
    trees, alone = _trees(model, rows, pad_id)
    if model.device.type == "cpu":
        max_tokens = min(max_tokens, _CPU_TOKENS)
    if alone:
        max_tokens = 1
    with torch.inference_mode():
        for batch in _batches(trees, max_tokens, max(1, _MAX_LOGITS // vocabulary)):
            logits, labels = tree_logits(model, batch, pad_id, room=int(alone))
            answers = [index for tree in batch for index in tree.rows]
            numbers = label_statistics(logits, labels, any(index in moments for index in answers))
            start = 0
            for index in answers:
                stop = start + len(rows[index].labels)
                scores[index] = answer_score(numbers[start:stop], moments=index in moments)
                start = stop
    return [score for score in scores if score is not None]


def _trees(model: Any, rows: Sequence[TokenRow], pad_id: int) -> tuple[list[Tree], bool]:
    """Return the rows as trees, and whether each has to be forwarded alone and whole."""
    if changes_with_length(model, max(len(row.ids) for row in rows)):
        return plant(rows, share=False), True
    for longest in (LONGEST, min(LONGEST, context_of(model.config))):  # some models have no mask beyond their context
        trees = plant(rows, share=True, longest=longest)
        if takes_trees(model, trees, pad_id):
            return trees, False
    return plant(rows, share=False), False


def _batches(trees: Sequence[Tree], max_tokens: int, max_answers: int) -> Iterator[list[Tree]]:
    """Yield trees in batches of similar length, within both budgets; those with one answer need no mask: apart."""
    batch: list[Tree] = []
    answers = 0
    for tree in sorted(trees, key=lambda tree: (len(tree.answers) > 1, tree.length, tree.rows)):
        more = sum(map(len, tree.answers))
        other = bool(batch) and (len(batch[0].answers) > 1) != (len(tree.answers) > 1)
        if batch and (other or (len(batch) + 1) * tree.length > max_tokens or answers + more > max_answers):
            yield batch
            batch, answers = [], 0
        batch.append(tree)
        answers += more
    if batch:
        yield batch


def label_statistics(logits: Tensor, labels: Tensor, moments: bool) -> NDArray[np.float64]:
    """Return (log-probability, greedy match, mean, variance) of each of T labels: array (T, 4) float64."""
    import torch

    parts = []
    step = max(1, _CHUNK // logits.shape[-1])
    for start in range(0, len(labels), step):
        chunk, target = logits[start : start + step], labels[start : start + step, None]
        logs = chunk.log_softmax(-1)
        own = logs.gather(-1, target)[:, 0]
        matches = chunk.argmax(-1) == target[:, 0]
        mean = variance = torch.zeros_like(own)
        if moments:
            probabilities = logs.exp()
            mean = (probabilities * logs).sum(-1)
            variance = (probabilities * (logs - mean[:, None]).square()).sum(-1)
        parts.append(torch.stack([own.double(), matches.double(), mean.double(), variance.double()], dim=1))
    numbers: NDArray[np.float64] = torch.cat(parts).cpu().numpy()
    if not np.isfinite(numbers).all():
        raise InputError(
            "the model gives log-probabilities that are not finite; its weights are damaged or its precision "
            "overflows (try model.dtype = 'float32')"
        )
    return numbers


def answer_score(numbers: NDArray[np.float64], *, moments: bool, ended: bool = True) -> AnswerScore:
    """Return the score of an answer from the `label_statistics` of its T labels, (T, 4)."""
    own, matches, mean, variance = numbers.T
    return AnswerScore(
        log_probs=own.copy(),
        matches=matches.astype(bool),
        mean=mean.copy() if moments else None,
        variance=variance.copy() if moments else None,
        ended=ended,
    )
