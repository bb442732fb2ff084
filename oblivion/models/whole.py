"""Models whose parameters are all trained: the adapter is the whole model, and there is no base model beneath it.

A task whose models are small inherits from `WholeModels`, and wraps a PyTorch module in a `WholeModel`.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from oblivion.config import ModelConfig, RunConfig
from oblivion.errors import ConfigError, InputError
from oblivion.files import write_folder
from oblivion.models.adapter_folder import CONFIG, WEIGHTS
from oblivion.models.resident import check_adapter, weight_bytes
from oblivion.tasks.task import Learner, Task
from oblivion.types import Adapter
from oblivion.untrusted import read

_LARGEST = 2**30
"""The most bytes of a file of parameters: more than the largest vectors with the most classes take."""


class WholeModel:
    """A PyTorch module in memory, whose parameters are the adapter; see `oblivion.tasks.task.Learner`.

    Before any training all parameters are zero. That suits a model whose loss is convex in its parameters; a module
    that has hidden layers overrides `initial_adapter`, because zeros would never become different from each other.

    Parameters
    ----------
    name : str
        The name of the task in ``model.name``, for messages.
    task : Task
        How samples become rows, and rows outputs of the module.
    module : torch.nn.Module
        The model, without dropout or anything else that draws at random.
    sizes : mapping of str to int
        The sizes of the model, which are saved beside its parameters.
    width : int
        The length of what the module takes of each row.
    max_length : int, default 1
        The largest size of a row that the task encodes.
    """

    shared = left_out = draws = ()
    device = "cpu"
    repeats_bits = True

    def __init__(
        self, name: str, task: Task, module: Any, sizes: Mapping[str, int], width: int, max_length: int = 1
    ) -> None:
        self.name = name
        self.task = task
        self.model = module
        self.sizes = sizes
        self.width = width
        self.max_length = max_length
        self.parameters = dict(sorted(module.named_parameters()))
        self.lora_layers: dict[str, Any] = {}
        self.write(self.initial_adapter(0))

    @property
    def size_bytes(self) -> int:
        """The memory that the parameters take."""
        return sum(p.numel() * p.element_size() for p in self.parameters.values())

    def initial_adapter(self, seed: int) -> Adapter:
        """Return zeros."""
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
                f"train.gradient-checkpointing: the model '{self.name}' has no layers for that; set it to false"
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
        said = {"model": base_name, **self.sizes}
        return {CONFIG: f"{json.dumps(said, indent=2)}\n".encode(), WEIGHTS: weight_bytes(adapter)}

    def save(self, adapter: Adapter, folder: Path, base_name: str) -> None:
        """Write these files as a folder, which appears whole or not at all."""
        write_folder(folder, self.adapter_files(adapter, base_name))


class WholeModels(abc.ABC):
    """What is registered for a task with such models; see `oblivion.learners.Models`.

    Its keyword arguments are ``model.parameters``.

    Attributes
    ----------
    name : str
        The name of the task in ``model.name``.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Return what ``model.name`` calls the task; a class attribute will do."""

    def locate(self, config: ModelConfig) -> str:
        """Return the model's name.

        Raises
        ------
        ConfigError
            If a revision is asked for.
        """
        if config.revision:
            raise ConfigError(f"model.revision = '{config.revision}': the model '{self.name}' has none; leave it empty")
        return self.name

    def digest(self, config: ModelConfig) -> str:
        """Return the digest of the name, because every such model begins with the same values."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    def resolve_dtype(self, config: ModelConfig) -> str:
        """Return ``"float32"``.

        Raises
        ------
        ConfigError
            If another dtype is asked for.
        """
        if config.dtype == "bfloat16":
            raise ConfigError(f"model.dtype = 'bfloat16': the model '{self.name}' is float32; set it to 'auto'")
        return "float32"

    @abc.abstractmethod
    def load(self, config: RunConfig) -> Learner:
        """Return a model for the rows of a run; a process keeps the last one."""

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
