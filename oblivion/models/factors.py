"""The two factors of a LoRA adapter: their names, their shapes, and their values before any training.

A is (rank, in), B is (out, rank); a layer's change is ``(alpha / rank) B A`` (Hu et al., 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from oblivion.seeding import torch_generator
from oblivion.types import Adapter

if TYPE_CHECKING:
    from torch import Tensor

Factor: TypeAlias = Literal["A", "B"]


def factor_of(name: str) -> Factor:
    """Return which factor an adapter's tensor is, by its PEFT name."""
    return "A" if ".lora_A" in name else "B"


def is_factor(name: str) -> bool:
    """Return whether a tensor's name, as PEFT gives it, is that of a LoRA factor."""
    return ".lora_A" in name or ".lora_B" in name


def only(tensors: Mapping[str, Tensor], factors: Sequence[Factor]) -> dict[str, Tensor]:
    """Return those of some named tensors that are, or belong to, one of the factors."""
    return {name: tensor for name, tensor in tensors.items() if factor_of(name) in factors}


def truncated(adapter: Adapter, rank: int) -> Adapter:
    """Return the adapter with its first `rank` rows of A and columns of B; the rest is zero.

    What is zero in A and in B at once has no gradient, so a client that begins here trains at rank `rank`.
    """
    import torch

    cut = {}
    for name, tensor in adapter.items():
        kept = torch.zeros_like(tensor)
        place = (slice(rank), slice(None)) if factor_of(name) == "A" else (slice(None), slice(rank))
        kept[place] = tensor[place]
        cut[name] = kept
    return cut


def start_of(adapter: Adapter, ranks: Mapping[str, int], client_id: str) -> Adapter:
    """Return the adapter that a client begins from, truncated if the client has a rank of its own."""
    return truncated(adapter, ranks[client_id]) if client_id in ranks else adapter


def initial_values(shapes: Mapping[str, Sequence[int]], seed: int) -> Adapter:
    """Draw A as in Hu et al. (2021), and make B zero, from the seed and the tensors' names and shapes alone.

    Parameters
    ----------
    shapes : mapping of str to shape
        PEFT name to the shape of the tensor: (rank, in) for A, (out, rank) for B.
    seed : int
        The seed of the values.
    """
    import torch

    adapter = {}
    for name, shape in sorted(shapes.items()):
        if factor_of(name) == "A":
            bound = 1 / math.sqrt(shape[1])  # Kaiming uniform with a = sqrt(5)
            generator = torch_generator(seed, f"lora/{name}")
            adapter[name] = torch.empty(tuple(shape)).uniform_(-bound, bound, generator=generator)
        else:
            adapter[name] = torch.zeros(tuple(shape))
    return adapter
