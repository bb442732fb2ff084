"""A base model's own randomness, which is switched off while clients train, and GPU kernels that repeat their bits.

A visit must be a function of (seed, round, client) and of the client's rows. Dropout, layer drop, router noise and
running statistics of the base model are not: they draw from the process's generator, or carry over from earlier visits.
So the base model is always in evaluation mode (`oblivion.models.resident`); `base_draws` names what that switches off.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_DRAWS = re.compile(r"drop|jitter")
_ELSEWHERE = re.compile(r"class|summary|seq_|token_")
"""The settings of heads for other tasks, which a causal language model does not have."""
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def base_draws(model: Any) -> tuple[str, ...]:
    """Say what a base model would draw at random in training mode, such as ``attention_dropout = 0.1``.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Before an adapter is attached, or after it: dropout of an adapter is not the base model's.
    """
    told = dict(sorted(_probabilities(model.config.get_text_config().to_dict())))
    if not told:
        layers = ((name, module) for name, module in model.named_modules() if "lora_" not in name)
        told = {name: module.p for name, module in layers if type(module).__name__.startswith("Dropout") and module.p}
    return tuple(f"{name} = {value:g}" for name, value in told.items())


def _probabilities(settings: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in settings.items():
        if not isinstance(name, str):  # a table of labels has numbers as its keys
            continue
        if isinstance(value, Mapping):
            yield from _probabilities(value)
        elif _DRAWS.search(name) and not _ELSEWHERE.search(name) and type(value) in (int, float) and value > 0:
            yield name, value


def ask_for_deterministic_kernels() -> None:
    """Make this process use CUDA kernels that repeat their bits; call this before the first kernel runs."""
    import torch

    os.environ.setdefault(_WORKSPACE, ":4096:8")  # cuBLAS reads it when it starts
    # Filling uninitialised memory costs time, and nothing here reads such memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)  # else the backward pass of fused attention sums with atomics


def repeats_bits(step: Callable[[], None]) -> bool:
    """Return whether a training step has deterministic kernels throughout; if not, others are allowed from then on.

    Parameters
    ----------
    step : callable
        A forward and backward pass.
    """
    import torch

    try:
        step()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        torch.use_deterministic_algorithms(True, warn_only=True)
        return False
    return True
