"""FLoRA (Wang et al., 2024, "FLoRA: federated fine-tuning with heterogeneous low-rank adaptations").

The clients' factors are stacked: ``[p_1 B_1, p_2 B_2, ...] [A_1; A_2; ...]`` is the mean of their products exactly. It
is added to what was learned before, and every client begins the next round with a fresh adapter: A is random by seed
and round, B is zero.

Deviation: the paper merges the stack into the base model, where it can never be told from it again. Here it stays
beside the base as factors, the residual; its rank grows by that of the stack each round, up to min(in, out), where it
is kept as one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.schemes.product import ProductScheme, fresh_adapter, named
from oblivion.aggregation.schemes.products import bounded, pair, stacked
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FLoRA(ProductScheme):
    """Stack the clients' factors into the residual and begin with a fresh adapter."""

    state_fields: ClassVar[tuple[str, ...]] = ("residual: the stacked factors of all rounds' clients",)
    mixed_ranks: ClassVar[bool] = True

    def aggregate(
        self, rule: Rule, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Mix the products into the residual."""
        residual = {}
        for layer, one in self._mixed(rule, updates, state, info).items():
            residual[layer] = bounded(stacked([(1.0, pair(state.residual, layer)), (1.0, one)]) or one)
        return replace(state, adapter=fresh_adapter(state, info), residual=named(residual)), rule_state
