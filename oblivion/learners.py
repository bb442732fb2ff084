"""Find the task of a run, and its model, from ``model.name``, before and after anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from oblivion.config import ModelConfig, RunConfig
from oblivion.models.adapter_folder import read_adapter_folder
from oblivion.models.loading import locate, model_digest, resolve_dtype
from oblivion.models.resident import load_resident
from oblivion.parameters import build
from oblivion.tasks import tasks
from oblivion.tasks.task import Learner, Task
from oblivion.types import Adapter


class Models(Protocol):
    """The models of a task; what it says of them needs none in memory."""

    def locate(self, config: ModelConfig) -> str:
        """Return where the model is; raises InputError or ConfigError if there is none."""
        ...

    def digest(self, config: ModelConfig) -> str:
        """Return a digest of the model as it is before any training."""
        ...

    def resolve_dtype(self, config: ModelConfig) -> str:
        """Return ``"float32"`` or ``"bfloat16"``."""
        ...

    def load(self, config: RunConfig) -> Learner:
        """Load the model; a process keeps the last one, so that nobody holds a second copy."""
        ...

    def read_adapter(self, folder: Path) -> Adapter:
        """Read an adapter from a folder that `Learner.save` wrote; raises InputError if it is not one."""
        ...


class LanguageModels:
    """Causal language models with LoRA adapters, which learn answers to questions."""

    def locate(self, config: ModelConfig) -> str:
        """Return the folder or the hub id of the base model."""
        return locate(config)

    def digest(self, config: ModelConfig) -> str:
        """Return the digest of the base model's files."""
        return model_digest(config)

    def resolve_dtype(self, config: ModelConfig) -> str:
        """Return the dtype of the base model's weights."""
        return resolve_dtype(config)

    def load(self, config: RunConfig) -> Learner:
        """Load the base model with an adapter."""
        return load_resident(config.model, config.lora, config.train.max_length, config.data.template)

    def read_adapter(self, folder: Path) -> Adapter:
        """Read an adapter in PEFT format."""
        return read_adapter_folder(folder).tensors


def models_of(config: ModelConfig) -> Models:
    """Return the models of the task that ``model.name`` stands for, with ``model.parameters``.

    Raises
    ------
    ConfigError
        If the task does not have a parameter, or refuses its value.
    InputError
        If the task comes from another package and cannot be loaded, or lacks what a task has.
    """
    models: Models = build(tasks, _task_name(config), config.parameters, "model.parameters")
    return models


def _task_name(config: ModelConfig) -> str:
    return config.name if config.name in tasks.names() else "causal_lm"


def learner_of(config: RunConfig) -> Learner:
    """Return the model of a run in memory.

    Raises
    ------
    OblivionError
        If the model cannot be loaded, does not go with the config, or lacks what a learner has.
    """
    learner = models_of(config.model).load(config)
    name = _task_name(config.model)
    tasks.check_has(name, learner, _members(Learner))
    tasks.check_has(name, learner.task, _members(Task))
    return learner


def _members(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]
