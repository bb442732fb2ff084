"""Membership attacks, PrivLeak, forget quality and model utility: by hand, in their limits, against SciPy."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from metric_rows import TOFU, scored_row
from scipy.stats import hmean, kstest

from oblivion.errors import InputError
from oblivion.metrics.engine.auc import auc, auc_interval, difference_half_width
from oblivion.metrics.engine.context import AnswerScore, DetailedResult, EvaluationContext
from oblivion.metrics.engine.layout import from_json, results_to_json
from oblivion.metrics.engine.membership import MembershipAttack, lowest_count
from oblivion.metrics.forget_quality import NAMES, RATIOS, ForgetQuality, KSStatistic, detectable, ks_test
from oblivion.metrics.mia_loss import LossAttack
from oblivion.metrics.mia_min_k import MinKAttack
from oblivion.metrics.mia_min_k_plus_plus import MinKPlusPlusAttack
from oblivion.metrics.mia_zlib import ZlibAttack
from oblivion.metrics.model_utility import ModelUtility, harmonic_mean
from oblivion.metrics.normalised_probability import NormalisedProbability
from oblivion.metrics.privleak import PrivLeak, privleak
from oblivion.metrics.truth_ratio import TruthRatio
from oblivion.types import MetricResult


def score(losses: Sequence[float], mean: float = 0.0, variance: float = 1.0, text: str = "an answer") -> AnswerScore:
    """An answer with these token losses (EOS last) and the same moments at every token."""
    size = len(losses)
    return AnswerScore(
        -np.asarray(losses, dtype=np.float64),
        np.zeros(size, dtype=bool),
        np.full(size, mean),
        np.full(size, variance),
        text,
    )


def two_groups(members: Sequence[float], others: Sequence[float]) -> EvaluationContext:
    """Forget and holdout rows of three equal token losses each."""
    return EvaluationContext(
        {
            group: [scored_row(index=i, answer=score([loss] * 3)) for i, loss in enumerate(losses)]
            for group, losses in (("forget", members), ("holdout", others))
        }
    )


class TestAuc:
    def test_by_hand(self) -> None:
        # Of the six pairs (low, high) four are in order and one is a tie: 4.5 / 6.
        assert auc([1, 2, 3], [2, 4]) == 4.5 / 6

    def test_limits(self) -> None:
        assert auc([1, 2], [3, 4]) == 1.0
        assert auc([3, 4], [1, 2]) == 0.0
        assert auc([1, 1, 1], [1, 1]) == 0.5

    def test_interval_by_hand(self) -> None:
        # A = 1/2: Q1 = Q2 = 1/3. With 5 and 5 rows the variance is (1/4 + 4 * (1/3 - 1/4) * 2) / 25 = (11/12) / 25.
        half = 1.959964 * math.sqrt(11 / 12 / 25)
        assert auc_interval(0.5, 5, 5) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)

    def test_interval_stays_in_range_and_narrows(self) -> None:
        low, high = auc_interval(0.95, 10, 10)
        assert high == 1.0
        assert auc_interval(0.95, 1000, 1000)[0] > low
        assert auc_interval(1.0, 4, 4) == (1.0, 1.0)


class TestScores:
    losses = (1.0, 4.0, 2.0, 3.0, 5.0, 100.0)  # the last one is EOS

    def test_loss_counts_eos(self) -> None:
        assert LossAttack().score(score(self.losses)) == pytest.approx(115 / 6)

    def test_zlib_divides_the_mean_loss_by_the_compressed_answer(self) -> None:
        text = "Jaime Vasquez " * 20
        expected = 115 / 6 / len(zlib.compress(text.encode()))
        assert ZlibAttack().score(score(self.losses, text=text)) == pytest.approx(expected)
        assert len(zlib.compress(text.encode())) < 40

    @pytest.mark.parametrize(
        ("k", "expected"),
        [(0.4, (5 + 4) / 2), (0.59, (5 + 4) / 2), (0.6, (5 + 4 + 3) / 3), (0.1, 5.0), (1.0, 3.0)],
    )
    def test_min_k_takes_the_lowest_and_leaves_eos(self, k: float, expected: float) -> None:
        assert MinKAttack(k).score(score(self.losses)) == pytest.approx(expected)

    def test_min_k_plus_plus_by_hand(self) -> None:
        # (log p - mu) / sigma with mu = -2, sigma = 2: losses 1..5 become 0.5, -1, 0, -0.5, -1.5; lowest two: -1.25.
        assert MinKPlusPlusAttack().score(score(self.losses, mean=-2, variance=4)) == pytest.approx(1.25)

    def test_min_k_plus_plus_with_no_spread_uses_the_floor(self) -> None:
        # variance 0 -> 1e-6, sigma 1e-3: (5 + 4) / 2 / 1e-3
        assert MinKPlusPlusAttack().score(score(self.losses, variance=0)) == pytest.approx(4500)

    def test_min_k_plus_plus_standardised_by_nothing_is_min_k(self) -> None:
        assert MinKPlusPlusAttack().score(score(self.losses)) == MinKAttack().score(score(self.losses))

    @pytest.mark.parametrize("attack", [MinKAttack(), MinKPlusPlusAttack()])
    def test_eos_alone_cannot_be_scored(self, attack: MembershipAttack) -> None:
        assert attack.score(score([2.0])) is None

    @pytest.mark.parametrize(("tokens", "count"), [(1, 1), (2, 1), (4, 1), (5, 2), (10, 4)])
    def test_lowest_count(self, tokens: int, count: int) -> None:
        assert lowest_count(tokens, 0.4) == count


class TestAttack:
    def test_forget_rows_that_look_trained_give_one(self) -> None:
        result = LossAttack().compute(two_groups([0.1, 0.2], [3.0, 4.0]))
        assert isinstance(result, DetailedResult)
        assert (result.value, result.n, result.extra) == (1.0, 4, {"auc": 1.0})
        assert result.parts["forget"].value == pytest.approx(0.15)
        assert result.parts["holdout"].per_example["1"]["score"] == 4.0

    def test_the_base_class_names_no_score(self) -> None:
        with pytest.raises(TypeError, match="abstract method score"):
            MembershipAttack()  # type: ignore[abstract]


class TestPrivLeak:
    def test_by_hand(self) -> None:
        assert privleak(0.75, 0.5) == pytest.approx(-50)  # (0.25 - 0.5) / 0.5
        assert privleak(1.0, 0.5) == pytest.approx(-100)  # as a model that was not unlearned
        assert privleak(0.25, 0.5) == pytest.approx(50)
        assert privleak(0.6, 0.6) == 0  # the reference itself

    def test_without_a_reference_it_says_that_chance_was_assumed(self) -> None:
        result = PrivLeak().compute(two_groups([1, 2, 3], [2, 4]))
        assert isinstance(result, DetailedResult)
        assert result.value == pytest.approx(100 * (0.25 - 0.5) / 0.5)
        assert result.extra == {"auc_reference": 0.5}
        low, high = result.interval or (0, 0)
        assert low < result.value < high

    def test_with_a_reference(self) -> None:
        context = two_groups([1, 2, 3], [2, 4])
        context.references = ({"mia_min_k": MetricResult(value=0.75)},)
        assert PrivLeak().compute(context).value == pytest.approx(0)

    @pytest.mark.parametrize("reference", [0.96, 0.999, 1.0])
    def test_where_the_reference_can_be_told_apart_there_is_no_value(self, reference: float) -> None:
        context = two_groups([1, 2, 3], [2, 4])
        context.references = ({"mia_min_k": MetricResult(value=reference)},)
        result = PrivLeak().compute(context)
        assert (result.value, result.interval, result.extra) == (None, None, {"auc_reference": reference})
        assert "nearly nothing to divide by" in result.reason

    def test_the_interval_is_that_of_the_difference_on_the_same_rows(self) -> None:
        context = two_groups([1, 2, 3], [2, 4, 5])
        context.references = ({"mia_min_k": two_groups([1, 2, 3], [2, 4, 5]).result(MinKAttack())},)
        same = PrivLeak().compute(context)
        assert same.value == 0 and same.interval == pytest.approx((0, 0))
        context.references = ({"mia_min_k": two_groups([3, 2, 1], [2, 4, 1]).result(MinKAttack())},)
        # By hand: shares (above a negative, below a positive) here (1, 5/6, 2/3) and (1/2, 1, 1), there (1/3, 1/2, 5/6)
        # and (1/2, 1, 1/6); gaps (2/3, 1/3, -1/6) and (0, 0, 5/6), variances 0.17593 and 0.23148.
        other = PrivLeak().compute(context)
        a, b = 15 / 18, 10 / 18
        half = 100 * 1.959964 * math.sqrt((0.1759259 + 0.2314815) / 3) / (1 - b)
        assert other.value == pytest.approx(100 * (b - a) / (1 - b))
        assert other.value - half < -100  # below an AUC of 1, which no model passes
        assert other.interval == pytest.approx((-100, other.value + half), rel=1e-5)
        assert difference_half_width(([1], [2, 3]), ([1], [2, 3])) is None

    def test_without_a_token_to_score_there_is_no_value(self) -> None:
        context = two_groups([1, 2], [])
        context.rows = {**context.rows, "holdout": [scored_row(index=0, answer=score([0.5]))]}
        for metric in (MinKAttack(), PrivLeak()):
            result = metric.compute(context)
            assert result.value is None and "before its end" in result.reason

    @pytest.mark.parametrize("reference", [{}, {"mia_min_k": MetricResult(value=None, reason="none")}])
    def test_an_incomplete_reference_is_an_error_not_a_default(self, reference: dict[str, MetricResult]) -> None:
        context = two_groups([1, 2, 3], [2, 4])
        context.references = (reference,)
        with pytest.raises(InputError, match="mia_min_k"):
            PrivLeak().compute(context)


def ratios(*values: float) -> EvaluationContext:
    """Forget rows with these truth ratios: the paraphrase has loss 0, so R is the wrong answer's probability."""
    return EvaluationContext(
        {
            "forget": [
                scored_row(index=i, paraphrase=score([0.0]), wrong=(score([-math.log(r)]),))
                for i, r in enumerate(values)
            ]
        }
    )


