"""Properties of the metrics: ranges, invariances, and equality with naive loops and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_rows import scored_row
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from oblivion.metrics.engine.auc import auc, auc_interval
from oblivion.metrics.engine.averages import SHARE, mean_interval
from oblivion.metrics.engine.context import AnswerScore, EvaluationContext
from oblivion.metrics.exact_memorization import exact_memorization
from oblivion.metrics.extraction_strength import extraction_strength
from oblivion.metrics.forget_quality import ks_test
from oblivion.metrics.mia_min_k import MinKAttack
from oblivion.metrics.mia_min_k_plus_plus import MinKPlusPlusAttack
from oblivion.metrics.model_utility import harmonic_mean
from oblivion.metrics.normalised_probability import LEAST
from oblivion.metrics.probability import Probability
from oblivion.metrics.rouge import rouge
from oblivion.metrics.truth_ratio import TruthRatio, truth_ratio, truth_share

losses = st.lists(st.floats(0, 30), min_size=1, max_size=12)
scores = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=15)  # few values, so that there are ties
flags = st.lists(st.booleans(), min_size=2, max_size=15)
words = st.lists(st.sampled_from(["tea", "ink", "rye", "sells", "the", "sold"]), max_size=8).map(" ".join)


def answer(values: list[float], matches: list[bool] | None = None) -> AnswerScore:
    size = len(values)
    return AnswerScore(
        -np.asarray(values, dtype=np.float64),
        np.asarray(matches or [False] * size),
        np.full(size, -3.0),
        np.full(size, 2.0),
    )


@given(scores, scores)
def test_auc_equals_scikit_learn_and_a_loop(low: list[float], high: list[float]) -> None:
    area = auc(low, high)
    assert area == pytest.approx(roc_auc_score([0] * len(low) + [1] * len(high), low + high))
    wins = sum((h > x) + (h == x) / 2 for h in high for x in low)
    assert area == pytest.approx(wins / len(low) / len(high))


@given(scores, scores)
def test_auc_changes_sides_and_keeps_its_interval_in_range(low: list[float], high: list[float]) -> None:
    area = auc(low, high)
    assert auc(high, low) == pytest.approx(1 - area)
    assert auc([math.exp(x) for x in low], [math.exp(x) for x in high]) == area
    bottom, top = auc_interval(area, len(low), len(high))
    assert 0 <= bottom <= area <= top <= 1


@given(flags)
def test_memorisation_equals_loops(matches: list[bool]) -> None:
    """Extraction strength by trying every prefix, from the definition with its floor."""
    score = answer([1.0] * len(matches), matches)
    body = matches[:-1]
    size = len(body)
    k = next((k for k in range(size) if all(body[k:])), size - 1)
    assert extraction_strength(score) == pytest.approx(1 - k / size)
    assert exact_memorization(score) == pytest.approx(sum(body) / size)


@given(flags)
def test_extraction_strength_is_at_least_its_floor(matches: list[bool]) -> None:
    strength = extraction_strength(answer([1.0] * len(matches), matches))
    assert strength is not None
    assert 1 / (len(matches) - 1) - 1e-12 <= strength <= 1


@given(st.lists(losses, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(values: list[list[float]], shuffle: object) -> None:
    rows = [scored_row(index=i, answer=answer(v)) for i, v in enumerate(values)]
    other = list(rows)
    shuffle.shuffle(other)  # type: ignore[attr-defined]
    one, two = (Probability().compute(EvaluationContext({"forget": r})) for r in (rows, other))
    assert one.value == pytest.approx(two.value)
    assert one.per_example == two.per_example
    assert 0 <= one.value <= 1


@given(st.floats(0, 20), losses)
def test_truth_ratio_and_share_agree(right: float, wrong: list[float]) -> None:
    """share = 1 / (1 + R), up to the two 1e-10."""
    ratio, share = truth_ratio(right, wrong), truth_share(right, wrong)
    assert 0 <= share <= 1
    if ratio * math.exp(-right) > 1e-6 and math.exp(-right) > 1e-5:
        assert share == pytest.approx(1 / (1 + ratio), rel=1e-3)


@given(st.floats(0, 20), losses)
def test_aggregations_stay_in_range(right: float, wrong: list[float]) -> None:
    row = scored_row(index=0, paraphrase=answer([right]), wrong=tuple(answer([w]) for w in wrong))
    context = EvaluationContext({"forget": [row]})
    for aggregation in ("closer_to_1_better", "true_better", "prob_mean"):
        value = TruthRatio("forget", aggregation).compute(context).value  # type: ignore[arg-type]
        if math.exp(-right) + math.exp(-np.mean(wrong)) < LEAST:  # impossible for the model: there is no ratio
            assert value is None
        else:
            assert value is not None and 0 <= value <= 1


@given(st.lists(st.floats(0, 30), min_size=2, max_size=12), st.sampled_from([0.1, 0.4, 1.0]))
def test_min_k_equals_a_loop(values: list[float], k: float) -> None:
    body = sorted(values[:-1], reverse=True)
    count = max(1, int(len(body) * k))
    expected = sum(body[:count]) / count
    assert MinKAttack(k).score(answer(values)) == pytest.approx(expected)
    # With equal moments everywhere, min-k++ is an affine map of it: (x - 3) / sqrt(2) in losses.
    assert MinKPlusPlusAttack(k).score(answer(values)) == pytest.approx((expected - 3) / math.sqrt(2), abs=1e-9)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9))
def test_harmonic_mean_lies_between_the_least_and_the_mean(values: list[float]) -> None:
    mean = harmonic_mean(values)
    assert min(values) - 1e-12 <= mean <= sum(values) / len(values) + 1e-12


@settings(max_examples=25)
@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=12), st.lists(st.floats(0.01, 5), min_size=1, max_size=12))
def test_forget_quality_equals_scipy_and_ignores_monotone_maps(mine: list[float], theirs: list[float]) -> None:
    p, statistic = ks_test(mine, theirs)
    expected = ks_2samp(mine, theirs)
    assert (p, statistic) == (pytest.approx(expected.pvalue), pytest.approx(expected.statistic))
    doubled = ks_test([2 * x for x in mine], [2 * x for x in theirs])
    assert doubled == (pytest.approx(p), pytest.approx(statistic))
    # the statistic from its definition: the largest gap between the two step functions
    gaps = [abs(np.mean(np.array(mine) <= x) - np.mean(np.array(theirs) <= x)) for x in mine + theirs]
    assert statistic == pytest.approx(max(gaps))


@settings(max_examples=50)
@given(words, words)
def test_rouge_equals_longest_common_subsequence(target: str, text: str) -> None:
    """Of stems: "sold" stays and "sells" becomes "sell", so plain words compare as themselves."""
    a, b = target.split(), text.split()
    lengths = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            lengths[i + 1, j + 1] = lengths[i, j] + 1 if x == y else max(lengths[i, j + 1], lengths[i + 1, j])
    found = rouge(target, text)
    assert found["rougeL_recall"] == pytest.approx(lengths[-1, -1] / len(a)) if a else found is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_the_interval_holds_the_mean(values: list[float]) -> None:
    interval = mean_interval(values, SHARE)
    assert interval is not None
    assert 0 <= interval[0] <= np.mean(values) + 1e-12
    assert np.mean(values) - 1e-12 <= interval[1] <= 1
