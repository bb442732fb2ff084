"""Epsilon against formulas in other forms, numerical integration, and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from scipy import integrate, stats

from oblivion.privacy.accountant import (
    ORDERS,
    epsilon_of_rdp,
    gaussian_delta,
    gaussian_epsilon,
    group,
    sampled_gaussian_rdp,
)


def binomial_rdp(rate: float, noise: float, order: int) -> float:
    """Mironov et al. (2019), equation 4, which holds for whole orders only; in logarithms."""
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-rate)
        + k * math.log(rate)
        + (k * k - k) / (2 * noise**2)
        for k in range(order + 1)
    ]
    largest = max(terms)
    return (largest + math.log(math.fsum(math.exp(term - largest) for term in terms))) / (order - 1)


class TestSampledGaussian:
    def test_by_hand(self) -> None:
        # Order 2: E (1 - q + q r)^2 = 1 + q^2 (e^(1 / sigma^2) - 1). q = 0.5, sigma = 1: log(1 + 0.25 (e - 1)).
        (value,) = sampled_gaussian_rdp(0.5, 1.0, [2.0])
        assert value == pytest.approx(math.log(1 + 0.25 * (math.e - 1)), rel=1e-12)

    @pytest.mark.parametrize(
        ("rate", "noise", "order"), [(0.04, 1.5, 5), (0.01, 0.7, 32), (0.5, 3.0, 2), (0.3, 0.3, 63), (0.1, 5.0, 512)]
    )
    def test_the_series_for_whole_orders(self, rate: float, noise: float, order: int) -> None:
        (value,) = sampled_gaussian_rdp(rate, noise, [float(order)])
        assert value == pytest.approx(binomial_rdp(rate, noise, order), rel=1e-9)

    def test_a_fractional_order_by_quadrature(self) -> None:
        rate, noise, order = 0.04, 1.5, 2.7
        total, _ = integrate.quad(
            lambda z: stats.norm.pdf(z, 0, noise) * (1 - rate + rate * math.exp((2 * z - 1) / (2 * noise**2))) ** order,
            -30,
            30,
            epsabs=1e-13,
        )
        (value,) = sampled_gaussian_rdp(rate, noise, [order])
        assert value == pytest.approx(math.log(total) / (order - 1), rel=1e-6)

    @pytest.mark.parametrize(
        ("noise", "steps", "epsilon", "tolerance"),
        [(1.5, 2250, 7.32911117143, 1e-7), (1.416, 2250, 8.0, 2e-3), (1.3562, 2000, 8.0, 1e-3)],
    )
    def test_values_that_opacus_publishes(self, noise: float, steps: int, epsilon: float, tolerance: float) -> None:
        # Opacus 1.x, tests/accountants_test.py: rate 0.04, delta 1e-5, RDP accountant; the last two are noise
        # multipliers that it finds for epsilon 8, to four places.
        found = epsilon_of_rdp(steps * sampled_gaussian_rdp(0.04, noise), 1e-5)
        assert found == pytest.approx(epsilon, abs=tolerance)

    def test_opacus_accountant_gives_the_same_epsilon(self) -> None:
        accountant = RDPAccountant()
        accountant.history = [(1.1, 0.2, 30), (0.8, 0.05, 10)]
        expected = accountant.get_epsilon(1e-6, alphas=list(ORDERS))
        spent = 30 * sampled_gaussian_rdp(0.2, 1.1) + 10 * sampled_gaussian_rdp(0.05, 0.8)
        assert epsilon_of_rdp(spent, 1e-6) == pytest.approx(expected, rel=1e-9)

    def test_limits(self) -> None:
        assert sampled_gaussian_rdp(1.0, 2.0, [3.0]) == pytest.approx([3 / 8])
        assert sampled_gaussian_rdp(1 - 1e-12, 2.0, [3.0]) == pytest.approx([3 / 8])
        assert not sampled_gaussian_rdp(0.0, 1.0).any()
        assert np.isinf(sampled_gaussian_rdp(0.1, 0.0)).all()
        assert epsilon_of_rdp(sampled_gaussian_rdp(0.1, 0.0), 1e-5) == math.inf
        assert epsilon_of_rdp(np.zeros(len(ORDERS)), 1e-5) == 0.0

    def test_everyone_drawn_is_the_plain_gaussian(self) -> None:
        # The Rényi route is a bound of the exact formula, and not far above it.
        exact = gaussian_epsilon(math.sqrt(10) / 4, 1e-5)
        bound = epsilon_of_rdp(10 * sampled_gaussian_rdp(1.0, 4.0), 1e-5)
        assert exact < bound < 1.15 * exact

    @settings(max_examples=30)
    @given(st.floats(0.01, 0.99), st.floats(0.5, 5), st.integers(1, 100))
    def test_more_costs_more(self, rate: float, noise: float, steps: int) -> None:
        orders = [1.5, 4.0, 32.0]

        def epsilon(rate: float, noise: float, steps: int) -> float:
            return epsilon_of_rdp(steps * sampled_gaussian_rdp(rate, noise, orders), 1e-5, orders)

        base = epsilon(rate, noise, steps)
        assert base <= epsilon(rate, noise, steps + 1)
        assert base <= epsilon(min(1.0, 1.1 * rate), noise, steps) + 1e-9
        assert epsilon(rate, 1.1 * noise, steps) <= base + 1e-9
        assert base <= epsilon(1.0, noise, steps) + 1e-9

    @settings(max_examples=50, deadline=None)
    @given(st.floats(0.001, 1), st.floats(0, 0.1) | st.sampled_from([5e-324, 1e-162, 1e-155, 1e-153, 1e-152, 1e-150]))
    def test_little_noise_costs_much(self, rate: float, noise: float) -> None:
        # Not a number, which counted as an epsilon of 0; or no end.
        assert epsilon_of_rdp(sampled_gaussian_rdp(rate, noise), 1e-5) > 10


class TestGaussian:
    def test_by_hand(self) -> None:
        # mu = 1, epsilon = 1: Phi(-1/2) - e Phi(-3/2).
        expected = stats.norm.cdf(-0.5) - math.e * stats.norm.cdf(-1.5)
        assert gaussian_delta(1.0, 1.0) == pytest.approx(expected, rel=1e-12)

    def test_delta_by_integration(self) -> None:
        # delta = integral of max(0, p - e^epsilon q), p and q normals that are mu apart.
        epsilon, distance = 0.8, 1.7
        total, _ = integrate.quad(
            lambda z: max(0.0, stats.norm.pdf(z, distance) - math.exp(epsilon) * stats.norm.pdf(z)),
            -10,
            12,
            points=[epsilon / distance + distance / 2],
            epsabs=1e-12,
        )
        assert gaussian_delta(epsilon, distance) == pytest.approx(total, rel=1e-6)

    def test_limits(self) -> None:
        assert gaussian_epsilon(0.0, 1e-5) == 0.0
        assert gaussian_epsilon(1e-9, 1e-5) == 0.0
        assert gaussian_epsilon(math.inf, 1e-5) == math.inf
        assert gaussian_epsilon(200.0, 1e-5) == pytest.approx(200**2 / 2, rel=0.1)

    @given(st.floats(0.05, 30), st.sampled_from([1e-3, 1e-5, 1e-8]))
    def test_epsilon_undoes_delta(self, distance: float, delta: float) -> None:
        epsilon = gaussian_epsilon(distance, delta)
        assert epsilon == 0.0 or gaussian_delta(epsilon, distance) == pytest.approx(delta, rel=1e-6)
        assert gaussian_epsilon(1.1 * distance, delta) >= epsilon

    @given(st.floats(0, math.inf), st.floats(0, 1, exclude_min=True, exclude_max=True))
    def test_every_distance_has_an_epsilon(self, distance: float, delta: float) -> None:
        epsilon = gaussian_epsilon(distance, delta)
        assert epsilon >= 0 and gaussian_epsilon(2 * distance, delta) >= epsilon
        if 1e9 <= distance <= 1e150 and 1e-300 <= delta < 0.999:
            assert epsilon == pytest.approx(distance**2 / 2, rel=1e-6)

    def test_an_epsilon_beyond_all_numbers_is_infinite(self) -> None:
        assert gaussian_epsilon(1e154, 1e-5) == pytest.approx(5e307)
        assert gaussian_epsilon(1e160, 1e-5) == math.inf
        assert group(math.inf, 1e-5, 3) == (math.inf, 1.0)


class TestGroup:
    def test_by_hand(self) -> None:
        assert group(0.5, 1e-5, 1) == (0.5, 1e-5)
        epsilon, delta = group(0.5, 1e-5, 3)
        assert epsilon == 1.5
        assert delta == pytest.approx(1e-5 * (1 + math.exp(0.5) + math.e), rel=1e-12)

    def test_says_nothing_beyond_one(self) -> None:
        assert group(20.0, 1e-5, 3) == (60.0, 1.0)
        assert group(1000.0, 1e-5, 3) == (3000.0, 1.0)

    @given(st.floats(0.01, 2), st.integers(1, 4))
    def test_a_gaussian_keeps_to_it(self, distance: float, size: int) -> None:
        delta = 1e-6
        epsilon, bound = group(gaussian_epsilon(distance, delta), delta, size)
        assert gaussian_delta(epsilon, size * distance) <= bound * (1 + 1e-6)
