"""FlexLoRA (Bai et al., 2024, "Federated fine-tuning under heterogeneous language tasks and client resources").

The server averages the products, ``P = sum_k p_k B_k A_k``, and hands out the best approximation of P that the rank
allows, by SVD. A client of a lower rank gets the leading part of it, which is the best of its own rank.

What P has beyond the global rank is lost; with rank r for each of K clients, P has a rank of up to K r. The dense
matrix is never formed: the SVD is that of a core of size K r, between QR factors of the stacked factors.

Deviations: singular values go to both factors, ``sqrt(S)`` each, so that A and B have one scale for the clients'
optimizer. Where P has less than the global rank (few clients, low ranks, a round that changed nothing), what is left
over begins anew, A random by seed and round and B zero: zero in both would have no gradient ever again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.schemes.product import ProductScheme, fresh_adapter, named
from oblivion.aggregation.schemes.products import best_of_rank
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FlexLoRA(ProductScheme):
    """Average the products and keep their best approximation of the global rank."""

    mixed_ranks: ClassVar[bool] = True

    def aggregate(
        self, rule: Rule, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Mix the products, and cut or fill them to the rank of the adapter."""
        fresh, cut = fresh_adapter(state, info), {}
        for layer, one in self._mixed(rule, updates, state, info).items():
            a, b = best_of_rank(one, state.adapter[layer[0]].shape[0])
            unused = ~b.any(dim=0)
            a[unused] = fresh[layer[0]][unused].to(a.dtype)
            cut[layer] = (a, b)
        return replace(state, adapter=named(cut)), rule_state
