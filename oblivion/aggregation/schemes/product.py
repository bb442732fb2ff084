"""The mixture of products ``B A`` that FedEx-LoRA, FlexLoRA and FLoRA are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oblivion.aggregation.rule import Rule
from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.scheme import LoraScheme
from oblivion.aggregation.schemes.products import Pair, client_pair, layers, pair, stacked
from oblivion.models.factors import initial_values
from oblivion.seeding import derive_seed
from oblivion.types import Adapter, ClientUpdate, GlobalState, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ProductScheme(LoraScheme):
    """Mix the clients' products by the weights of the rule: ``(1 - sum_k w_k) B A + sum_k w_k B_k A_k``.

    This is the rule's own step, ``x + sum_k w_k (x_k - x)``, on products.
    """

    of_products: ClassVar[bool] = True

    def check(self, rule: Rule) -> None:
        """Refuse rules whose step is not a weighted sum of the updates.

        Raises
        ------
        ValueError
            The message names the rules that work.
        """
        if not rule.of_weights:
            raise ValueError(
                "combines products B A, which have no coordinates of their own to take a median, a moment or a variate "
                f"of; rules that are a weighted sum of the updates work: {', '.join(aggregators.having('of_weights'))}"
            )

    def _mixed(
        self, rule: Rule, updates: Sequence[ClientUpdate], state: GlobalState, info: RoundInfo
    ) -> dict[tuple[str, str], Pair]:
        """Return the factors of the mixed product of every layer; the updates are in client-id order."""
        rule.check_enough(updates, info)
        weights = rule.weights(updates, info)
        rest = 1.0 - sum(weights)
        mixed: dict[tuple[str, str], Pair] = {}
        for layer in layers(state.adapter):
            own = [(w, client_pair(state, u, self.ranks, layer)) for w, u in zip(weights, updates, strict=True)]
            # A remainder that is only rounding would add the old product's rank for nothing.
            before = pair(state.adapter, layer) if abs(rest) > 1e-12 else None
            mixed[layer] = stacked([(rest, before), *own]) or own[0][1]
        return mixed


def fresh_adapter(state: GlobalState, info: RoundInfo) -> Adapter:
    """Return the adapter that clients begin with after a round: A is random by seed and round, B is zero."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.adapter.items()}
    return initial_values(shapes, derive_seed(info.seed, "lora", info.round))


def named(factors: Mapping[tuple[str, str], Pair]) -> dict[str, Tensor]:
    """Return factors as an adapter: fp32 tensors, sorted by name."""
    import torch

    tensors: dict[str, Tensor] = {}
    for (name_a, name_b), (a, b) in factors.items():
        tensors |= {name_a: a.to(torch.float32), name_b: b.to(torch.float32)}
    return {name: tensors[name].contiguous() for name in sorted(tensors)}
