"""The input and the output of an objective: tensors over answer tokens, and sums per sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from oblivion.errors import InputError
from oblivion.named_statistics import Statistic
from oblivion.objectives.needs import Role, parse_needs

if TYPE_CHECKING:
    from torch import Tensor

    from oblivion.types import Adapter


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
    state : mapping of str to Tensor (B,)
        The state of a `Stateful` objective for each sequence; empty for others.
    """

    labels: Tensor
    rows: Tensor
    size: int
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def per_sequence(self, values: Tensor) -> Tensor:
        """Sum a value per token, (T,), into one per sequence, (B,)."""
        return values.new_zeros(self.size).index_add(0, self.rows, values)

    def counts(self, like: Tensor) -> Tensor:
        """Count the labelled tokens of each sequence, (B,), in the dtype of `like`."""
        return self.per_sequence(like.new_ones(self.labels.shape[0]))


Outputs: TypeAlias = "Mapping[Role, Mapping[str, Tensor]]"
"""Role to kind to one line per label, (T, ...): row t of the logits (T, V), in at least fp32, predicts label t. Outputs
of a teacher are called ``"reference.<kind>"`` or ``"base.<kind>"``, and no gradient flows into them."""

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
        The outputs that the loss is made from, and the roles that must have rows; see `oblivion.objectives.needs`.
        The trainer makes exactly these, for the roles that have rows.
    accepts_retain : bool
        Whether retain rows are used when they are there.
    reduction : str
        ``"token"`` or ``"sequence"``: what the forget term is averaged over. Retain terms are per token.
    """

    needs: frozenset[str]
    accepts_retain: bool
    reduction: Literal["token", "sequence"]

    def loss(self, outputs: Outputs, batch: Batch) -> Mapping[Role, Term]:
        """Compute the terms by role; the trainer reduces, weighs and adds them."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """An objective with numbers of its own that change from step to step of a visit.

    `Answers.state` has them, one value per sequence, because a batch may hold the rows of several clients.
    """

    def init(self) -> Mapping[str, float]:
        """Return the state at the beginning of a visit."""
        ...

    def update(self, state: Mapping[str, float], losses: Mapping[Role, float]) -> Mapping[str, float]:
        """Return the state after a step, given the loss of each role in that step, before its weight."""
        ...


@runtime_checkable
class CombinesGradients(Protocol):
    """An objective whose step is not along the sum of its terms' gradients."""

    def combine_gradients(self, forget: Tensor, retain: Tensor) -> Tensor:
        """Return the gradient of a step from those of the two terms with their weights, each (clients, values).

        A row must depend on the same row of the arguments alone.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a visit.

    Attributes
    ----------
    delta : Adapter
        The client's update that is sent, with the names and shapes of what was trained, in fp32.
    statistics : mapping of str to Tensor
        What is sent beside it: exactly what the schema declares.
    private : Adapter
        What the client keeps for itself at its host, in fp32; nothing is written where it is empty.
    """

    delta: Adapter
    statistics: Adapter = field(default_factory=dict)
    private: Adapter = field(default_factory=dict)


@runtime_checkable
class FinishesVisit(Protocol):
    """An objective that says what a visit sends beside the update, and what the client keeps for itself.

    It matters in visits alone: a round of learning sends updates and nothing else.
    """

    def schema(self, adapter: Adapter) -> Mapping[str, Statistic]:
        """Return what every client sends, given the global adapter; it must depend on names and shapes alone."""
        ...

    def finish(self, before: Adapter, delta: Adapter, private: Adapter) -> Outcome:
        """Return the result of a visit, as a pure function of the arguments.

        Parameters
        ----------
        before : Adapter
            What the client began from: the global adapter, with its own tensors in the place of those of their name.
        delta : Adapter
            What training changed.
        private : Adapter
            What the client kept at its last visit; empty at the first.
        """
        ...


def token_nll(logits: Tensor, answers: Answers) -> Tensor:
    """Compute the negative log-likelihood of every label, (T,), in nats, from logits (T, V)."""
    import torch

    return torch.nn.functional.cross_entropy(logits, answers.labels, reduction="none")


def objective_from(name: str, parameters: Mapping[str, Any], key: str = "objective") -> Objective:
    """Make a registered objective with its parameters; `key` is the setting that they come from, for messages.

    Raises
    ------
    ConfigError
        If the name or a parameter is unknown; the message lists what there is.
    InputError
        If it needs what is no kind of output.
    """
    from oblivion.objectives import objectives
    from oblivion.parameters import build

    objective: Objective = build(objectives, name, parameters, key)
    try:
        needs = parse_needs(objective.needs)
    except ValueError as error:
        raise InputError(f"objective '{name}' is not valid: {error}") from None
    if objective.accepts_retain != any(need.role == "retain" for need in needs):
        raise InputError(
            f"objective '{name}' is not valid: accepts_retain is {objective.accepts_retain}, but it needs "
            f"{'no' if objective.accepts_retain else 'an'} output of the retain rows"
        )
    return objective
