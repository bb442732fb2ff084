"""Metrics of single answers: values worked out by hand from given token probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from metric_rows import scored_row

from oblivion.errors import ConfigError, InputError
from oblivion.metrics import metrics
from oblivion.metrics.engine.averages import mean_interval, mean_result
from oblivion.metrics.engine.context import ANY, SHARE, AnswerScore, EvaluationContext, ScoredRow
from oblivion.metrics.exact_memorization import ExactMemorization, exact_memorization
from oblivion.metrics.extraction_strength import ExtractionStrength, extraction_strength
from oblivion.metrics.normalised_probability import NormalisedProbability
from oblivion.metrics.probability import Probability
from oblivion.metrics.rouge import Rouge, rouge, start_rouge
from oblivion.metrics.suites import suites
from oblivion.metrics.truth_ratio import TruthRatio, truth_ratio, truth_share
from oblivion.seeding import numpy_generator


def answer(*probabilities: float, matches: Sequence[int] = ()) -> AnswerScore:
    """An answer whose tokens, EOS last, have these probabilities; `matches` says which ones are predicted."""
    flags = matches or [0] * len(probabilities)
    return AnswerScore(np.log(np.asarray(probabilities, dtype=np.float64)), np.asarray(flags, dtype=bool))


def context(*rows: ScoredRow, group: str = "forget") -> EvaluationContext:
    return EvaluationContext({group: rows})


def texts(count: int) -> list[tuple[str, str]]:
    """Pairs of texts that share some words, in different forms."""
    words = [
        "running",
        "runs",
        "ran",
        "cats",
        "cat",
        "universities",
        "university",
        "national",
        "12",
        "flies",
        "a",
        "the",
    ]
    generator = numpy_generator(0, "texts")
    return [
        (" ".join(generator.choice(words, 9)), " ".join(generator.choice(words, int(generator.integers(0, 14)))))
        for _ in range(count)
    ]


class TestProbability:
    # (1/2 * 1/8)^(1/2) = 1/4 and its loss is ln 4; a lone EOS with probability 1/2 counts, too.
    rows = (scored_row(index=0, answer=answer(1 / 2, 1 / 8)), scored_row(index=2, answer=answer(1 / 2)))

    def test_by_hand(self) -> None:
        result = Probability("forget").compute(context(*self.rows))
        assert result.value == pytest.approx((1 / 4 + 1 / 2) / 2)
        assert result.n == 2
        assert result.per_example["0"] == pytest.approx({"prob": 0.25, "avg_loss": math.log(4)})
        assert list(result.per_example) == ["0", "2"]

    def test_wrong_answers_are_averaged_within_a_row_first(self) -> None:
        rows = (
            scored_row(index=0, wrong=(answer(0.1), answer(0.3))),
            scored_row(index=1, wrong=(answer(0.6),)),
        )
        result = Probability("ra", "wrong").compute(context(*rows, group="ra"))
        assert result.value == pytest.approx((0.2 + 0.6) / 2)
        assert result.per_example["0"]["prob"] == pytest.approx([0.1, 0.3])
        assert result.per_example["0"]["avg_loss"] == pytest.approx([-math.log(0.1), -math.log(0.3)])

    def test_paraphrase_uses_the_rows_that_have_one(self) -> None:
        rows = (*self.rows, scored_row(index=3, answer=answer(0.9), paraphrase=answer(0.7)))
        result = Probability("forget", "paraphrase").compute(context(*rows))
        assert (result.value, result.n) == (pytest.approx(0.7), 1)

    def test_a_certain_model_has_probability_one(self) -> None:
        result = Probability().compute(context(scored_row(index=0, answer=answer(1.0, 1.0, 1.0))))
        assert result.value == 1.0
        assert result.interval is None

    def test_no_row_is_an_error_that_says_what_there_is(self) -> None:
        with pytest.raises(InputError, match=r"'wf' has wrong.*forget"):
            Probability("wf", "wrong").compute(context(*self.rows))


class TestNormalisedProbability:
    def test_by_hand(self) -> None:
        # 0.3 / (0.3 + 0.1 + 0.2) = 1/2
        row = scored_row(index=0, answer=answer(0.3), wrong=(answer(0.1), answer(0.2)))
        result = NormalisedProbability("ra").compute(context(row, group="ra"))
        assert result.value == pytest.approx(0.5, abs=1e-9)
        assert result.per_example["0"] == {"prob": result.value}

    def test_rows_without_wrong_answers_do_not_enter(self) -> None:
        rows = (
            scored_row(index=0, answer=answer(0.3), wrong=(answer(0.1),)),
            scored_row(index=1, answer=answer(0.3)),
        )
        assert NormalisedProbability("ra").compute(context(*rows, group="ra")).n == 1


class TestTruthRatio:
    # Wrong answers 1/2 and 1/8: geometric mean 1/4 (the arithmetic one would be 5/16). Right answer 1/2: R = 1/2.
    # In the second row the right answer has 1/16: R = 4.
    wrong = (answer(1 / 2), answer(1 / 8))
    rows = (
        scored_row(index=0, answer=answer(1 / 16), paraphrase=answer(1 / 2), wrong=wrong),
        scored_row(index=1, answer=answer(1 / 2), paraphrase=answer(1 / 16), wrong=wrong),
    )

    def test_the_mean_over_wrong_answers_is_geometric(self) -> None:
        assert truth_ratio(math.log(2), [math.log(2), math.log(8)]) == pytest.approx(0.5)
        assert truth_share(math.log(2), [math.log(2), math.log(8)]) == pytest.approx(2 / 3)

    @pytest.mark.parametrize(
        ("aggregation", "value", "scores"),
        [
            ("closer_to_1_better", (1 / 2 + 1 / 4) / 2, [1 / 2, 4]),
            ("true_better", (1 / 2 + 0) / 2, [1 / 2, 4]),
            ("prob_mean", (2 / 3 + 1 / 5) / 2, [2 / 3, 1 / 5]),  # (1/2)/(3/4) and (1/16)/(5/16)
        ],
    )
    def test_three_aggregations(self, aggregation: str, value: float, scores: list[float]) -> None:
        result = TruthRatio("forget", aggregation).compute(context(*self.rows))  # type: ignore[arg-type]
        assert result.value == pytest.approx(value, rel=1e-7)
        assert [row["score"] for row in result.per_example.values()] == pytest.approx(scores, rel=1e-7)

    def test_where_there_is_no_paraphrase_the_answer_is_right(self) -> None:
        result = TruthRatio("ra", "true_better", "answer").compute(context(*self.rows, group="ra"))
        assert [row["score"] for row in result.per_example.values()] == pytest.approx([4, 1 / 2], rel=1e-7)

    @pytest.mark.parametrize("right", [1e-3, 200.0])
    def test_over_unlearning_counts_as_far_from_one(self, right: float) -> None:
        """Both a right answer far likelier and one far less likely than the wrong ones give nearly 0."""
        score = AnswerScore(np.array([-right]), np.array([False]))
        other = AnswerScore(np.array([-200.0 if right < 1 else -1e-3]), np.array([False]))
        row = scored_row(index=0, paraphrase=score, wrong=(other,))
        assert TruthRatio().compute(context(row)).value == pytest.approx(0, abs=1e-9)


class TestMemorisation:
    @pytest.mark.parametrize(
        ("matches", "exact", "strength"),
        [
            ([1, 1, 1, 1, 0], 1.0, 1.0),  # EOS (the last) does not count
            ([0, 1, 1, 1, 1], 3 / 4, 3 / 4),  # after one token the rest is right: 1 - 1/4
            ([1, 1, 0, 1, 1], 3 / 4, 1 / 4),  # right from token 3 on
            ([1, 1, 1, 0, 1], 3 / 4, 1 / 4),  # the last one is wrong: the floor is 1/T, not 0
            ([0, 0, 0, 0, 1], 0.0, 1 / 4),
            ([0, 1], 0.0, 1.0),  # one token: the floor is 1
        ],
    )
    def test_by_hand(self, matches: list[int], exact: float, strength: float) -> None:
        score = answer(*[0.5] * len(matches), matches=matches)
        assert exact_memorization(score) == exact
        assert extraction_strength(score) == strength

    def test_an_answer_of_eos_alone_is_left_out(self) -> None:
        rows = (
            scored_row(index=0, answer=answer(0.5, matches=[1])),
            scored_row(index=1, answer=answer(0.5, 0.5, 0.5, matches=[1, 0, 1])),
        )
        for metric in (ExactMemorization(), ExtractionStrength()):
            result = metric.compute(context(*rows))
            assert (result.value, result.n, list(result.per_example)) == (0.5, 1, ["1"])

    def test_with_nothing_left_there_is_no_value(self) -> None:
        for metric in (ExactMemorization(), ExtractionStrength()):
            result = metric.compute(context(scored_row(index=0, answer=answer(0.5))))
            assert (result.value, result.n, result.extra) == (None, 0, {"left_out": 1})
            assert "before its end" in result.reason


class TestRouge:
    def test_by_hand(self) -> None:
        # Target: 4 words, 3 of them in the text (stems "cat" and "run" match), in order only 2 of 3.
        scores = rouge("the cats were running", "running dogs and the cat")
        assert scores["rouge1_recall"] == 3 / 4
        assert scores["rougeL_recall"] == 2 / 4
        # precision 2/5, recall 2/4: F1 = 2 * 0.4 * 0.5 / 0.9
        assert scores["rougeL_f1"] == pytest.approx(4 / 9)

    def test_remembered_stems_change_nothing(self) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        plain = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
        for target, text in texts(40):
            expected = plain.score(target=target, prediction=text)
            found = rouge(target, text)
            assert found["rouge1_recall"] == expected["rouge1"].recall
            assert found["rougeL_f1"] == expected["rougeL"].fmeasure
            assert found["rougeL_recall"] == expected["rougeL"].recall

    def test_a_pool_gives_the_same_in_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pairs = texts(60)
        expected = start_rouge(pairs)()
        monkeypatch.setattr("oblivion.metrics.rouge._FROM", 1)
        assert start_rouge(pairs)() == expected == [rouge(*pair) for pair in pairs]

    def test_an_empty_generation_scores_zero_and_still_counts(self) -> None:
        rows = (
            scored_row(index=0, target="one two", generation=""),
            scored_row(index=1, target="one two", generation="one two"),
            scored_row(index=2, target="one two"),
        )
        result = Rouge().compute(context(*rows))
        assert (result.value, result.n) == (0.5, 2)
        assert result.per_example["1"]["rougeL_f1"] == 1.0


class TestAverages:
    def test_interval_by_hand(self) -> None:
        # Values 1, 2, 3: mean 2, s = 1, standard error 1/sqrt(3).
        low, high = mean_interval([1, 2, 3], ANY) or (0, 0)
        assert (low, high) == pytest.approx((2 - 1.959964 / math.sqrt(3), 2 + 1.959964 / math.sqrt(3)), abs=1e-6)

    def test_interval_stays_in_the_range_of_the_values(self) -> None:
        values = [0.0, 0.0, 0.0, 0.2]
        assert (mean_interval(values, ANY) or (0, 0))[0] < 0
        assert (mean_interval(values, SHARE) or (1, 0))[0] == 0
        assert (mean_interval([1.0, 1.0, 0.8], SHARE) or (0, 0))[1] == 1

    def test_one_row_has_no_interval(self) -> None:
        assert mean_result({5: 0.25}, {5: {"score": 0.25}}).interval is None


class TestTables:
    def test_every_metric_loads_and_says_what_it_needs(self) -> None:
        for name in metrics.names():
            metric = metrics.get(name)()
            assert metric.requires, name
            with pytest.raises(InputError):
                metric.compute(EvaluationContext({}))

    def test_descriptions(self) -> None:
        assert all(line.endswith((".", "ideal.")) and len(line) > 20 for line in metrics.describe().values())
        assert "TOFU" in suites.describe()["tofu"]

    def test_unknown_suite(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'tofu'"):
            suites.get("tofuu")
