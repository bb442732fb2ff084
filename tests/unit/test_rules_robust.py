"""Rules against hostile clients: by hand, against NumPy and SciPy, limits, and when they refuse a round."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from rule_rounds import check_purity, flat, info, matrix, one, random_round, scalars, start, update, value

from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.rules.bulyan import Bulyan, near_median
from oblivion.aggregation.rules.clipped_mean import ClippedMean
from oblivion.aggregation.rules.geometric_median import GeometricMedian
from oblivion.aggregation.rules.krum import Krum, squared_distances
from oblivion.aggregation.rules.median import Median
from oblivion.aggregation.rules.multi_krum import MultiKrum
from oblivion.aggregation.rules.trimmed_mean import TrimmedMean
from oblivion.errors import ConfigError, FederationError
from oblivion.parameters import build
from oblivion.types import ClientUpdate, GlobalState

RULES = [
    Median(),
    TrimmedMean(trim=2),
    Krum(byzantine=2),
    MultiKrum(byzantine=2, selected=3),
    MultiKrum(byzantine=1),
    Bulyan(byzantine=1),
    GeometricMedian(),
    GeometricMedian(weighted=False),
    ClippedMean(bound=0.3),
]


def three_rounds(rule: Any, reference: Any) -> None:
    """The rule and a function from a matrix (clients, values) to a step, from the same start."""
    generator = np.random.default_rng(0)
    state = start(generator)
    expected = flat(state.adapter)
    for round in (1, 2, 3):
        updates = random_round(generator, round)
        state, _ = rule.step(updates, state, {}, info(round))
        expected = expected + reference(matrix(updates))
    np.testing.assert_allclose(flat(state.adapter), expected, rtol=0, atol=1e-6)  # fp32 is stored between rounds


class TestMedian:
    def test_by_hand(self) -> None:
        assert value(Median(), scalars(2, 100, 1), at=10) == [12]
        assert value(Median(), scalars(4, 1, 100, 2), at=10) == [13]  # between 2 and 4
        assert value(Median(), [update(0, one(1, 9)), update(1, one(2, 7)), update(2, one(3, 8))]) == [2, 8]

    def test_numpy(self) -> None:
        three_rounds(Median(), lambda rows: np.median(rows, axis=0))

    def test_example_counts_do_not_matter(self) -> None:
        assert value(Median(), [update(0, one(1), 1000), update(1, one(5)), update(2, one(6))]) == [5]


class TestTrimmedMean:
    def test_by_hand(self) -> None:
        assert value(TrimmedMean(trim=1), scalars(6, 1, 100, 2), at=10) == [14]  # (2 + 6) / 2 = 4
        assert value(TrimmedMean(trim=2), scalars(6, 1, 100, 2, -50)) == [2]

    def test_scipy(self) -> None:
        three_rounds(TrimmedMean(trim=2), lambda rows: scipy.stats.trim_mean(rows, 2 / 7 + 1e-9, axis=0))

    def test_limits(self) -> None:
        values = (6, 1, 101, 2, -50)
        assert value(TrimmedMean(trim=0), scalars(*values)) == [12]
        assert value(TrimmedMean(trim=2), scalars(*values)) == value(Median(), scalars(*values))


class TestKrum:
    def test_by_hand(self) -> None:
        # Two neighbours each: 0 -> 1 + 9, 1 -> 1 + 4, 3 -> 4 + 9, 10 -> 49 + 81, 100 -> far.
        assert value(Krum(byzantine=1), scalars(0, 1, 3, 10, 100), at=10) == [11]

    def test_of_equal_scores_the_first_client_wins(self) -> None:
        assert value(Krum(byzantine=0), scalars(3, 1, 2)) == [3]  # one neighbour at a distance of 1 each
        assert value(Krum(byzantine=0), scalars(3, 1, 2)[::-1]) == [3]

    def test_numpy(self) -> None:
        three_rounds(Krum(byzantine=2), lambda rows: rows[numpy_scores(rows, 2).argmin()])

    def test_close_updates_far_from_nought_are_told_apart(self) -> None:
        # In fp32 |a|^2 + |b|^2 - 2 a b would be nought or negative for all of them.
        assert value(Krum(byzantine=1), scalars(10000, 10001, 10003, 10010, 10100)) == [10001]
        distances = squared_distances(scalars(10000, 10001, 10003))
        assert distances == [[0, 1, 9], [1, 0, 4], [9, 4, 0]]

    def test_it_takes_one_update_whole(self) -> None:
        updates = random_round(np.random.default_rng(1))
        zero = GlobalState(adapter={n: torch.zeros_like(t) for n, t in updates[0].delta.items()})
        after, _ = Krum(byzantine=1).step(updates, zero, {}, info())
        assert sum(all(torch.equal(after.adapter[n], u.delta[n]) for n in u.delta) for u in updates) == 1


def numpy_scores(rows: np.ndarray, byzantine: int) -> np.ndarray:
    distances = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    neighbours = max(1, len(rows) - byzantine - 2)
    return np.sort(distances, axis=1)[:, 1 : neighbours + 1].sum(1)


class TestMultiKrum:
    def test_by_hand(self) -> None:
        # Scores of 0, 1, 3, 10 as above: 10, 5, 13, 130.
        values = (0, 1, 3, 10, 100)
        assert value(MultiKrum(byzantine=1, selected=2), scalars(*values)) == [0.5]
        assert value(MultiKrum(byzantine=1), scalars(*values)) == [3.5]  # all but one

    def test_numpy(self) -> None:
        rule = MultiKrum(byzantine=2, selected=4)
        three_rounds(rule, lambda rows: rows[numpy_scores(rows, 2).argsort()[:4]].mean(0))

    def test_with_one_selected_it_is_krum(self) -> None:
        updates = random_round(np.random.default_rng(2))
        state = start(np.random.default_rng(3))
        one, _ = MultiKrum(byzantine=2, selected=1).step(updates, state, {}, info())
        two, _ = Krum(byzantine=2).step(updates, state, {}, info())
        assert (flat(one.adapter) == flat(two.adapter)).all()


class TestBulyan:
    def test_by_hand(self) -> None:
        # theta = 5, beta = 3. Krum takes 3 (score 23 of four neighbours), 4 (29 of three), 1 (26 of two), then 0
        # (36 of one, as 6, but first) and 6. Median 3; nearest 3, 4 and 1.
        assert value(Bulyan(byzantine=1), scalars(0, 1, 3, 4, 6, 50, 100), at=1) == pytest.approx([1 + 8 / 3])

    def test_numpy(self) -> None:
        def reference(rows: np.ndarray) -> np.ndarray:
            left, selected = rows, []
            while len(selected) < len(rows) - 2:
                best = numpy_scores(left, 1).argmin()
                selected.append(left[best])
                left = np.delete(left, best, axis=0)
            chosen = np.stack(selected)
            step = []
            for column in chosen.T:
                nearest = np.abs(column - np.median(column)).argsort()[: len(chosen) - 2]
                step.append(column[nearest].mean())
            return np.array(step)

        three_rounds(Bulyan(byzantine=1), reference)

    def test_without_hostile_clients_it_is_the_mean(self) -> None:
        three_rounds(Bulyan(byzantine=0), lambda rows: rows.mean(0))

    def test_of_values_equally_near_the_smaller_is_taken(self) -> None:
        assert near_median(torch.tensor([4.0, -4.0, 0.0]), 2).item() == -2


class TestGeometricMedian:
    def test_one_iteration_by_hand(self) -> None:
        # Mean 1, distances 1 and 3: b = 3/4 and 1/12; v = (4 / 12) / (10 / 12) = 0.4.
        updates = [update(0, one(0.0), 3), update(1, one(4.0), 1)]
        assert value(GeometricMedian(iterations=1), updates, at=10) == pytest.approx([10.4])

    @pytest.mark.parametrize("weighted", [True, False])
    def test_scipy_finds_the_same_minimum(self, weighted: bool) -> None:
        updates = random_round(np.random.default_rng(4))
        updates[4] = update(4, updates[4].delta, 60)  # or one client would have half of the weight
        rows = matrix(updates)
        weights = np.array([u.num_examples if weighted else 1 for u in updates])

        def total(v: np.ndarray) -> float:
            return float(weights @ np.linalg.norm(rows - v, axis=1))

        best = scipy.optimize.minimize(total, rows.mean(0), method="BFGS", options={"gtol": 1e-8}).x
        zero = GlobalState(adapter={n: torch.zeros_like(t) for n, t in updates[0].delta.items()})
        after, _ = GeometricMedian(iterations=300, weighted=weighted).step(updates, zero, {}, info())
        np.testing.assert_allclose(flat(after.adapter), best, rtol=0, atol=1e-5)

    def test_limits(self) -> None:
        # On a line it is the weighted median; far apart and with a huge smoothing it is the weighted mean.
        updates = [update(0, one(0.0), 3), update(1, one(4.0), 4), update(2, one(100.0), 2)]
        assert value(GeometricMedian(iterations=200), updates) == pytest.approx([4], abs=1e-3)
        mean = (4 * 4 + 100 * 2) / 9
        assert value(GeometricMedian(smoothing=1e9), updates) == pytest.approx([mean])
        assert value(GeometricMedian(), [update(0, one(2.5), 7)]) == [2.5]

    def test_where_all_agree_nothing_is_divided_by_nought(self) -> None:
        assert value(GeometricMedian(), scalars(2, 2, 2)) == [2]


class TestClippedMean:
    def test_by_hand(self) -> None:
        # |(3, 4)| = 5 is shortened to 2: (1.2, 1.6); (0.5, 0) stays. Half of their sum, whatever the example counts.
        updates = [update(0, one(3.0, 4.0), 9), update(1, one(0.5, 0.0), 1)]
        assert value(ClippedMean(bound=2.0), updates) == pytest.approx([0.85, 0.8])

    def test_numpy(self) -> None:
        def reference(rows: np.ndarray) -> np.ndarray:
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            return (rows * np.minimum(1, 0.4 / norms)).mean(0)

        three_rounds(ClippedMean(bound=0.4), reference)

    def test_with_a_large_bound_it_is_the_mean(self) -> None:
        three_rounds(ClippedMean(bound=1e9), lambda rows: rows.mean(0))

    def test_updates_of_nought_are_no_division_by_nought(self) -> None:
        assert value(ClippedMean(), scalars(0, 0)) == [0]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_purity(rule: Any) -> None:
    generator = np.random.default_rng(5)
    state = start(generator)
    state = GlobalState(adapter=state.adapter, residual=one(1.0))
    check_purity(rule, random_round(generator), state, info())


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_what_the_rules_say_about_themselves(rule: Any) -> None:
    assert not rule.of_mean
    assert not rule.needs_client_state
    assert rule.state_fields == ()
    assert rule.init(start(np.random.default_rng(6))) == {}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # For 0, 1, 2 and 3 hostile clients.
        (Median(), [1, 3, 5, 7]),
        (TrimmedMean(trim=2), [5, 5, 5, math.inf]),
        (Krum(byzantine=2), [7, 7, 7, math.inf]),
        (MultiKrum(byzantine=2), [7, 7, 7, math.inf]),
        (MultiKrum(byzantine=2, selected=9), [11, 11, 11, math.inf]),
        (Bulyan(byzantine=2), [11, 11, 11, math.inf]),
        (GeometricMedian(weighted=False), [1, 3, 5, 7]),
        (GeometricMedian(), [1, math.inf, math.inf, math.inf]),
        (ClippedMean(), [1, math.inf, math.inf, math.inf]),
    ],
    ids=repr,
)
def test_how_many_clients_are_needed(rule: Any, expected: list[float]) -> None:
    assert [rule.needed(hostile) for hostile in range(4)] == expected


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        (TrimmedMean(trim=2), 5),
        (Krum(byzantine=1), 5),
        (Krum(byzantine=0), 3),
        (MultiKrum(byzantine=1, selected=5), 6),
        (MultiKrum(byzantine=1), 5),
        (Bulyan(byzantine=1), 7),
    ],
    ids=repr,
)
def test_a_round_with_too_few_updates_is_refused(rule: Any, least: int) -> None:
    def crowd(n: int) -> list[ClientUpdate]:
        return scalars(*range(n))

    assert len(value(rule, crowd(least))) == 1
    with pytest.raises(FederationError, match=f"needs at least {least} updates and round 1 has {least - 1}; ask more"):
        value(rule, crowd(least - 1))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("trimmed_mean", {"trim": -1}, "trim = -1 is not allowed; it must be a whole number of at least 0"),
        ("trimmed_mean", {"trim": 0.2}, "trim = 0.2"),
        ("krum", {"byzantine": True}, "byzantine = True"),
        ("multi_krum", {"selected": 0}, "selected = 0 is not allowed; it must be a whole number of at least 1"),
        ("bulyan", {"byzantine": -1}, "byzantine = -1"),
        ("geometric_median", {"iterations": 0}, "iterations = 0"),
        ("geometric_median", {"smoothing": 0.0}, "smoothing = 0.0 is not allowed; it must be above 0"),
        ("geometric_median", {"weighted": 1}, "weighted = 1"),
        ("clipped_mean", {"bound": math.inf}, "bound = inf"),
        ("median", {"trim": 1}, "'median' has no parameter 'trim'"),
    ],
)
def test_wrong_parameters_are_config_errors(name: str, parameters: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(aggregators, name, parameters, "federation.parameters")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("median", Median()),
        ("trimmed_mean", TrimmedMean(trim=1)),
        ("krum", Krum(byzantine=1)),
        ("multi_krum", MultiKrum(byzantine=1, selected=None)),
        ("bulyan", Bulyan(byzantine=1)),
        ("geometric_median", GeometricMedian(iterations=32, smoothing=1e-6, weighted=True)),
        ("clipped_mean", ClippedMean(bound=1.0)),
    ],
)
def test_the_table_names_them(name: str, rule: Any) -> None:
    assert build(aggregators, name, {}, "k") == rule
