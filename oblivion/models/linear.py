"""The model ``linear``: logistic regression on vectors, whose weight and bias are the adapter.

There is no base model. Before any training all parameters are zero, which gives every class the same probability.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from oblivion.config import ModelConfig, RunConfig
from oblivion.data.federation import resolve
from oblivion.data.vectors import classes_of, features_of
from oblivion.errors import ConfigError, InputError
from oblivion.files import write_folder
from oblivion.models.adapter_folder import CONFIG, WEIGHTS
from oblivion.models.resident import check_adapter, weight_bytes
from oblivion.outside import read
from oblivion.tasks.linear import VectorClasses
from oblivion.types import Adapter

NAME = "linear"
_LARGEST = 2**30
"""Bytes of a file of parameters: more than the largest vectors with the most classes take."""


class LinearModel:
    """A logistic regression in memory; see `oblivion.tasks.task.Learner`.

    Parameters
    ----------
    features, classes : int
        The length of a vector, and the number of classes.
    """

    shared = left_out = draws = ()
    max_length = 1
    device = "cpu"
    repeats_bits = True

    def __init__(self, features: int, classes: int) -> None:
        import torch

        self.task = VectorClasses(features, classes)
        self.model = torch.nn.Linear(features, classes)
        self.parameters = dict(sorted(self.model.named_parameters()))
        self.lora_layers: dict[str, Any] = {}
        self.width = features
        self.write(self.initial_adapter(0))

    @property
    def size_bytes(self) -> int:
        """The memory that the parameters take."""
        return sum(p.numel() * p.element_size() for p in self.parameters.values())

    def initial_adapter(self, seed: int) -> Adapter:
        """Return zeros: the loss is convex, so no symmetry has to be broken."""
        import torch

        return {name: torch.zeros(tuple(p.shape)) for name, p in self.parameters.items()}

    def read(self) -> Adapter:
        """Copy the parameters' present values out."""
        import torch

        return {n: p.detach().to("cpu", torch.float32, copy=True) for n, p in self.parameters.items()}

    def write(self, adapter: Adapter) -> None:
        """Overwrite the parameters in place; raises IntegrityError if names or shapes are others."""
        import torch

        check_adapter(adapter, self.parameters)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(adapter[name])

    @contextlib.contextmanager
    def training(self, checkpointing: bool = False, names: Iterable[str] | None = None) -> Iterator[None]:
        """Train the parameters, or those in `names`, for a while.

        Raises
        ------
        ConfigError
            If activations are to be computed again: there are none.
        """
        if checkpointing:
            raise ConfigError(
                f"train.gradient-checkpointing: the model '{NAME}' has no layers for that; set it to false"
            )
        chosen = self.parameters.keys() if names is None else set(names)
        frozen = [parameter for name, parameter in self.parameters.items() if name not in chosen]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def drop(self, on: bool) -> None:
        """Do nothing: there is no dropout."""

    @contextlib.contextmanager
    def merged(self) -> Iterator[Any]:
        """Yield the model; nothing has to be merged."""
        yield self.model

    @contextlib.contextmanager
    def over(self, residual: Adapter) -> Iterator[None]:
        """Do nothing: schemes that keep a residual are refused for an adapter without LoRA factors."""
        yield

    def adapter_files(self, adapter: Adapter, base_name: str) -> dict[str, bytes]:
        """Return the parameters as safetensors, and their sizes as JSON, under the names that PEFT gives its files."""
        check_adapter(adapter, self.parameters)
        said = {"model": base_name, "features": self.task.features, "classes": self.task.classes}
        return {CONFIG: f"{json.dumps(said, indent=2)}\n".encode(), WEIGHTS: weight_bytes(adapter)}

    def save(self, adapter: Adapter, folder: Path, base_name: str) -> None:
        """Write these files as a folder, which appears whole or not at all."""
        write_folder(folder, self.adapter_files(adapter, base_name))


class LinearModels:
    """Logistic regressions, of which each is as large as the rows of its run ask for."""

    def locate(self, config: ModelConfig) -> str:
        """Return the model's name.

        Raises
        ------
        ConfigError
            If a revision is asked for.
        """
        if config.revision:
            raise ConfigError(f"model.revision = '{config.revision}': the model '{NAME}' has none; leave it empty")
        return NAME

    def digest(self, config: ModelConfig) -> str:
        """Return the digest of the name: every such model begins with zeros."""
        return hashlib.sha256(NAME.encode()).hexdigest()

    def resolve_dtype(self, config: ModelConfig) -> str:
        """Return ``"float32"``.

        Raises
        ------
        ConfigError
            If another dtype is asked for.
        """
        if config.dtype == "bfloat16":
            raise ConfigError(f"model.dtype = 'bfloat16': the model '{NAME}' is float32; set it to 'auto'")
        return "float32"

    def load(self, config: RunConfig) -> LinearModel:
        """Return a model for the rows of a run.

        Raises
        ------
        InputError
            If its first row is no vector with a class.
        """
        first = next(iter(resolve(config).clients.values()))[0]
        try:
            return _loaded(len(features_of(first)), classes_of(first))
        except InputError as error:
            raise InputError(
                f"{error}; model.name = '{NAME}' needs vectors: data.name = 'gaussian', 'sklearn' or 'vectors'"
            ) from None

    def read_adapter(self, folder: Path) -> Adapter:
        """Read the parameters from a folder that a run wrote.

        Raises
        ------
        InputError
            If the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        content = read(folder / WEIGHTS, "the parameters of a model", most=_LARGEST)
        try:
            tensors: Adapter = load(content)
        except SafetensorError as error:
            raise InputError(f"{folder / WEIGHTS}: not the parameters of a model: {error}") from None
        return {name: tensors[name].float().clone() for name in sorted(tensors)}


@functools.lru_cache(maxsize=1)
def _loaded(features: int, classes: int) -> LinearModel:
    return LinearModel(features, classes)
