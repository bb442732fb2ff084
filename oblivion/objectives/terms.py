"""What goes into an objective and what comes out: tensors over answer tokens, sums per sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Role: TypeAlias = Literal["forget", "retain"]


@dataclass(frozen=True)
class Answers:
    """The labelled tokens of a batch of B sequences, T in all, without any padding.

    Attributes
    ----------
    labels : Tensor (T,) int64
        The token ids to be predicted: answer tokens and EOS, already shifted.
    rows : Tensor (T,) int64
        Which of the B sequences a token belongs to.
    size : int
        B.
    """

    labels: Tensor
    rows: Tensor
    size: int

    def per_sequence(self, values: Tensor) -> Tensor:
        """Sum a value per token, (T,), into one per sequence, (B,)."""
        return values.new_zeros(self.size).index_add(0, self.rows, values)

    def counts(self, like: Tensor) -> Tensor:
        """Labelled tokens per sequence, (B,), in the dtype of `like`."""
        return self.per_sequence(like.new_ones(self.labels.shape[0]))


Outputs: TypeAlias = "Mapping[Role, Tensor]"
"""Role to logits, (T, V) in at least fp32: row t holds the scores from which label t is predicted."""

Batch: TypeAlias = "Mapping[Role, Answers]"


@dataclass(frozen=True)
class Term:
    """One role's loss: per-sequence sums (B,) and the counts (B,) they are to be divided by.

    The loss over any set of sequences is ``sums.sum() / counts.sum()``. For a token-reduced term the counts are
    labelled tokens, for a sequence-reduced one they are ones.
    """

    sums: Tensor
    counts: Tensor
    weight: float = 1.0


class Objective(Protocol):
    """A local loss: a frozen dataclass of its parameters and a pure function on tensors.

    Attributes
    ----------
    needs : frozenset of str
        Of ``reference`` (logits of the adapter before training) and ``retain`` (rows to be kept).
    accepts_retain : bool
        Whether retain rows are used when they are there.
    reduction : str
        ``"token"`` or ``"sequence"``: what the forget term is averaged over. Retain terms are per token.
    """

    needs: frozenset[str]
    accepts_retain: bool
    reduction: Literal["token", "sequence"]

    def loss(self, outputs: Outputs, batch: Batch, reference_outputs: Outputs) -> Mapping[Role, Term]:
        """Compute the terms by role; the trainer reduces, weighs and adds them."""
        ...


def token_nll(logits: Tensor, answers: Answers) -> Tensor:
    """Negative log-likelihood of every label, (T,), from logits (T, V); nats."""
    import torch

    return torch.nn.functional.cross_entropy(logits, answers.labels, reduction="none")


def objective_from(name: str, parameters: Mapping[str, Any]) -> Objective:
    """Make a registered objective with its parameters.

    Raises
    ------
    ConfigError
        If the name or a parameter is unknown; the message lists what there is.
    """
    from oblivion.objectives import objectives
    from oblivion.parameters import build

    objective: Objective = build(objectives, name, parameters, "forget.parameters")
    return objective
