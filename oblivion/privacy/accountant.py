"""The privacy accountant: epsilon, at a delta, of mechanisms that add Gaussian noise.

Sampled Gaussian (DP-SGD): Rényi differential privacy of Mironov, Talwar and Zhang (2019, "Rényi differential privacy of
the sampled Gaussian mechanism", section 3.3) as Opacus computes it, added up over steps, and turned into epsilon by
Canonne, Kamath and Steinke (2020, "The discrete Gaussian for differential privacy", proposition 12). Plain Gaussian:
the exact formula of Balle and Wang (2018, "Improving the Gaussian mechanism for differential privacy", theorem 8); T
rounds of it with noise multiplier sigma are one with sigma / sqrt(T) (Dong, Roth and Su, 2022, corollary 3.3).

Neighbours, for unit sample: two federations of which one has a null row where the other has a row; it is drawn like
any other and trains nothing; rates, steps and divisors are the same in both, so the divergence of adding or removing a
row's gradient is theirs. For unit client: a federation, and the same without one of its clients. How far a round's sum
moves then is described in `oblivion.privacy.budget`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Vector = np.ndarray[Any, np.dtype[np.float64]]

ORDERS: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in (*range(11, 64), 80, 96, 128, 192, 256, 384, 512, 768, 1024)),
)
"""The Rényi orders that are tried; the one that gives the smallest epsilon counts."""
LEAST_NOISE = 1e-150
"""Noise below it counts as none: the squares of such numbers leave the range of floating-point arithmetic."""


def sampled_gaussian_rdp(rate: float, noise: float, orders: Sequence[float] = ORDERS) -> Vector:
    """Compute the Rényi divergence of one step of DP-SGD at each order.

    ``1 / (a - 1) * log E_z (1 - q + q exp((2 z - 1) / (2 sigma^2)))^a`` with z normal of mean 0 and deviation sigma.

    Parameters
    ----------
    rate : float
        q, the probability with which a sample is drawn, from 0 to 1.
    noise : float
        sigma, the deviation of the noise divided by the clipping bound; below `LEAST_NOISE` there is none.
    orders : sequence of float
        Each above 1.

    Returns
    -------
    array of float (len(orders),)
        The divergence at each order; infinite if there is no noise.
    """
    import numpy as np

    return np.array(_divergences(rate, noise if noise >= LEAST_NOISE else 0.0, tuple(orders)))


@functools.cache
def _divergences(rate: float, noise: float, orders: tuple[float, ...]) -> tuple[float, ...]:
    from opacus.accountants.analysis import rdp

    found = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(orders))
    return tuple(float(value) for value in found)


def epsilon_of_rdp(rdp: Vector, delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Compute epsilon at a delta from Rényi divergences; it is the smallest over the orders.

    Parameters
    ----------
    rdp : array of float (len(orders),)
        The divergences, summed over all steps.
    delta : float
        Above 0 and below 1.

    Returns
    -------
    float
        Epsilon, at least 0; it is infinite if no order has a finite divergence.
    """
    import numpy as np

    a = np.asarray(orders)
    values = rdp + np.log1p(-1 / a) - (math.log(delta) + np.log(a)) / (a - 1)
    return float(max(0.0, values.min())) if np.any(rdp > 0) else 0.0


def gaussian_delta(epsilon: float, distance: float) -> float:
    """Compute the delta of a Gaussian mechanism at an epsilon.

    Parameters
    ----------
    epsilon : float
        At least 0.
    distance : float
        mu: sensitivity divided by the deviation of the noise, above 0.
    """
    from scipy.special import log_ndtr

    first = float(log_ndtr(distance / 2 - epsilon / distance))
    second = epsilon + float(log_ndtr(-distance / 2 - epsilon / distance))
    share = second - first  # it is below 0 in exact arithmetic
    if not share <= 1:  # only numbers above 1e16 are rounded by so much, and then the second term is next to nothing
        return math.exp(first)
    return math.exp(first) * -math.expm1(share)


def gaussian_epsilon(distance: float, delta: float) -> float:
    """Compute the smallest epsilon at which a Gaussian mechanism has a delta; see `gaussian_delta`.

    Returns
    -------
    float
        Epsilon, at least 0; it is infinite if there is no noise, or so little that epsilon is no floating-point number.
    """
    from scipy.optimize import brentq

    if distance == 0 or (math.isfinite(distance) and gaussian_delta(0.0, distance) <= delta):
        return 0.0
    if math.isinf(distance):
        return math.inf
    high = 1.0
    while gaussian_delta(high, distance) > delta:
        high *= 2
    if math.isinf(high):
        return math.inf
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, distance) - delta, 0.0, high, xtol=1e-12))


def group(epsilon: float, delta: float, size: int) -> tuple[float, float]:
    """Turn (epsilon, delta) for one unit into that for `size` units (Dwork and Roth, 2014, theorem 2.2, step by step).

    Returns
    -------
    tuple of float
        ``size * epsilon`` and ``delta * sum_i exp(i * epsilon)`` for i from 0 to size - 1; a delta of 1 says nothing.
    """
    try:
        total = delta * math.fsum(math.exp(i * epsilon) for i in range(size))
    except OverflowError:
        total = 1.0
    return size * epsilon, min(1.0, total)
