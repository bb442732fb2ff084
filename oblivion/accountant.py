"""What privacy noise is worth: epsilon, at a delta, of mechanisms that add Gaussian noise.

Sampled Gaussian (DP-SGD): Rényi differential privacy of Mironov, Talwar and Zhang (2019, "Rényi differential privacy of
the sampled Gaussian mechanism", equation 1 and theorem 4), added up over steps, and turned into epsilon by Canonne,
Kamath and Steinke (2020, "The discrete Gaussian for differential privacy", proposition 12). Plain Gaussian: the exact
formula of Balle and Wang (2018, "Improving the Gaussian mechanism for differential privacy", theorem 8); T rounds of
it with noise multiplier sigma are one with sigma / sqrt(T) (Dong, Roth and Su, 2022, corollary 3.3).

Deviation: the expectation behind the sampled Gaussian is integrated by the trapezoidal rule, which for such a function
is exact to rounding, in place of the paper's two series; it then holds for every real order.

Two federations are neighbours if one has everything of the other and one unit (a sample, a client) more.
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
"""Rényi orders that are tried; the best of them gives epsilon."""
_REACH = 14.0
_POINTS = 8.0


def sampled_gaussian_rdp(rate: float, noise: float, orders: Sequence[float] = ORDERS) -> Vector:
    """Rényi divergence that one step of DP-SGD costs, at each order.

    ``1 / (a - 1) * log E_z (1 - q + q exp((2 z - 1) / (2 sigma^2)))^a`` with z normal of mean 0 and deviation sigma.

    Parameters
    ----------
    rate : float
        q, the probability with which a sample is drawn, from 0 to 1.
    noise : float
        sigma, the deviation of the noise divided by the clipping bound; 0 for none.
    orders : sequence of float
        Each above 1.

    Returns
    -------
    array of float (len(orders),)
        Infinite where there is no noise.
    """
    import numpy as np

    if rate == 0:
        return np.zeros(len(orders))
    if noise == 0:
        return np.full(len(orders), np.inf)
    if rate == 1:
        return np.asarray(orders) / (2 * noise**2)
    return np.array([_divergence(rate, noise, order) for order in orders])


@functools.lru_cache(maxsize=100_000)
def _divergence(rate: float, noise: float, order: float) -> float:
    import numpy as np

    step = min(noise, noise**2) / _POINTS
    z = np.arange(-_REACH * noise, order + _REACH * noise, step)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * noise**2))
    values = order * ratio - z**2 / (2 * noise**2)
    largest = values.max()
    total = largest + math.log(np.exp(values - largest).sum() * step / (noise * math.sqrt(2 * math.pi)))
    return float(max(total, 0.0)) / (order - 1)


def epsilon_of_rdp(rdp: Vector, delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Epsilon at a delta from Rényi divergences; the smallest over the orders.

    Parameters
    ----------
    rdp : array of float (len(orders),)
        Summed over everything that was done.
    delta : float
        Above 0 and below 1.

    Returns
    -------
    float
        At least 0; infinite where no order has a finite divergence.
    """
    import numpy as np

    a = np.asarray(orders)
    values = rdp + np.log1p(-1 / a) - (math.log(delta) + np.log(a)) / (a - 1)
    return float(max(0.0, values.min())) if np.any(rdp > 0) else 0.0


def gaussian_delta(epsilon: float, distance: float) -> float:
    """Delta of a Gaussian mechanism: how much two normals a `distance` apart differ beyond a factor of e^epsilon.

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
    return math.exp(first) * -math.expm1(second - first)


def gaussian_epsilon(distance: float, delta: float) -> float:
    """The smallest epsilon at which a Gaussian mechanism has a delta; see `gaussian_delta`.

    Returns
    -------
    float
        At least 0; infinite where there is no noise.
    """
    from scipy.optimize import brentq

    if distance == 0 or (math.isfinite(distance) and gaussian_delta(0.0, distance) <= delta):
        return 0.0
    if math.isinf(distance):
        return math.inf
    high = 1.0
    while gaussian_delta(high, distance) > delta:
        high *= 2
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, distance) - delta, 0.0, high, xtol=1e-12))


def group(epsilon: float, delta: float, size: int) -> tuple[float, float]:
    """What (epsilon, delta) for one unit is for `size` of them (Dwork and Roth, 2014, theorem 2.2 step by step).

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
