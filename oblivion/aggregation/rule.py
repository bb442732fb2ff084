"""The contract of a server rule, and the weighted mean that most rules begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from oblivion.types import Adapter, ClientUpdate, GlobalState, RoundInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PIECE = 1 << 18  # values; long enough to be read at the speed of memory, and in fp64 it stays in the shared cache

RuleState: TypeAlias = "Mapping[str, Tensor]"
"""What a rule keeps between rounds (momentum, ...), as named tensors so that it can be stored."""


class Aggregator(Protocol):
    """A server rule: pure functions from updates and states to the next states.

    Attributes
    ----------
    linear : bool
        Whether the next adapter is the old one plus a weighted sum of the updates.
    state_fields : tuple of str
        What `RuleState` holds that depends on the clients' data, in words (for the removal's checklist).
    needs_client_state : bool
        Whether the rule state holds something of each single client between rounds (`ControlRule`).
    plain_sgd : bool
        Whether the rule assumes that clients take plain SGD steps at one constant rate.
    proximal_mu : float
        Clients add ``mu / 2 * ||w - w_global||^2`` to their loss; 0 for none.
    """

    linear: bool
    state_fields: tuple[str, ...]
    needs_client_state: bool
    plain_sgd: bool

    @property
    def proximal_mu(self) -> float:
        """Weight of the proximal term."""
        ...

    def init(self, state: GlobalState) -> RuleState:
        """Make the rule's state before the first round."""
        ...

    def apply(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Compute the next global state and rule state; nothing that comes in is changed."""
        ...

    def min_clients(self, n: int, byzantine: int) -> int:
        """How many updates the rule needs out of `n` when `byzantine` of them may be hostile."""
        ...


class LoraScheme(Protocol):
    """In which space adapters are combined. A scheme lets the rule work there; the rule knows nothing of it.

    Attributes
    ----------
    space : str
        ``"ab"`` (both factors), ``"b"`` or ``"product"``.
    state_fields : tuple of str
        What it keeps beside the adapter that depends on the clients' data, in words (for the removal's checklist).
    mixed_ranks : bool
        Whether clients may have different ranks.
    ranks : mapping of str to int
        Of the clients that have a rank of their own.
    """

    space: Literal["ab", "b", "product"]
    state_fields: tuple[str, ...]
    mixed_ranks: bool

    @property
    def ranks(self) -> Mapping[str, int]:
        """Client id to rank."""
        ...

    def trained(self, round: int) -> tuple[Literal["A", "B"], ...]:
        """The factors that clients train, and send, in a round."""
        ...

    def check(self, rule: Aggregator) -> None:
        """Raise ValueError, saying why and what would work, for a rule that makes no sense in this space."""
        ...

    def init(self, rule: Aggregator, state: GlobalState) -> RuleState:
        """Make the rule's state before the first round."""
        ...

    def combine(
        self,
        rule: Aggregator,
        updates: Sequence[ClientUpdate],
        state: GlobalState,
        rule_state: RuleState,
        info: RoundInfo,
    ) -> tuple[GlobalState, RuleState]:
        """Compute the next global state and rule state; nothing that comes in is changed."""
        ...


def ordered(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """Sort updates by client id, the order in which everything is summed."""
    return sorted(updates, key=lambda update: update.client_id)


def moved(state: GlobalState, step: Mapping[str, Tensor]) -> GlobalState:
    """Add a step to the adapter.

    Parameters
    ----------
    state : GlobalState
        Where from.
    step : mapping of str to Tensor
        For each tensor of the adapter one of its shape, in fp64.

    Returns
    -------
    GlobalState
        With a new adapter, added up in fp64 and cast to fp32 once; all else is the same.
    """
    import torch

    adapter = {
        name: (state.adapter[name].to(torch.float64) + step[name]).to(torch.float32) for name in sorted(state.adapter)
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
        As many.
    dtype : torch.dtype, optional
        What the sum is cast to, once; fp64 by default.

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
    with torch.inference_mode():  # slices cost less; the totals were made outside, and are ordinary tensors
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
    """Mean of the updates, each counted once whatever its number of examples.

    Parameters
    ----------
    updates : sequence of ClientUpdate
        At least one, each with the same tensor names and shapes; summed by client id.

    Returns
    -------
    dict of str to Tensor
        In fp64.
    """
    deltas = [update.delta for update in ordered(updates)]
    return weighted_sum(deltas, [1 / len(deltas)] * len(deltas))


def mean_update(updates: Sequence[ClientUpdate]) -> Adapter:
    """Mean of the updates weighted by their number of examples.

    Summed in client-id order in fp64 and cast to fp32 once, so that the order of arrival changes no bit.

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
    total = float(sum(update.num_examples for update in by_id))
    return weighted_sum([u.delta for u in by_id], [u.num_examples / total for u in by_id], torch.float32)
