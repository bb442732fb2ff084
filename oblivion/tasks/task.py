"""The contract of a modality: a task makes rows, batches and outputs of samples, and a learner is a model in memory."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from oblivion.objectives.terms import Answers
from oblivion.types import Adapter, Sample

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


class Learner(Protocol):
    """A model that stays in memory, with one adapter whose values are copied in and out.

    An adapter is a mapping of names to tensors. Where they are LoRA factors, PEFT's names say so
    (`oblivion.models.factors.factor_of`); any other tensor is trained as a whole.
    """

    @property
    def task(self) -> Task:
        """How samples become rows, and rows outputs of this model."""
        ...

    @property
    def model(self) -> Any:
        """What `Task.forward` runs: a model with the present values of the adapter."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The adapter's tensors by name, sorted; gradients flow into them."""
        ...

    @property
    def lora_layers(self) -> Mapping[str, Any]:
        """The layers that carry LoRA factors, by name; empty for a learner without any."""
        ...

    @property
    def shared(self) -> Sequence[str]:
        """The layers with an adapter whose weight is another layer's, too."""
        ...

    @property
    def left_out(self) -> Sequence[str]:
        """Kinds of layers that carry no adapter although all were asked for, in words for a warning."""
        ...

    @property
    def draws(self) -> Sequence[str]:
        """What the base model would draw at random in training mode, which is switched off, in words for a warning."""
        ...

    @property
    def max_length(self) -> int:
        """The largest size of a row that the model takes."""
        ...

    @property
    def width(self) -> int:
        """The hidden size, by which cohorts are formed."""
        ...

    @property
    def device(self) -> str:
        """Where the model is: ``"cpu"`` or ``"cuda"``."""
        ...

    @property
    def size_bytes(self) -> int:
        """The memory that the model takes, its adapter included."""
        ...

    @property
    def repeats_bits(self) -> bool:
        """Whether the same visit gives the same bits each time."""
        ...

    def initial_adapter(self, seed: int) -> Adapter:
        """Return the adapter before any training, which depends on the seed and never on data."""
        ...

    def read(self) -> Adapter:
        """Copy the adapter's present values out: fp32, on the CPU."""
        ...

    def write(self, adapter: Adapter) -> None:
        """Overwrite the adapter in place; raises IntegrityError if its names or shapes are others."""
        ...

    def training(self, checkpointing: bool = False, names: Iterable[str] | None = None) -> AbstractContextManager[None]:
        """Train the adapter, or its tensors in `names`, for a while."""
        ...

    def drop(self, on: bool) -> None:
        """Switch the adapter's own dropout on or off."""
        ...

    def merged(self) -> AbstractContextManager[Any]:
        """Yield the model for evaluation, with the adapter in effect."""
        ...

    def over(self, residual: Adapter) -> AbstractContextManager[None]:
        """Put a LoRA scheme's residual beneath the adapter for a while; an empty one changes nothing."""
        ...

    def adapter_files(self, adapter: Adapter, base_name: str) -> dict[str, bytes]:
        """Return the files in which an adapter is saved, by name."""
        ...

    def save(self, adapter: Adapter, folder: Path, base_name: str) -> None:
        """Write these files as a folder, which appears whole or not at all."""
        ...
