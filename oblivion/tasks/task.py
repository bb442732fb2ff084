"""The contract of a modality: training and evaluation know rows, batches and outputs by kind, and nothing of text."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from oblivion.objectives.terms import Answers
from oblivion.types import Sample

if TYPE_CHECKING:
    from torch import Tensor


class Row(Protocol, Hashable):
    """One sample as the model takes it. Rows that are equal are the same row under several ids."""

    @property
    def size(self) -> int:
        """What a forward pass over the row costs, in the task's own unit; rows of similar size share a batch."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """What the model has to predict, in order."""
        ...


class Batch(Protocol):
    """Rows that are forwarded together."""

    @property
    def answers(self) -> Answers:
        """The labels of all rows."""
        ...

    @property
    def size(self) -> int:
        """The sizes of its rows, added up."""
        ...


class Task(Protocol):
    """How samples become rows, and rows become outputs."""

    def check(self) -> None:
        """Refuse settings with which no sample can be encoded; raises InputError."""
        ...

    def size(self, sample: Sample) -> int:
        """Return the size of the sample's row, however much the model can take."""
        ...

    def encode(self, sample: Sample) -> Row | None:
        """Encode one sample; None if it is longer than the model can take, for a row is never cut.

        Raises
        ------
        InputError
            If the sample cannot be encoded; the message begins with its id.
        """
        ...

    def alternate(self, sample: Sample) -> Row | None:
        """Encode the sample with another answer in place of its own; None if it is too long.

        Raises
        ------
        InputError
            If the task has no alternates.
        """
        ...

    def collate(self, rows: Sequence[Any], device: Any = "cpu") -> Any:
        """Put rows, which this task encoded, into one `Batch`."""
        ...

    def blank(self, row: Any) -> Any:
        """Return a row without labels, which fills up the smaller batches of a cohort; `row` is a neighbour."""
        ...

    def kinds(self, model: Any) -> tuple[str, ...]:
        """Return the kinds of outputs that `forward` can make with a model."""
        ...

    def forward(self, model: Any, batch: Any, wants: Collection[str]) -> dict[str, Tensor]:
        """Run the model once and return the kinds of outputs in `wants`, each with one line per label, (T, ...).

        Every task has ``"logits"``, (T, V) in at least fp32, from which the labels are predicted.
        """
        ...
