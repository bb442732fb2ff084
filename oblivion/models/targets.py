"""Decide which layers of a model carry an adapter: linear ones, and no others.

Experts of a mixture are three-dimensional parameters in transformers 5, not layers, and PEFT wraps them, and a router
beside them, in classes of its own. An adapter there is no pair of matrices on a linear layer, and is not supported.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oblivion.config import LoraConfig
from oblivion.errors import ConfigError
from oblivion.models.name_patterns import is_plain, matcher

if TYPE_CHECKING:
    import peft

ALL_LINEAR = "all-linear"
_SHOWN = 4
_SHOWN_TEXT = 60


def is_linear(module: Any) -> bool:
    """Return whether a layer computes ``W x + b``; some routers are of a linear class and return something else."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if type(module) in (nn.Linear, Conv1D) or not isinstance(module, nn.Linear):
        return isinstance(module, nn.Linear | Conv1D)
    x = torch.ones((1, module.in_features), dtype=module.weight.dtype, device=module.weight.device)
    with torch.no_grad():
        try:
            y = module(x)
        except (RuntimeError, TypeError, ValueError):
            return False
        return isinstance(y, torch.Tensor) and torch.equal(y, nn.functional.linear(x, module.weight, module.bias))


def settings_for(model: Any, lora: LoraConfig) -> peft.LoraConfig:
    """Return PEFT's settings for the adapter that a scenario asks for.

    What PEFT would wrap beside linear layers is left out of ``all-linear``, and of no other choice of targets.
    """
    import peft
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    from torch import nn

    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=named(model, lora.targets) if isinstance(lora.targets, str) else list(lora.targets),
        task_type="CAUSAL_LM",
    )
    if lora.targets != ALL_LINEAR:
        return settings
    routers = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not is_linear(module)
    }
    resolved = copy.copy(settings)
    convert_peft_config_for_transformers(resolved, model, None)
    if resolved.target_parameters:
        settings.target_modules = set(resolved.target_modules)
    if routers:
        settings.exclude_modules = routers
    return settings


def named(model: Any, pattern: str) -> str | list[str]:
    """Return the names of a model's layers that a pattern means; ``all-linear`` stays as it is.

    Raises
    ------
    ValueError
        If the pattern cannot be read (`oblivion.models.name_patterns`), or means no layer.
    """
    if pattern.lower() == ALL_LINEAR:
        return ALL_LINEAR
    matches = matcher(pattern)
    names = [name for name, _ in model.named_modules() if name and matches(name)]
    if not names:
        raise ValueError(f"target modules {pattern[:_SHOWN_TEXT]!r} not found in the base model")
    return names


def without_patterns(model: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return an adapter's settings for PEFT with names in the place of every pattern, so that PEFT runs none.

    Raises
    ------
    ValueError
        If a pattern cannot be read or means no layer.
    """
    found = dict(settings)
    if isinstance(found.get("target_modules"), str):
        found["target_modules"] = named(model, found["target_modules"])
    excluded = found.get("exclude_modules")
    if isinstance(excluded, str):
        matches = matcher(excluded)
        found["exclude_modules"] = [name for name, _ in model.named_modules() if matches(name)]
    for key in ("rank_pattern", "alpha_pattern"):
        if found.get(key):
            found[key] = _by_name([name for name, _ in model.named_modules() if name], found[key])
    return found


def _by_name(names: Iterable[str], values: Mapping[str, float]) -> dict[str, float]:
    """Return each layer's value, by the first key that means it, as one pattern of names per value.

    PEFT compares a layer with every key by an expression; so they are few, and hold escaped names alone.
    """
    ends = {key: value for key, value in values.items() if is_plain(key)}
    patterns = {key: matcher(f"(.*\\.)?({key})") for key in values if key not in ends}
    order = {key: place for place, key in enumerate(values)}
    grouped: dict[float, list[str]] = defaultdict(list)
    for name in names:
        parts = name.split(".")
        fit = [end for start in range(len(parts)) if (end := ".".join(parts[start:])) in ends]
        fit += [key for key, matches in patterns.items() if matches(name)]
        if fit:
            grouped[values[min(fit, key=order.__getitem__)]].append(name)
    return {"|".join(map(re.escape, group)): value for value, group in grouped.items()}


def check_sizes(model: Any, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """Compare an adapter's stored tensors with the layers that they are for, before anything of their size is made.

    Raises
    ------
    ValueError
        Naming the first that does not fit.
    """
    sizes = {}
    for name, module in model.named_modules():
        if is_linear(module):
            sizes[name] = tuple(module.weight.shape)[:: 1 if hasattr(module, "in_features") else -1]
    for tensor, shape in shapes:
        layer, _, factor = tensor.removeprefix("base_model.model.").rpartition(".lora_")
        side = {"A.weight": 1, "B.weight": 0}.get(factor)
        if layer in sizes and side is not None and (len(shape) != 2 or shape[side] != sizes[layer][side]):
            raise ValueError(f"adapter tensor {tensor!r} has shape {shape}, the layer's weight {sizes[layer]}")


def without_adapter(model: Any) -> tuple[str, ...]:
    """Return the kinds of layers, except the head, that carry no adapter: fused experts, and linear layers."""
    from torch import nn

    base = model.get_base_model()
    kinds = set()
    for name, module in base.named_modules():
        linear = isinstance(module, nn.Linear) and not {"base_layer", "lora_A", "lora_B"} & set(name.split("."))
        stacked = any(p.dim() == 3 and min(p.shape) > 1 for p in module.parameters(recurse=False)) and not isinstance(
            module, nn.Conv1d
        )
        if (linear or stacked) and module is not base.get_output_embeddings():
            kinds.add(name.rpartition(".")[2])
    return tuple(sorted(kinds))


def check_layers(model: Any) -> None:
    """Refuse an adapter on what is not a linear layer.

    Raises
    ------
    ConfigError
        Naming the layers, and the targets that would do.
    """
    from peft.tuners.lora import Linear

    fit: set[str] = set()
    odd: list[str] = []
    for name, module in model.get_base_model().named_modules():
        kind = name.rpartition(".")[2]
        if hasattr(module, "lora_A"):
            linear = isinstance(module, Linear) and is_linear(module.base_layer)
            fit.update([kind] if linear else [])
            odd += [] if linear else [name]
    if odd:
        shown = ", ".join(odd[:_SHOWN]) + (f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else "")
        would = f"; lora.targets = {sorted(fit)} would do" if fit else "; lora.targets = 'all-linear' leaves them out"
        raise ConfigError(f"lora.targets: only linear layers can carry an adapter, and these are not: {shown}{would}")
