"""How much privacy was spent: epsilon of composed Gaussian mechanisms, by Opacus' Rényi accountant.

Rényi differential privacy composes by addition (Mironov, 2017, "Rényi differential privacy"); the subsampled Gaussian
mechanism is that of Mironov, Talwar and Zhang (2019), the conversion to (epsilon, delta) that of Balle et al. (2020),
both as `opacus.accountants.analysis.rdp` has them. With a sampling rate of 1 nothing is amplified.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oblivion.config import RunConfig
from oblivion.training.batches import steps_per_visit

_ORDERS = (
    [1 + x / 10 for x in range(1, 100)] + [float(order) for order in range(11, 64)] + [128.0, 256.0, 512.0, 1024.0]
)


@dataclass(frozen=True)
class Mechanism:
    """One use of the data in a round, worst case: `steps` releases at a sampling rate of `rate`."""

    noise_multiplier: float
    rate: float
    steps: int


def epsilon(mechanism: Mechanism, rounds: int, delta: float) -> float:
    """Epsilon after some rounds of the same mechanism.

    Parameters
    ----------
    mechanism : Mechanism
        What one round does.
    rounds : int
        How often, at least 0.
    delta : float
        Above 0 and below 1.

    Returns
    -------
    float
        0 for no round; infinite without noise.
    """
    from opacus.accountants.analysis import rdp

    if not rounds or not mechanism.steps:
        return 0.0
    if not mechanism.noise_multiplier:
        return math.inf
    spent = rdp.compute_rdp(
        q=mechanism.rate,
        noise_multiplier=mechanism.noise_multiplier,
        steps=mechanism.steps * rounds,
        orders=_ORDERS,
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # the best order may be the first or the last: a bound all the same
        found, _ = rdp.get_privacy_spent(orders=_ORDERS, rdp=spent, delta=delta)
    return float(found)


def mechanisms(config: RunConfig, sizes: Mapping[str, int]) -> list[Mechanism]:
    """What a round does to a unit of privacy, for each way in which it can be used; the worst one counts.

    A sample's mechanism depends on how many rows its client has; a client's is one release per round.
    """
    privacy, train = config.privacy, config.train
    if privacy.unit == "client":
        return [Mechanism(privacy.noise_multiplier, 1.0, 1)]
    return [
        Mechanism(
            privacy.noise_multiplier,
            sampling_rate(rows, train.batch_size),
            steps_per_visit(rows, train.batch_size, train.local_epochs),
        )
        for rows in sorted({rows for rows in sizes.values() if rows})
    ]


def sampling_rate(rows: int, batch_size: int) -> float:
    """The probability with which each row enters a step."""
    return min(1.0, batch_size / rows)


def spent(config: RunConfig, sizes: Mapping[str, int], rounds: int) -> float:
    """Epsilon of the unit that is worst off, if it took part in every one of some rounds."""
    delta = config.privacy.delta
    return max((epsilon(mechanism, rounds, delta) for mechanism in mechanisms(config, sizes)), default=0.0)


def rounds_within(config: RunConfig, sizes: Mapping[str, int], most: int) -> int:
    """How many rounds, up to `most`, stay within ``privacy.max-epsilon``."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if spent(config, sizes, middle) <= config.privacy.max_epsilon:
            low = middle
        else:
            high = middle - 1
    return low


def group_bounds(found: float, delta: float, sizes: Sequence[int] = (1, 2, 3)) -> dict[int, tuple[float, float]]:
    """What epsilon and delta for one client say of several (Dwork and Roth, 2014, Theorem 2.2).

    Returns
    -------
    dict of int to tuple of float
        For k clients that leave together ``(k epsilon, k e^((k - 1) epsilon) delta)``: the model at hand is that close
        to one that never had them, with nothing done. A delta of 1 or more says nothing.
    """
    bounds = {}
    for k in sizes:
        grown = k * math.exp(min(700.0, (k - 1) * found)) * delta if math.isfinite(found) else 1.0
        bounds[k] = (k * found, min(1.0, grown))
    return bounds
