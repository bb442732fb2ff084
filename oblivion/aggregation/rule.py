"""The contract of a server rule, and the weighted mean that most rules begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from oblivion.types import Adapter, ClientUpdate, GlobalState, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor

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
        Whether clients keep something between rounds for this rule.
    """

    linear: bool
    state_fields: tuple[str, ...]
    needs_client_state: bool

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
    """In which space adapters are combined: it maps updates there, the rule works there, and it maps back.

    Attributes
    ----------
    space : str
        ``"ab"`` (both factors), ``"b"`` or ``"product"``.
    """

    space: Literal["ab", "b", "product"]

    def into(self, updates: Sequence[ClientUpdate]) -> Sequence[ClientUpdate]:
        """Map updates into the rule's space."""
        ...

    def back(self, state: GlobalState) -> GlobalState:
        """Map the rule's result back to an adapter."""
        ...


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

    ordered = sorted(updates, key=lambda update: update.client_id)
    total = float(sum(update.num_examples for update in ordered))
    mean = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in ordered[0].delta.items()}
    for update in ordered:
        weight = update.num_examples / total
        for name, accumulator in mean.items():
            accumulator.add_(update.delta[name].to(torch.float64), alpha=weight)
    return {name: tensor.to(torch.float32) for name, tensor in mean.items()}
