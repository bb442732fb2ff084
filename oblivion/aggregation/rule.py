"""What a server rule is: a pure function from the updates of a round to the next global state.

A rule inherits from `Rule` and writes `aggregate`, or from `WeightedRule` and writes `weights`. Its class attributes
say what the rest of the system must know of it: whether it can be combined with client-level privacy, with a LoRA
scheme that averages products, with any local optimizer. A rule of another package sets the same attributes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from oblivion.aggregation.sums import moved, ordered, weighted_sum
from oblivion.errors import FederationError
from oblivion.types import ClientUpdate, GlobalState, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor

RuleState: TypeAlias = "Mapping[str, Tensor]"
"""What a rule keeps between rounds (momentum, ...), as named fp32 tensors so that it can be stored."""


class Rule(ABC):
    """A server rule: pure functions from updates and states to the next states.

    Attributes
    ----------
    state_fields : tuple of str
        What the rule state holds that depends on the clients' data, in words; a removal's checklist names each of them.
    of_weights : bool
        Whether the step is the sum of the updates times `weights`; only then does the rule work on the products that
        some LoRA schemes combine.
    of_mean : bool
        Whether the step depends on the updates through their mean, weighted by examples, alone; only then can the mean
        be noised for client-level privacy.
    needs_client_state : bool
        Whether the rule state holds something of each single client between rounds
        (`oblivion.aggregation.rules.control.ControlRule`).
    state_by_tensor : bool
        Whether the name of every tensor of the rule state holds the name of the adapter's tensor that it belongs to.
    plain_sgd : bool
        Whether the formula assumes that clients take plain SGD steps at one constant rate.
    """

    state_fields: ClassVar[tuple[str, ...]] = ()
    of_weights: ClassVar[bool] = False
    of_mean: ClassVar[bool] = False
    needs_client_state: ClassVar[bool] = False
    state_by_tensor: ClassVar[bool] = True
    plain_sgd: ClassVar[bool] = False

    @property
    def proximal_mu(self) -> float:
        """The weight mu of the term ``mu / 2 * ||w - w_global||^2`` that clients add to their loss; 0 for no term."""
        return 0.0

    def needed(self, hostile: int = 0) -> float:
        """Return how many updates a round needs so that the rule holds with some number of hostile clients.

        Parameters
        ----------
        hostile : int, default 0
            The number of hostile clients.

        Returns
        -------
        float
            A whole number, or infinity if the rule holds with no number of updates.
        """
        return math.inf if hostile else 1

    def init(self, state: GlobalState) -> RuleState:
        """Make the rule's state before the first round; it is empty for a rule that remembers nothing."""
        return {}

    def step(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Compute the next global state and rule state; no argument is changed.

        Parameters
        ----------
        updates : sequence of ClientUpdate
            The updates of the round in any order. Their tensors have the names and shapes of the adapter.
        state : GlobalState
            The state that the clients started from.
        rule_state : mapping of str to Tensor
            The rule state, as `init` or the last `step` returned it.
        info : RoundInfo
            The round.

        Returns
        -------
        tuple of GlobalState and RuleState
            New fp32 tensors; the very same two objects if there are no updates.

        Raises
        ------
        FederationError
            If there are updates, but fewer than the rule needs.
        """
        if not updates:
            return state, rule_state
        self.check_enough(updates, info)
        return self.aggregate(ordered(updates), state, rule_state, info)

    @abstractmethod
    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Compute what `step` returns, from at least `needed` updates in client-id order."""

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """Return one weight per update if the rule is `of_weights`: the step is ``sum_k w_k delta_k``.

        Parameters
        ----------
        updates : sequence of ClientUpdate
            At least `needed` updates in client-id order.
        info : RoundInfo
            The round.
        """
        raise FederationError(f"{self!r} is no weighted sum of the updates")

    def check_enough(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> None:
        """Refuse a round with fewer updates than the rule needs.

        Raises
        ------
        FederationError
            The message gives both numbers and the settings that change them.
        """
        if len(updates) < self.needed():
            raise FederationError(
                f"{self!r} needs at least {self.needed()} updates and round {info.round} has {len(updates)}; ask more "
                "clients (federation.clients-per-round), or expect fewer hostile ones (federation.parameters)"
            )


class WeightedRule(Rule):
    """A rule that is written as its `weights`: ``x <- x + sum_k w_k delta_k``, and nothing is kept between rounds."""

    of_weights: ClassVar[bool] = True

    @abstractmethod
    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """Return one weight per update."""

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Add the weighted sum, in fp64, to the adapter; updates with a weight of 0 are not read."""
        pairs = [(u.delta, w) for u, w in zip(updates, self.weights(updates, info), strict=True) if w]
        deltas, weights = zip(*(pairs or [(updates[0].delta, 0.0)]), strict=True)
        return moved(state, weighted_sum(deltas, weights)), rule_state
