"""FedIT (Zhang et al., 2023, "Towards building the federated GPT: federated instruction tuning").

The server combines the LoRA factors A and B as they are, each for itself.

Known error: a layer's change is the product ``B A``, and the product of means is not the mean of products. For
weights ``p_k`` with deviations ``a_k = A_k - mean(A)`` and ``b_k = B_k - mean(B)``, ``sum_k p_k B_k A_k = mean(B)
mean(A) + sum_k p_k b_k a_k``; FedIT loses the last sum, the cross terms. It is zero when all clients agree on A or on
B, and grows with what they disagree on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from oblivion.aggregation.rule import Aggregator, RuleState
from oblivion.models.factors import Factor
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedIT:
    """Combine A and B separately; exact only when the clients agree on one of the factors."""

    ranks: Mapping[str, int] = field(default_factory=dict)

    space: ClassVar[Literal["ab"]] = "ab"
    state_fields: ClassVar[tuple[str, ...]] = ()
    mixed_ranks: ClassVar[bool] = False

    def trained(self, round: int) -> tuple[Factor, ...]:
        """Both factors, in every round."""
        return ("A", "B")

    def check(self, rule: Aggregator) -> None:
        """Every rule makes sense here."""

    def init(self, rule: Aggregator, state: GlobalState) -> RuleState:
        """The rule's own state."""
        return rule.init(state)

    def combine(
        self,
        rule: Aggregator,
        updates: Sequence[ClientUpdate],
        state: GlobalState,
        rule_state: RuleState,
        info: RoundInfo,
    ) -> tuple[GlobalState, RuleState]:
        """Let the rule work on the factors as they are."""
        return rule.apply(updates, state, rule_state, info)
