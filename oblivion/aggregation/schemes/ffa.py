"""FFA-LoRA (Sun et al., 2024, "Improving LoRA in privacy-preserving federated learning").

A keeps its random values for good, which depend on the seed alone; clients train B, and the server combines it. Then
``sum_k p_k B_k A = (sum_k p_k B_k) A``: the mean of B is the mean of the products, and nothing is lost. Clients send
half as much.

The rule sees B alone, so that no momentum or moment can move A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.scheme import LoraScheme
from oblivion.models.factors import Factor, only
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FFA(LoraScheme):
    """Freeze A and combine B."""

    def trained(self, round: int) -> tuple[Factor, ...]:
        """Return B for every round."""
        return ("B",)

    def init(self, rule: Rule, state: GlobalState) -> RuleState:
        """Make the rule's state for B."""
        return rule.init(replace(state, adapter=only(state.adapter, ("B",))))

    def aggregate(
        self, rule: Rule, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Let the rule work on B alone."""
        return step_half("B", rule, updates, state, rule_state, info)


def step_half(
    factor: Factor,
    rule: Rule,
    updates: Sequence[ClientUpdate],
    state: GlobalState,
    rule_state: RuleState,
    info: RoundInfo,
) -> tuple[GlobalState, RuleState]:
    """Let a rule work on one factor, as if the adapter had no other.

    Returns
    -------
    tuple of GlobalState and RuleState
        The state with the other factor as it was, and the rule's state for this factor.
    """
    half = replace(state, adapter=only(state.adapter, (factor,)))
    own = [replace(update, delta=only(update.delta, (factor,))) for update in updates]
    after, rule_state = rule.step(own, half, rule_state, info)
    return replace(state, adapter=dict(sorted({**state.adapter, **after.adapter}.items()))), rule_state
