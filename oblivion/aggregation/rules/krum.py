"""Krum (Blanchard et al., 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent", section 4).

The score of a client is the sum of the squared distances from its update to the ``n - f - 2`` updates nearest to it,
f being `byzantine`. The update with the smallest score is the step; of equal scores the first client id wins, as in
the paper. It has a proof for ``2 f + 2 < n``. No weights: the step is one client's update.

Deviations: clients send updates after any number of local steps, not gradients at a common point. Distances are
taken from differences, not from ``|a|^2 + |b|^2 - 2 a b``, which loses all digits where updates are close together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oblivion.aggregation.checks import check_count
from oblivion.aggregation.rule import weighted_sum
from oblivion.aggregation.rules.robust import RobustRule
from oblivion.types import ClientUpdate, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor


def squared_distances(updates: Sequence[ClientUpdate]) -> list[list[float]]:
    """Squared L2 distance over all tensors between each two updates, in fp64."""
    import torch

    distances = [[0.0] * len(updates) for _ in updates]
    for i, one in enumerate(updates):
        here = {name: tensor.to(torch.float64) for name, tensor in one.delta.items()}
        for j in range(i + 1, len(updates)):
            there = updates[j].delta
            parts = (float((here[name] - there[name].to(torch.float64)).square().sum()) for name in sorted(here))
            distances[i][j] = distances[j][i] = math.fsum(parts)
    return distances


def by_score(distances: Sequence[Sequence[float]], among: Sequence[int], byzantine: int) -> list[int]:
    """Sort updates by their Krum score.

    Parameters
    ----------
    distances : sequence of sequence of float
        Squared distances between all updates of the round.
    among : sequence of int
        The updates that are compared; the others do not count as neighbours either.
    byzantine : int
        How many of them may be hostile.

    Returns
    -------
    list of int
        `among`, smallest score first, equal ones as their position says.

    Notes
    -----
    At least one neighbour is counted while there is one. Krum itself always has ``n - f - 2 >= 1``; Bulyan's last
    choices have fewer.
    """
    neighbours = max(1, len(among) - byzantine - 2)

    def score(i: int) -> float:
        return math.fsum(sorted(distances[i][j] for j in among if j != i)[:neighbours])

    return sorted(among, key=lambda i: (score(i), i))


@dataclass(frozen=True, kw_only=True)
class Krum(RobustRule):
    """Take the one update that lies closest to most others.

    Attributes
    ----------
    byzantine : int, default 1
        How many of a round's updates may be hostile (f in the paper), at least 0.
    """

    byzantine: int = 1

    def __post_init__(self) -> None:
        check_count("byzantine", self.byzantine, 0)

    def combine(self, updates: Sequence[ClientUpdate]) -> Mapping[str, Tensor]:
        """Choose an update."""
        return weighted_sum([updates[self._best(updates)].delta], [1.0])

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """1 for the update that is chosen of some in client-id order, 0 for the others."""
        self.check_enough(updates, info)
        best = self._best(updates)
        return [float(i == best) for i in range(len(updates))]

    def _best(self, updates: Sequence[ClientUpdate]) -> int:
        return by_score(squared_distances(updates), range(len(updates)), self.byzantine)[0]

    def needed(self) -> int:
        """``2 f + 3``, the paper's condition."""
        return 2 * self.byzantine + 3

    def min_clients(self, n: int, byzantine: int) -> int:
        """``2 f + 3`` with the rule's own f; more than `n` where more may be hostile than that."""
        return self.needed() if byzantine <= self.byzantine else n + 1