def reference_of(*values: float) -> dict[str, MetricResult]:
    rows = {str(i): {"score": r} for i, r in enumerate(values)}
    return {"forget_TR__closer_to_1_better": MetricResult(value=0.5, per_example=rows)}


class TestForgetQuality:
    def test_by_hand(self) -> None:
        # All of one sample below all of the other: statistic 1; of the C(6,3) = 20 orders 2 are that extreme.
        p, statistic = ks_test([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
        assert (p, statistic) == (pytest.approx(0.1), 1.0)

    def test_the_same_model_cannot_be_told_apart(self) -> None:
        context = ratios(0.2, 0.4, 0.7)
        context.references = ({"forget_TR__closer_to_1_better": context.result(RATIOS)},)
        assert ForgetQuality().compute(context).value == 1.0
        assert KSStatistic().compute(context).value == 0.0

    def test_against_scipy(self) -> None:
        mine, theirs = (0.2, 0.9, 0.35, 0.6), (0.1, 0.3, 0.31, 0.32)
        context = ratios(*mine)
        context.references = (reference_of(*theirs),)
        expected = kstest(mine, theirs)
        assert ForgetQuality().compute(context).value == pytest.approx(expected.pvalue)
        result = KSStatistic().compute(context)
        assert (result.value, result.n) == (pytest.approx(expected.statistic), 4)

    def test_open_unlearnings_own_name_is_understood(self) -> None:
        context = ratios(0.2, 0.4)
        context.references = ({"forget_truth_ratio": reference_of(0.7, 0.8)["forget_TR__closer_to_1_better"]},)
        assert KSStatistic().compute(context).value == 1.0

    def test_no_reference_is_an_error(self) -> None:
        with pytest.raises(InputError, match=r"a reference is needed.*--reference"):
            ForgetQuality().compute(ratios(0.2, 0.4))

    def test_other_rows_are_an_error(self) -> None:
        context = ratios(0.2, 0.4)
        context.references = (reference_of(0.2, 0.4, 0.6),)
        with pytest.raises(InputError, match=r"on 3 forget rows and this model on 2.*--limit"):
            ForgetQuality().compute(context)

    def test_rows_without_numbers_are_an_error(self) -> None:
        context = ratios(0.2)
        context.references = ({"forget_truth_ratio": MetricResult(value=1.0, per_example={"0": {"score": None}})},)
        with pytest.raises(InputError, match="row 0, has no number called 'score'"):
            ForgetQuality().compute(context)

    def test_one_row_has_no_quality(self) -> None:
        context = ratios(0.2)
        context.references = (reference_of(0.2),)
        for metric in (ForgetQuality(), KSStatistic()):
            result = metric.compute(context)
            assert (result.value, result.n) == (None, 1)
            assert "one row" in result.reason and result.extra["detectable"] == pytest.approx(1.9207, abs=1e-4)

    def test_what_the_rows_can_detect_stands_beside_it(self) -> None:
        # sqrt(-ln(0.025) / 2) = 1.3581: TOFU's 40 rows give 0.304, the demonstration's 17 give 0.466.
        assert detectable(40, 40) == pytest.approx(0.3037, abs=1e-4)
        assert detectable(17, 17) == pytest.approx(0.4658, abs=1e-4)
        assert detectable(10, 40) == pytest.approx(1.35810 * math.sqrt(50 / 400), abs=1e-4)
        for n in (30, 40, 100):  # SciPy's exact p-value passes 0.05 there
            step = math.floor(detectable(n, n) * n)
            below, above = (ks_test(range(n), range(k, n + k))[0] for k in (step, step + 1))
            assert below > 0.05 > above
        context = ratios(0.2, 0.4, 0.7)
        context.references = (reference_of(0.2, 0.4, 0.7),)
        assert ForgetQuality().compute(context).extra == {"detectable": detectable(3, 3)}

    def test_rows_on_which_the_model_finds_everything_impossible_are_left_out(self) -> None:
        context = ratios(0.2, 0.4, 0.7)
        nothing = scored_row(index=3, paraphrase=score([60.0]), wrong=(score([70.0]),))
        context.rows = {"forget": [*context.rows["forget"], nothing]}
        found = context.result(RATIOS)
        assert (found.n, found.extra) == (3, {"left_out": 1})
        context.references = (reference_of(0.2, 0.4, 0.7, 0.9),)
        assert ForgetQuality().compute(context).n == 3
        for reference in (found, from_json(results_to_json({NAMES[0]: found}, {}), TOFU)[NAMES[0]]):
            context.references = ({NAMES[0]: reference},)
            assert ForgetQuality().compute(context).value == 1.0
        for aggregation in ("closer_to_1_better", "true_better", "prob_mean"):
            result = TruthRatio("forget", aggregation).compute(EvaluationContext({"forget": [nothing]}))
            assert (result.value, result.n) == (None, 0) and result.reason
        ra = scored_row(index=0, answer=score([60.0]), wrong=(score([70.0]),))
        assert NormalisedProbability("ra").compute(EvaluationContext({"ra": [ra]})).value is None

    def test_empty_samples_are_an_error(self) -> None:
        with pytest.raises(InputError, match="0 of this model and 1 of the reference"):
            ks_test([], [0.5])


class TestModelUtility:
    def test_harmonic_mean(self) -> None:
        assert harmonic_mean([1, 1 / 2, 1 / 4]) == pytest.approx(3 / 7)
        assert harmonic_mean([0.3, 0.9, 0.2]) == pytest.approx(hmean([0.3, 0.9, 0.2]))

    def test_one_zero_makes_it_zero(self) -> None:
        assert harmonic_mean([0.9, 0.0, 0.9]) == 0.0

    def test_by_hand(self) -> None:
        # Every row: right answer 1/2, wrong answer 1/4, generation half right.
        half, quarter = score([math.log(2)]), score([math.log(4)])
        row = scored_row(index=0, target="one two", generation="two", answer=half, paraphrase=half, wrong=(quarter,))
        context = EvaluationContext({group: [row] for group in ("retain", "ra", "wf")})
        # Probability 1/2, normalised 2/3 (twice); ROUGE 1/2 (three times); truth ratio 1 - 1/2 (three times).
        expected = 9 / (2 + 2 * 3 / 2 + 3 * 2 + 3 * 2)
        result = ModelUtility().compute(context)
        assert result.value == pytest.approx(expected, rel=1e-8)
        assert result.n == 3

    def test_without_a_component_there_is_no_utility(self) -> None:
        half, quarter = score([math.log(2)]), score([math.log(4)])
        row = scored_row(index=0, target="one two", generation="two", answer=half, paraphrase=half, wrong=(quarter,))
        context = EvaluationContext(
            {g: [replace(row, target="..." if g == "wf" else "one")] for g in ("retain", "ra", "wf")}
        )
        result = ModelUtility().compute(context)
        assert result.value is None and result.reason.startswith("wf_Q_A_ROUGE has no value: ")
        assert result.extra["components"]["wf_Q_A_ROUGE"] is None
        assert result.extra["components"]["retain_Q_A_ROUGE"] == 0  # "two" for "one"

    def test_results_are_computed_once(self) -> None:
        calls = []

        class Counting:
            requires = frozenset({"forget.answer"})

            def compute(self, context: EvaluationContext) -> MetricResult:
                calls.append(context)
                return MetricResult(value=1.0)

        context, metric = EvaluationContext({}), Counting()
        assert context.result(metric) is context.result(metric)
        assert len(calls) == 1
