"""Order statistics of each coordinate over the updates of a round; the median, the trimmed mean and Bulyan use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oblivion.types import ClientUpdate

if TYPE_CHECKING:
    from torch import Tensor


def stack(updates: Sequence[ClientUpdate], name: str) -> Tensor:
    """Lay one tensor of every update side by side: shape (updates, *tensor), fp64."""
    import torch

    return torch.stack([update.delta[name].to(torch.float64) for update in updates])


def middle(values: Tensor) -> Tensor:
    """Return the median along the first, sorted axis; of an even number of values the middle two are averaged."""
    n = len(values)
    return (values[(n - 1) // 2] + values[n // 2]) / 2


def near_median(values: Tensor, beta: int) -> Tensor:
    """Average, along the first axis, the `beta` values that are nearest to the median of each coordinate."""
    values = values.sort(0).values
    nearest = (values - middle(values)).abs().sort(stable=True, dim=0).indices[:beta]
    return values.gather(0, nearest).mean(0)
