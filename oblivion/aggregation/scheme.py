"""What a LoRA scheme is: it decides in which space adapters are combined, and lets the rule work there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.sums import ordered
from oblivion.models.factors import Factor
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class LoraScheme(ABC):
    """The space in which adapters are combined; by default both factors as they are.

    Attributes
    ----------
    ranks : mapping of str to int
        Client id to rank, for the clients that have a rank of their own.
    state_fields : tuple of str
        What the scheme keeps beside the adapter that depends on the clients' data, in words; a removal's checklist
        names each of them.
    mixed_ranks : bool
        Whether clients may have different ranks.
    of_products : bool
        Whether the products ``B A`` are combined in place of the factors.
    needs_factors : bool
        Whether the adapter must consist of LoRA factors A and B.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)

    state_fields: ClassVar[tuple[str, ...]] = ()
    mixed_ranks: ClassVar[bool] = False
    of_products: ClassVar[bool] = False
    needs_factors: ClassVar[bool] = True

    def trained(self, round: int) -> tuple[Factor, ...]:
        """Return the factors that clients train, and send, in a round."""
        return ("A", "B")

    def check(self, rule: Rule) -> None:  # noqa: B027 (most schemes take every rule)
        """Raise ValueError, saying why and what would work, for a rule that makes no sense in this space."""

    def init(self, rule: Rule, state: GlobalState) -> RuleState:
        """Make the rule's state before the first round."""
        return rule.init(state)

    def combine(
        self, rule: Rule, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Do what `Rule.step` does, with its arguments and its result, in this scheme's space.

        Parameters
        ----------
        rule : Rule
            The server rule.
        updates : sequence of ClientUpdate
            The updates of the round in any order; they have the tensors that are `trained` in it.
        state, rule_state, info
            See `Rule.step`.
        """
        return self.aggregate(rule, ordered(updates), state, rule_state, info) if updates else (state, rule_state)

    @abstractmethod
    def aggregate(
        self, rule: Rule, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Compute what `combine` returns, from at least one update, in client-id order."""
