"""Named statistics: numbers that a client sends beside its update, with a declared schema, and their gate.

A score is a statistic of shape ``()``. Reasons to refuse name statistics of the server's own schema, and never a value
or a name that came from a client.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BYTES = {"float32": 4, "int64": 8}


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """What every client must send under one name.

    Attributes
    ----------
    shape : tuple of int
        The array's shape; ``()`` for a single number.
    dtype : str, default "float32"
        ``"float32"`` or ``"int64"``.
    lowest, highest : float
        Every value lies between these two, both included; with ``"float32"`` they are rounded to it.

    Raises
    ------
    ValueError
        If the statistic can hold no value.
    """

    shape: tuple[int, ...]
    dtype: Literal["float32", "int64"] = "float32"
    lowest: float
    highest: float

    def __post_init__(self) -> None:
        if self.dtype not in _BYTES:
            raise ValueError(f"dtype = {self.dtype!r}; it must be 'float32' or 'int64'")
        if not all(type(size) is int and size > 0 for size in self.shape):
            raise ValueError(f"shape = {self.shape!r}; every size must be an integer above 0")
        if not -math.inf < self.lowest <= self.highest < math.inf:
            raise ValueError(f"from {self.lowest!r} to {self.highest!r} is no range of finite numbers")

    @property
    def size(self) -> int:
        """The array's size in bytes."""
        return math.prod(self.shape) * _BYTES[self.dtype]


def check_schema(schema: Mapping[str, Statistic]) -> dict[str, Statistic]:
    """Return a schema as its own copy, in the order of names.

    Raises
    ------
    ValueError
        If a name is not of letters, digits, ``_``, ``-`` and ``.``, at most 64 of them.
    """
    for name in schema:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a statistic; use up to 64 letters, digits, '_', '-' and '.'")
    return {name: schema[name] for name in sorted(schema)}


def refusal(said: Any, schema: Mapping[str, Statistic]) -> str | None:
    """Say why a client's statistics are not those that were asked for; None where they are.

    Parameters
    ----------
    said : mapping of str to Tensor
        The statistics as they were received, which may be anything.
    schema : mapping of str to Statistic
        The statistics that were asked for; empty where the client must send none.
    """
    if not isinstance(said, Mapping):
        return "its statistics are not a mapping"
    if said.keys() != schema.keys():
        return "it does not have exactly the statistics that were asked for"
    faults = (f"statistic '{name}' {fault}" for name in schema if (fault := _fault(said[name], schema[name])))
    return next(faults, None)


def _fault(value: Any, expected: Statistic) -> str:
    """Say what is wrong with one array; empty if nothing is."""
    import torch

    if not isinstance(value, torch.Tensor):
        return "is not a tensor"
    if value.layout is not torch.strided or value.device.type != "cpu":
        return "is not a dense tensor on the CPU"
    dtype = getattr(torch, expected.dtype)
    if value.dtype is not dtype:
        return f"is not of type {expected.dtype}"
    if tuple(value.shape) != expected.shape:
        return f"does not have the shape {expected.shape}"
    if not bool(value.isfinite().all()):
        return "has values that are not finite"
    lowest, highest = expected.lowest, expected.highest
    if expected.dtype == "float32":
        lowest, highest = torch.tensor([lowest, highest], dtype=dtype).tolist()
    if not lowest <= value.min().item() <= value.max().item() <= highest:
        return f"has values outside of {expected.lowest:g} to {expected.highest:g}"
    return ""
