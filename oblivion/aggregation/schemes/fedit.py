"""FedIT (Zhang et al., 2023, "Towards building the federated GPT: federated instruction tuning").

The server combines the LoRA factors A and B as they are, each for itself.

Known error: a layer's change is the product ``B A``, and the product of means is not the mean of products. For
weights ``p_k`` with deviations ``a_k = A_k - mean(A)`` and ``b_k = B_k - mean(B)``, ``sum_k p_k B_k A_k = mean(B)
mean(A) + sum_k p_k b_k a_k``; FedIT loses the last sum, the cross terms. It is zero when all clients agree on A or on
B, and grows with what they disagree on. An adapter without factors is combined without error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.scheme import LoraScheme
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedIT(LoraScheme):
    """Combine A and B separately; exact only when the clients agree on one of the factors."""

    needs_factors: ClassVar[bool] = False

    def aggregate(
        self, rule: Rule, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Let the rule work on the factors as they are."""
        return rule.step(updates, state, rule_state, info)
