"""FedEx-LoRA (Singhal et al., 2024, "FedEx-LoRA: exact aggregation for federated fine-tuning of foundation models").

A and B are averaged each for itself, as in FedIT, and what that loses, ``sum_k p_k B_k A_k - mean(B) mean(A)``, is
added to a residual beside the base model, so that the sum of both is the mean of the products exactly.

Deviation: the paper adds the residual to the frozen base weights. Here it stays apart as factors; its rank grows by
that of all clients and of the mean each round, up to min(in, out), where it is kept as one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.schemes.product import ProductScheme, named
from oblivion.aggregation.schemes.products import bounded, pair, stacked
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedEx(ProductScheme):
    """Average A and B, and keep what that loses beside them."""

    state_fields: ClassVar[tuple[str, ...]] = ("residual: what averaging A and B apart lost in all rounds",)

    def aggregate(
        self, rule: Rule, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Let the rule work on the factors, and add the difference to the mixed product to the residual."""
        after, rule_state = rule.step(updates, state, rule_state, info)
        residual = {}
        for layer, one in self._mixed(rule, updates, state, info).items():
            made = pair(after.adapter, layer)
            residual[layer] = bounded(stacked([(1.0, pair(state.residual, layer)), (1.0, one), (-1.0, made)]) or one)
        return replace(after, residual=named(residual)), rule_state
