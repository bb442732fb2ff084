"""What the rules against hostile clients share: they look at all updates of a round at once and remember nothing.

They count clients, not examples, unless they say otherwise: a bound on how many clients are hostile says nothing
about weights that the clients declare themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from oblivion.aggregation.rule import RuleState, moved, ordered
from oblivion.errors import FederationError
from oblivion.types import ClientUpdate, GlobalState, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor


class RobustRule(ABC):
    """Add to the adapter what `combine` makes of the updates of one round."""

    linear: ClassVar[bool] = False
    state_fields: ClassVar[tuple[str, ...]] = ()
    needs_client_state: ClassVar[bool] = False
    plain_sgd: ClassVar[bool] = False
    proximal_mu: ClassVar[float] = 0.0

    @abstractmethod
    def combine(self, updates: Sequence[ClientUpdate]) -> Mapping[str, Tensor]:
        """Make the step of the adapter, in fp64, from enough updates in the order of their clients' ids."""

    @abstractmethod
    def min_clients(self, n: int, byzantine: int) -> int:
        """How many updates the rule needs out of `n` when `byzantine` of them may be hostile."""

    def needed(self) -> int:
        """How many updates the rule needs with its own parameters."""
        return 1

    def init(self, state: GlobalState) -> RuleState:
        """Return the empty state: the rule remembers nothing."""
        return {}

    def apply(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Combine the updates of a round.

        Parameters
        ----------
        updates : sequence of ClientUpdate
            Any order. Their tensors have the adapter's names and shapes.
        state : GlobalState
            The state that the clients started from.
        rule_state : mapping
            Empty.
        info : RoundInfo
            Used in messages only.

        Returns
        -------
        tuple of GlobalState and RuleState
            The next state with fp32 tensors; the very same objects where there are no updates.

        Raises
        ------
        FederationError
            If there are updates, but fewer than the rule's parameters need.
        """
        if not updates:
            return state, rule_state
        self.check_enough(updates, info)
        return moved(state, self.combine(ordered(updates))), rule_state

    def check_enough(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> None:
        """Refuse a round with fewer updates than the rule's parameters need.

        Raises
        ------
        FederationError
            With both numbers.
        """
        if len(updates) < self.needed():
            raise FederationError(
                f"{self!r} needs at least {self.needed()} updates and round {info.round} has {len(updates)}; ask more "
                "clients (federation.clients-per-round), or expect fewer hostile ones (federation.parameters)"
            )


def stack(updates: Sequence[ClientUpdate], name: str) -> Tensor:
    """Lay one tensor of every update side by side: shape (updates, *tensor), fp64."""
    import torch

    return torch.stack([update.delta[name].to(torch.float64) for update in updates])


def middle(values: Tensor) -> Tensor:
    """Median along the first axis of values that are sorted along it; of an even number, the mean of the middle two."""
    n = len(values)
    return (values[(n - 1) // 2] + values[n // 2]) / 2
