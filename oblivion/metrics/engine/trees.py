"""Forward a prompt with several answers as one sequence, so that the prompt is forwarded once for all of them.

Every answer follows the prompt directly: its position ids begin where the prompt ends, and the attention mask lets it
see the prompt and itself, never another answer (a tree of depth one, as in tree attention for speculative decoding,
Miao et al., 2024, SpecInfer). The logits are those of the separate sequences up to rounding. The last token of an
answer predicts nothing that is asked for, and is not forwarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oblivion.data.tokens import TokenRow
from oblivion.models.attention import sees_all_before
from oblivion.tasks.forward import outputs_at

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 1024
"""The most tokens of a tree: the mask grows with their square, and costs more than a shared prompt saves."""
_TOLERANCE = 1e-4
"""The largest difference, in nats, of a label's log-probability in fp32 and above."""
_LOW_PRECISION = {"bfloat16": 3e-2, "float16": 3e-3}
"""The same in lower precision, as a share of the largest log-probability."""


@dataclass(frozen=True)
class Tree:
    """A prompt, and those of its answers that are forwarded with it.

    Attributes
    ----------
    prompt : tuple of int
        Token ids.
    answers : tuple of tuple of int
        The labels of each answer.
    rows : tuple of int
        Position of each answer in the list that `plant` was given.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]

    @property
    def length(self) -> int:
        """Return how many tokens are forwarded."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)


def plant(rows: Sequence[TokenRow], share: bool, longest: int = LONGEST) -> list[Tree]:
    """Put rows with the same prompt into one tree of at most `longest` tokens, or each into its own."""
    by_prompt: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        by_prompt.setdefault(row.ids[: row.prompt_length] if share else index, []).append(index)
    trees = []
    for group in by_prompt.values():
        prompt = rows[group[0]].ids[: rows[group[0]].prompt_length]
        taken: list[int] = []
        length = len(prompt)
        for index in group:
            more = len(rows[index].labels) - 1
            if taken and length + more > longest:
                trees.append(Tree(prompt, tuple(rows[i].labels for i in taken), tuple(taken)))
                taken, length = [], len(prompt)
            taken.append(index)
            length += more
        trees.append(Tree(prompt, tuple(rows[i].labels for i in taken), tuple(taken)))
    return trees


def tree_logits(model: Any, trees: Sequence[Tree], pad_id: int, room: int = 0) -> tuple[Tensor, Tensor]:
    """Return the logits of every label of some trees, and the labels.

    Parameters
    ----------
    model : transformers or peft model
        Any causal LM; where a tree has more than one answer, one for which `takes_trees`.
    trees : sequence of Tree
        Padded to the longest of them.
    pad_id : int
        Any id of the vocabulary; no token can see the padding.
    room : int, default 0
        Padding beyond the longest tree; with 1 a single row is as long as with its last token.

    Returns
    -------
    logits : Tensor (T, V)
        Tree by tree, answer by answer, token by token.
    labels : Tensor (T,) int64
        In the same order.
    """
    import torch

    longest = max(tree.length for tree in trees) + room
    ids = torch.full((len(trees), longest), pad_id)
    places = torch.zeros_like(ids)
    branch = torch.full_like(ids, -1)
    rows: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    for number, tree in enumerate(trees):
        start = len(tree.prompt)
        sequence, where, which = list(tree.prompt), list(range(start)), [0] * start
        for index, answer in enumerate(tree.answers):
            rows += [number] * len(answer)
            positions += [start - 1, *range(len(sequence), len(sequence) + len(answer) - 1)]
            labels += answer
            sequence += answer[:-1]
            where += range(start, start + len(answer) - 1)
            which += [index + 1] * (len(answer) - 1)
        ids[number, : tree.length] = torch.tensor(sequence)
        places[number, : tree.length] = torch.tensor(where)
        branch[number, : tree.length] = torch.tensor(which)
    device = model.device
    ids, target = ids.to(device), torch.tensor(labels, device=device)
    asked = (torch.tensor(rows, device=device), torch.tensor(positions, device=device))
    if all(len(tree.answers) == 1 for tree in trees):
        return outputs_at(model, ids, *asked)["logits"], target
    mask = _mask(branch.to(device), model.dtype)
    return outputs_at(model, ids, *asked, mask=mask, places=places.to(device))["logits"], target


def _mask(branch: Tensor, dtype: Any) -> Tensor:
    """Return what to add to attention scores, (B, 1, L, L): 0 where a token may look, else the lowest number.

    `branch` (B, L) is 0 on the prompt, the number of its answer elsewhere, and -1 on padding, which sees itself alone.
    """
    import torch

    query, key = branch[:, :, None], branch[:, None, :]
    order = torch.arange(branch.shape[1], device=branch.device)
    seen = ((key == 0) & (query >= 0)) | ((query == key) & (query >= 0))
    seen = (seen & (order[None, :] <= order[:, None])) | (order[None, :] == order[:, None])
    return torch.zeros(seen.shape, dtype=dtype, device=branch.device).masked_fill_(~seen, torch.finfo(dtype).min)[
        :, None
    ]


def takes_trees(model: Any, trees: Sequence[Tree], pad_id: int) -> bool:
    """Return whether a model gives the same logits in these trees as row by row.

    It does not where attention ends at a window that is shorter than the longest row (the tree's mask would replace the
    window's), or where a state runs from token to token; both are read from the model's config. For whatever the config
    does not say, two trees are tried: the longest one, and the one with the longest row, since what shorter ones show
    need not hold for them. The answer is kept for trees of these lengths: it depends on the architecture, not on the
    weights.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    several = [tree for tree in trees if len(tree.answers) > 1]
    if not several:
        return True
    longest, deepest = max(several, key=lambda tree: tree.length), max(several, key=_depth)
    if not sees_all_before(plain, _depth(deepest)):
        return False
    known: dict[tuple[int, int], bool] = vars(plain).setdefault("_oblivion_trees", {})
    lengths = (longest.length, _depth(deepest))
    if lengths not in known:
        known[lengths] = all(_is_taken(plain, tree, pad_id) for tree in {id(t): t for t in (longest, deepest)}.values())
    return known[lengths]


def _is_taken(model: Any, tree: Tree, pad_id: int) -> bool:
    """Return whether the longest answer of a tree, and its last, are as likely there as alone."""
    import torch

    last = len(tree.answers) - 1
    tried = sorted({last, max(range(last + 1), key=lambda index: len(tree.answers[index]))})
    alone = [Tree(tree.prompt, (tree.answers[index],), (index,)) for index in tried]
    try:
        with torch.inference_mode():
            together, apart = (_log_probs(*tree_logits(model, some, pad_id)) for some in ([tree], alone))
    except (RuntimeError, TypeError, ValueError):
        return False
    ends = [sum(map(len, tree.answers[: index + 1])) for index in tried]
    same = torch.cat([together[end - len(tree.answers[index]) : end] for index, end in zip(tried, ends, strict=True)])
    tolerance = _LOW_PRECISION.get(str(model.dtype).removeprefix("torch."))
    allowed = _TOLERANCE if tolerance is None else tolerance * float(apart.abs().max())
    return float((same - apart).abs().max()) <= allowed


def _depth(tree: Tree) -> int:
    """Return the tokens of the longest row of a tree."""
    return len(tree.prompt) + max(map(len, tree.answers))


def _log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, labels[:, None])
