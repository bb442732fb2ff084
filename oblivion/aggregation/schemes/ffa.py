"""FFA-LoRA (Sun et al., 2024, "Improving LoRA in privacy-preserving federated learning").

A stays for good at its random values, which depend on the seed alone; clients train and the server combines B. Then
``sum_k p_k B_k A = (sum_k p_k B_k) A``: the mean of B is the mean of the products, and nothing is lost. Half as much
travels up.

The rule sees B alone, so that no momentum or moment can move A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from oblivion.aggregation.rule import Aggregator, RuleState
from oblivion.models.factors import Factor, only
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FFA:
    """Freeze A, combine B."""

    ranks: Mapping[str, int] = field(default_factory=dict)

    space: ClassVar[Literal["b"]] = "b"
    state_fields: ClassVar[tuple[str, ...]] = ()
    mixed_ranks: ClassVar[bool] = False

    def trained(self, round: int) -> tuple[Factor, ...]:
        """B, in every round."""
        return ("B",)

    def check(self, rule: Aggregator) -> None:
        """Every rule makes sense here."""

    def init(self, rule: Aggregator, state: GlobalState) -> RuleState:
        """The rule's state for B."""
        return rule.init(replace(state, adapter=only(state.adapter, ("B",))))

    def combine(
        self,
        rule: Aggregator,
        updates: Sequence[ClientUpdate],
        state: GlobalState,
        rule_state: RuleState,
        info: RoundInfo,
    ) -> tuple[GlobalState, RuleState]:
        """Let the rule work on B alone."""
        return combine_half("B", rule, updates, state, rule_state, info)


def combine_half(
    factor: Factor,
    rule: Aggregator,
    updates: Sequence[ClientUpdate],
    state: GlobalState,
    rule_state: RuleState,
    info: RoundInfo,
) -> tuple[GlobalState, RuleState]:
    """Let a rule work on one factor, as if the adapter had no other.

    Returns
    -------
    tuple of GlobalState and RuleState
        The state with the other factor as it was, and the rule's state for this factor; the very same objects where
        there are no updates.
    """
    if not updates:
        return state, rule_state
    half = replace(state, adapter=only(state.adapter, (factor,)))
    own = [replace(update, delta=only(update.delta, (factor,))) for update in updates]
    after, rule_state = rule.apply(own, half, rule_state, info)
    return replace(state, adapter=dict(sorted({**state.adapter, **after.adapter}.items()))), rule_state
