"""Classification of vectors by a linear model: logits ``W x + b``, whose softmax is the probability of each class.

This is multinomial logistic regression (Bishop, 2006, section 4.3.4): the objective ``lm`` is its cross entropy. A row
has one label and the size 1, so that costs count rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oblivion.data.vectors import classes_of, features_of
from oblivion.errors import InputError
from oblivion.objectives.terms import Answers
from oblivion.types import Sample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class VectorRow:
    """A vector; `label` is its class, or None for a row that fills up a batch."""

    features: tuple[float, ...]
    label: int | None

    @property
    def size(self) -> int:
        """Return 1: every row costs the same."""
        return 1

    @property
    def labels(self) -> tuple[int, ...]:
        """Return the class."""
        return () if self.label is None else (self.label,)


@dataclass(frozen=True)
class VectorBatch:
    """Vectors that are forwarded together.

    Attributes
    ----------
    features : Tensor (B, d)
        The vectors of all rows.
    answers : Answers
        The classes, and which rows have them.
    size : int
        B.
    """

    features: Tensor
    answers: Answers
    size: int


@dataclass(frozen=True)
class VectorClasses:
    """The task of classifying vectors.

    Parameters
    ----------
    features, classes : int
        The length of a vector, and the number of classes.
    """

    features: int
    classes: int

    def check(self) -> None:
        """Accept every setting: there is none that could be wrong."""

    def size(self, sample: Sample) -> int:
        """Return 1: every row costs the same."""
        return 1

    def encode(self, sample: Sample) -> VectorRow:
        """Read a sample's vector and class.

        Raises
        ------
        InputError
            If a feature is not finite, or the vector or its class does not go with the model.
        """
        features, classes = features_of(sample), classes_of(sample)
        if len(features) != self.features:
            raise InputError(f"{sample.id}: has {len(features)} features, and the model has {self.features}")
        if classes != self.classes:
            raise InputError(f"{sample.id}: has {classes} classes, and the model has {self.classes}")
        return VectorRow(features, int(sample.answer))

    def alternate(self, sample: Sample) -> VectorRow:
        """Return the sample's vector with the next class, cyclically, in place of its own."""
        row = self.encode(sample)
        return VectorRow(row.features, (int(sample.answer) + 1) % self.classes)

    def collate(self, rows: Sequence[VectorRow], device: Any = "cpu") -> VectorBatch:
        """Put rows into one tensor."""
        import torch

        owners = [index for index, row in enumerate(rows) if row.label is not None]
        labels = [label for row in rows for label in row.labels]
        answers = Answers(torch.tensor(labels, device=device), torch.tensor(owners, device=device), len(rows))
        features = torch.tensor([row.features for row in rows], dtype=torch.float32, device=device)
        return VectorBatch(features, answers, len(rows))

    def blank(self, row: VectorRow) -> VectorRow:
        """Return the row without its class."""
        return VectorRow(row.features, None)

    def kinds(self, model: Any) -> tuple[str, ...]:
        """Return the logits, which are all that a linear model has."""
        return ("logits",)

    def forward(self, model: Any, batch: VectorBatch, wants: Collection[str]) -> dict[str, Tensor]:
        """Compute the logits (T, classes) of the rows that have a class."""
        features = batch.features.to(next(iter(model.parameters())).dtype)
        return {"logits": model(features[batch.answers.rows])} if "logits" in wants else {}
