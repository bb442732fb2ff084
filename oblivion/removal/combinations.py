"""How the updates of a visit become the next state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from oblivion.aggregation.gate import update_norm
from oblivion.aggregation.round import RoundState
from oblivion.removal.ledger_reader import LedgerReader
from oblivion.types import ClientUpdate

if TYPE_CHECKING:
    from torch import Tensor


class Combination(Protocol):
    """Combines the updates of a visit; a frozen dataclass of its settings, with the name that plans give it."""

    name: ClassVar[str]

    def combine(self, before: RoundState, updates: Sequence[ClientUpdate], history: LedgerReader) -> RoundState:
        """Return the next state, a pure function of its arguments.

        Parameters
        ----------
        before : RoundState
            The state that the clients started from.
        updates : sequence of ClientUpdate
            What passed the gate, in client-id order; at least one.
        history : LedgerReader
            The history that is being corrected.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Add:
    """Add the mean update: ``global + scale * mean``, the mean first scaled down to a norm of at most `max_norm`.

    The mean weighs clients by their numbers of examples. No momentum, moment or robust rule takes part, because it
    would rescale an unlearning update, keep it, or reject it.

    Parameters
    ----------
    scale : float, default 1
        The factor of the mean.
    max_norm : float, default 100
        The largest L2 norm of the mean before it is scaled.
    """

    scale: float = 1.0
    max_norm: float = 100.0
    name: ClassVar[str] = "add"

    def combine(self, before: RoundState, updates: Sequence[ClientUpdate], history: LedgerReader) -> RoundState:
        """Return the state with the moved adapter."""
        mean = mean_of(updates)
        norm = update_norm(mean)
        factor = self.scale * min(1.0, self.max_norm / norm) if norm > 0 else 0.0
        return moved(before, {name: factor * tensor for name, tensor in mean.items()})


def mean_of(updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    """Return the mean of at least one update in fp64, weighted by the numbers of examples."""
    import torch

    total = sum(update.num_examples for update in updates)
    mean = {}
    for name in updates[0].delta:
        first, *others = (u.delta[name].to(torch.float64) * (u.num_examples / total) for u in updates)
        mean[name] = sum(others, start=first)
    return mean


def moved(before: RoundState, by: dict[str, Tensor]) -> RoundState:
    """Return a state whose adapter is moved by fp64 tensors; what `by` does not name stays."""
    import torch

    adapter = before.state.adapter
    changed = {name: (adapter[name].to(torch.float64) + step).to(torch.float32) for name, step in by.items()}
    return replace(before, state=replace(before.state, adapter={**adapter, **changed}))
