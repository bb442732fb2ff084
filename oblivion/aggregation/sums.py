"""Sum and average adapters, in client-id order and fp64; every rule is written with these functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from oblivion.types import Adapter, ClientUpdate, GlobalState

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PIECE = 1 << 18  # in values: read at the speed of memory, and small enough in fp64 for the shared cache


def ordered(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """Sort updates by client id, the order in which everything is summed."""
    return sorted(updates, key=lambda update: update.client_id)


def moved(state: GlobalState, step: Mapping[str, Tensor], rate: float = 1.0) -> GlobalState:
    """Add a step to the adapter: ``x + rate * step``.

    Parameters
    ----------
    state : GlobalState
        The state that the step starts from.
    step : mapping of str to Tensor
        One tensor of the same shape for each tensor of the adapter.
    rate : float, default 1.0
        The factor of the step.

    Returns
    -------
    GlobalState
        The same state with a new adapter, which is summed in fp64 and cast to fp32 once.
    """
    import torch

    adapter = {
        name: state.adapter[name].to(torch.float64).add(step[name], alpha=rate).to(torch.float32)
        for name in sorted(state.adapter)
    }
    return replace(state, adapter=adapter)


def weighted_sum(
    tensors: Sequence[Adapter], weights: Sequence[float], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Sum adapters with a weight each, in the order given.

    Parameters
    ----------
    tensors : sequence of Adapter
        At least one, all with the same names and shapes.
    weights : sequence of float
        One weight per adapter.
    dtype : torch.dtype, optional
        The type that the sum is cast to, once; fp64 by default.

    Returns
    -------
    dict of str to Tensor
        ``sum_k weights_k tensors_k``, summed in fp64.
    """
    import torch

    total = {
        name: torch.empty(t.shape, dtype=dtype or torch.float64, device=t.device) for name, t in tensors[0].items()
    }
    piece_size = min(_PIECE, max(t.numel() for t in total.values()))
    scratch = torch.empty(2, piece_size, dtype=torch.float64, device=next(iter(total.values())).device)
    with torch.inference_mode():  # makes slices cheaper; the totals were made outside, and are ordinary tensors
        for name, result in total.items():
            flat, parts = result.view(-1), [one[name].reshape(-1) for one in tensors]
            for start in range(0, flat.numel(), _PIECE):
                piece = slice(start, min(start + _PIECE, flat.numel()))
                summed, part = scratch[:, : piece.stop - start]
                summed.copy_(parts[0][piece]).mul_(weights[0])
                for values, weight in zip(parts[1:], weights[1:], strict=True):
                    summed.add_(part.copy_(values[piece]), alpha=weight)
                flat[piece] = summed
    return total


def equal_mean(updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    """Return the mean of the updates, in which each counts once whatever its number of examples.

    Parameters
    ----------
    updates : sequence of ClientUpdate
        At least one, each with the same tensor names and shapes; summed by client id.

    Returns
    -------
    dict of str to Tensor
        The mean in fp64.
    """
    deltas = [update.delta for update in ordered(updates)]
    return weighted_sum(deltas, [1 / len(deltas)] * len(deltas))


def mean_update(updates: Sequence[ClientUpdate]) -> Adapter:
    """Return the mean of the updates, weighted by their numbers of examples.

    The sum runs in client-id order in fp64 and is cast to fp32 once, so that the order of arrival changes no bit.

    Parameters
    ----------
    updates : sequence of ClientUpdate
        At least one, each with `num_examples` > 0 and the same tensor names and shapes.

    Returns
    -------
    Adapter
        ``sum_k (n_k / n) delta_k``.
    """
    import torch

    by_id = ordered(updates)
    return weighted_sum([update.delta for update in by_id], example_weights(by_id), torch.float32)


def example_weights(updates: Sequence[ClientUpdate], rate: float = 1.0) -> list[float]:
    """Return ``rate * n_k / n`` for each update, n being the number of examples of all of them."""
    total = float(sum(update.num_examples for update in updates))
    return [rate * update.num_examples / total for update in updates]
