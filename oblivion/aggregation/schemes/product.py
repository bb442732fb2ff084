"""What the schemes share that combine products ``B A`` in place of the factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, cast

from oblivion.aggregation.rule import Aggregator, RuleState, ordered
from oblivion.aggregation.schemes.products import Pair, client_pair, layers, pair, stacked
from oblivion.models.factors import Factor, initial_values
from oblivion.seeding import derive_seed
from oblivion.types import Adapter, ClientUpdate, GlobalState, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor

PRODUCT_RULES = "fedavg, fedprox, fednova, krum, multi_krum, geometric_median and clipped_mean"


class WeightedRule(Protocol):
    """A rule whose step is a weighted sum of the updates."""

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """The weight of each update, which are in client-id order."""
        ...


class ProductScheme:
    """Mix the clients' products by the weights of the rule: ``(1 - sum_k w_k) B A + sum_k w_k B_k A_k``.

    This is the rule's own step, ``x + sum_k w_k (x_k - x)``, on products.
    """

    ranks: Mapping[str, int]

    space: ClassVar[Literal["product"]] = "product"

    def trained(self, round: int) -> tuple[Factor, ...]:
        """Both factors, in every round."""
        return ("A", "B")

    def check(self, rule: Aggregator) -> None:
        """Refuse rules that are no weighted sum of the updates.

        Raises
        ------
        ValueError
            Naming those that are.
        """
        if not hasattr(rule, "weights"):
            raise ValueError(
                "combines products B A, which have no coordinates of their own to take a median, a moment or a variate "
                f"of; rules that are a weighted sum of the updates work: {PRODUCT_RULES}"
            )

    def init(self, rule: Aggregator, state: GlobalState) -> RuleState:
        """The rule's own state."""
        return rule.init(state)

    def _mixed(
        self, rule: Aggregator, updates: Sequence[ClientUpdate], state: GlobalState, info: RoundInfo
    ) -> dict[tuple[str, str], Pair]:
        """The factors of the mixed product of every layer."""
        by_id = ordered(updates)
        weights = cast("WeightedRule", rule).weights(by_id, info)
        rest = 1.0 - sum(weights)
        mixed: dict[tuple[str, str], Pair] = {}
        for layer in layers(state.adapter):
            own = [(w, client_pair(state, u, self.ranks, layer)) for w, u in zip(weights, by_id, strict=True)]
            # A remainder that is rounding would add the old product's rank for nothing.
            before = pair(state.adapter, layer) if abs(rest) > 1e-12 else None
            mixed[layer] = stacked([(rest, before), *own]) or own[0][1]
        return mixed


def fresh_adapter(state: GlobalState, info: RoundInfo) -> Adapter:
    """An adapter to begin with after a round: A random by seed and round, B zero; its product is zero."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.adapter.items()}
    return initial_values(shapes, derive_seed(info.seed, "lora", info.round))


def named(factors: Mapping[tuple[str, str], Pair]) -> dict[str, Tensor]:
    """Factors as an adapter: fp32, by name, sorted."""
    import torch

    tensors: dict[str, Tensor] = {}
    for (name_a, name_b), (a, b) in factors.items():
        tensors |= {name_a: a.to(torch.float32), name_b: b.to(torch.float32)}
    return {name: tensors[name].contiguous() for name in sorted(tensors)}
