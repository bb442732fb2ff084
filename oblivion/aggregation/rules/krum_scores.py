"""Krum scores of updates (Blanchard et al., 2017, section 4); Krum, Multi-Krum and Bulyan choose by them.

The score of an update is the sum of its squared distances to the ``n - f - 2`` updates nearest to it. Distances are
taken from differences, not from ``|a|^2 + |b|^2 - 2 a b``, which loses all digits where updates are close together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from oblivion.types import ClientUpdate


def squared_distances(updates: Sequence[ClientUpdate]) -> list[list[float]]:
    """Return the squared L2 distance, over all tensors and in fp64, between each two updates."""
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
        The positions of the updates that are compared; the others do not count as neighbours either.
    byzantine : int
        How many of them may be hostile (f).

    Returns
    -------
    list of int
        The positions in `among`, the smallest score first; equal scores are ordered by position.

    Notes
    -----
    At least one neighbour is counted while there is one. Krum itself always has ``n - f - 2 >= 1``; Bulyan's last
    choices have fewer.
    """
    neighbours = max(1, len(among) - byzantine - 2)

    def score(i: int) -> float:
        return math.fsum(sorted(distances[i][j] for j in among if j != i)[:neighbours])

    return sorted(among, key=lambda i: (score(i), i))
