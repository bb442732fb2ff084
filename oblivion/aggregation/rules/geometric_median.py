"""Geometric median by smoothed Weiszfeld (Pillutla et al., 2022, "Robust aggregation for federated learning", Alg. 2).

The step is the point v that makes ``sum_k a_k |v - delta_k|`` small, over all tensors as one vector and with the
weights ``a_k = n_k / n``. Each iteration takes ``b_k = a_k / max(smoothing, |v - delta_k|)`` and ``v <- sum_k b_k
delta_k / sum_k b_k``; `smoothing` is nu in the paper.

Deviations: the paper leaves the first v open, here it is the weighted mean; the paper stops after three iterations,
since each costs it a secure sum over the network, and here they cost the server a pass over the updates, so more are
the default. The number is fixed and nothing is tested for convergence: the same updates give the same bits.

The rule bears hostile clients with less than half of the *weight*. Where examples are counted by the clients
themselves, ``weighted = false`` makes that less than half of the clients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oblivion.aggregation.rule import WeightedRule
from oblivion.aggregation.sums import weighted_sum
from oblivion.parameters import check_count, check_positive
from oblivion.types import Adapter, ClientUpdate, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor


def distance(one: Mapping[str, Tensor], other: Adapter) -> float:
    """Return the L2 distance over all tensors together, in fp64."""
    import torch

    parts = (float((one[name] - other[name].to(torch.float64)).square().sum()) for name in sorted(one))
    return math.sqrt(math.fsum(parts))


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(WeightedRule):
    """Take the point with the smallest sum of distances to the updates.

    Attributes
    ----------
    iterations : int, default 32
        How often the point is improved, at least 1.
    smoothing : float, default 1e-6
        Distances below it count as this much, above 0; in the unit of the parameters.
    weighted : bool, default True
        Whether clients count by their number of examples, as in the paper, or once each.
    """

    iterations: int = 32
    smoothing: float = 1e-6
    weighted: bool = True

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations, 1)
        check_positive("smoothing", self.smoothing)
        if not isinstance(self.weighted, bool):
            raise ValueError(f"weighted = {self.weighted!r} is not allowed; it must be true or false")

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """Return the ``b_k / sum_k b_k`` of the last iteration; they sum to 1."""
        deltas = [update.delta for update in updates]
        counts = [update.num_examples if self.weighted else 1 for update in updates]
        shares = [count / sum(counts) for count in counts]
        weights = shares
        for _ in range(self.iterations):
            point = weighted_sum(deltas, weights)
            pulls = [a / max(self.smoothing, distance(point, d)) for a, d in zip(shares, deltas, strict=True)]
            total = math.fsum(pulls)
            weights = [pull / total for pull in pulls]
        return weights

    def needed(self, hostile: int = 0) -> float:
        """Return ``2 f + 1``; with weights no number of clients bounds the weight of the hostile ones."""
        return math.inf if self.weighted and hostile else 2 * hostile + 1
