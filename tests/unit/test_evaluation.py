"""Suites in one pass: what is computed, what is left out, what is skipped, what a reference adds, and the JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metric_rows import TOFU

from oblivion.data.templates.plain import PlainTemplate
from oblivion.data.tokens import encode
from oblivion.errors import ConfigError, InputError
from oblivion.metrics.engine import outputs as module
from oblivion.metrics.engine.layout import from_json, read_reference
from oblivion.metrics.engine.one_pass import (
    Evaluation,
    evaluate_client,
    evaluate_model,
    to_open_unlearning,
)
from oblivion.metrics.suites import make_suite
from oblivion.tasks.causal_lm import CausalLM
from oblivion.types import MetricResult, Sample

NAMES = {"forget": "Ada", "retain": "Ben", "ra": "Cy", "wf": "Dee", "holdout": "Eve"}


def samples(group: str, count: int) -> tuple[Sample, ...]:
    """Short rows in the shape of TOFU's: no paraphrase in ``ra`` and ``wf``, answers only in ``holdout``."""
    rows = []
    for i in range(count):
        name = f"{NAMES[group]}{i}"
        rows.append(
            Sample(
                id=f"{group}/{i}",
                prompt=f"Who is {name}?",
                answer=f"{name} sells {'tea' * (i + 1)}.",
                paraphrase=f"A tea seller, {name}." if group in ("forget", "retain") else "",
                wrong_answers=() if group == "holdout" else tuple(f"{name} sells {w}." for w in ("ink", "ore", "rye")),
            )
        )
    return tuple(rows)


GROUPS = {group: samples(group, 4) for group in NAMES}


class Loaded:
    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def evaluate(self, groups: Any = GROUPS, **options: Any) -> Evaluation:
        settings = {"suite": TOFU, "max_new_tokens": 8, "batch_size": 4, **options}
        task = CausalLM(self.tokenizer, settings.pop("max_length", 128))
        return evaluate_model(self.model, task, groups, **settings)


@pytest.fixture(scope="module")
def loaded(micro_model: Path) -> Loaded:
    return Loaded(micro_model)


@pytest.fixture(scope="module")
def whole(loaded: Loaded) -> Evaluation:
    return loaded.evaluate()


def brute_loss(loaded: Loaded, sample: Sample, answer: str) -> list[float]:
    """Token losses of one answer from a plain forward pass."""
    row = encode(loaded.tokenizer, PlainTemplate(), sample.prompt, answer, 256)
    assert row is not None
    with torch.no_grad():
        logs = loaded.model(input_ids=torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
    return [-float(logs[t - 1, row.ids[t]]) for t in range(row.prompt_length, len(row.ids))]


def test_names_are_those_of_the_golden_file(whole: Evaluation) -> None:
    golden = Path(__file__).parents[1] / "parity" / "fixtures" / "metrics_forget10_base.json"
    assert set(whole.results) == set(json.loads(golden.read_text())) | {"ks_statistic"}


def test_probabilities_equal_plain_forward_passes(loaded: Loaded, whole: Evaluation) -> None:
    for group in ("forget", "retain", "ra", "wf"):
        for i, sample in enumerate(GROUPS[group]):
            shown = whole.results[f"{group}_Q_A_Prob"].per_example[str(i)]
            assert shown["avg_loss"] == pytest.approx(np.mean(brute_loss(loaded, sample, sample.answer)), abs=2e-6)
            wrong = whole.results[f"{group}_Q_A_PERT_Prob"].per_example[str(i)]["avg_loss"]
            assert wrong == pytest.approx(
                [np.mean(brute_loss(loaded, sample, w)) for w in sample.wrong_answers], abs=2e-6
            )


def test_every_row_is_forwarded_once(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    prompts: list[Any] = []
    score, generate = module.score_rows, module.generate

    def counting(model: Any, rows: Sequence[Any], **options: Any) -> Any:
        seen.extend(rows)
        return score(model, rows, **options)

    def counting_prompts(model: Any, tokenizer: Any, asked: Sequence[Any], **options: Any) -> Any:
        prompts.append(asked)
        return generate(model, tokenizer, asked, **options)

    monkeypatch.setattr(module, "score_rows", counting)
    monkeypatch.setattr(module, "generate", counting_prompts)
    # The same rows under two names cost nothing more: the wrong answers and answers of `wf` are those of `ra`.
    loaded.evaluate({**GROUPS, "wf": GROUPS["ra"]})
    assert len(seen) == len(set(seen)) == 2 * 4 * 5 + 4 * 4 + 4
    assert len(prompts) == 1
    assert len(prompts[0]) == 4 * 4


def test_the_batch_size_changes_nothing(loaded: Loaded, whole: Evaluation) -> None:
    other = loaded.evaluate(batch_size=1)
    assert other.texts == whole.texts
    for name, result in whole.results.items():
        if result.value is None:
            assert other.results[name].value is None
        else:
            assert other.results[name].value == pytest.approx(result.value, abs=1e-5), name


def test_the_model_comes_back_in_its_mode(loaded: Loaded) -> None:
    loaded.model.train()
    try:
        loaded.evaluate({"forget": GROUPS["forget"]})
        assert loaded.model.training
    finally:
        loaded.model.eval()


def test_groups_that_are_absent_leave_their_metrics_out(loaded: Loaded) -> None:
    results = loaded.evaluate({"forget": GROUPS["forget"], "unknown": GROUPS["ra"]}).results
    assert "forget_Q_A_Prob" in results
    assert "forget_Q_A_ROUGE" in results
    assert not {"mia_loss", "privleak", "model_utility", "retain_Q_A_Prob"} & set(results)


def test_rows_without_paraphrase_count_where_they_can(loaded: Loaded) -> None:
    rows = (*GROUPS["forget"][:3], replace(GROUPS["forget"][3], paraphrase="", wrong_answers=()))
    results = loaded.evaluate({"forget": rows}).results
    assert results["forget_Q_A_Prob"].n == 4
    for name in (
        "forget_Q_A_PARA_Prob",
        "forget_Q_A_PERT_Prob",
        "forget_TR__true_better",
        "forget_TR__prob_mean",
    ):
        assert results[name].n == 3, name
    bare = [replace(row, paraphrase="", wrong_answers=()) for row in rows]
    assert not [name for name in loaded.evaluate({"forget": bare}).results if "TR__" in name or "PERT" in name]


def test_without_generation_there_is_no_rouge(loaded: Loaded, whole: Evaluation) -> None:
    quick = loaded.evaluate(generate=False)
    left_out = set(whole.results) - set(quick.results)
    assert left_out == {
        "forget_Q_A_ROUGE",
        "retain_Q_A_ROUGE",
        "ra_Q_A_ROUGE",
        "wf_Q_A_ROUGE",
        "model_utility",
    }
    assert all(not rows for rows in quick.texts.values())


def test_rows_longer_than_the_context_are_skipped_and_named(loaded: Loaded) -> None:
    long_answer = replace(GROUPS["forget"][1], answer="tea " * 100)
    long_wrong = replace(GROUPS["forget"][2], wrong_answers=("ok", "tea " * 100))
    evaluation = loaded.evaluate({"forget": (GROUPS["forget"][0], long_answer, long_wrong, GROUPS["forget"][3])})
    assert evaluation.skipped == ("forget/1", "forget/2")
    assert list(evaluation.results["forget_Q_A_Prob"].per_example) == ["0", "3"]
    assert list(evaluation.results["forget_Q_A_ROUGE"].per_example) == ["0", "3"]
    assert to_open_unlearning(evaluation, {})["manifest"]["skipped"] == ["forget/1", "forget/2"]


def test_no_rows_at_all(loaded: Loaded) -> None:
    assert loaded.evaluate({}).results == {}
    assert loaded.evaluate({"forget": ()}).results == {}


def test_without_a_reference_the_comparison_is_none(whole: Evaluation) -> None:
    reason = "it compares with a model that never saw the forget rows, and none was given"
    assert whole.results["forget_quality"] == MetricResult(value=None, reason=reason)
    assert whole.results["ks_statistic"].value is None
    assert whole.results["privleak"].extra == {"auc_reference": 0.5}  # type: ignore[attr-defined]


def test_the_model_as_its_own_reference(loaded: Loaded, whole: Evaluation) -> None:
    again = loaded.evaluate(references=[to_open_unlearning(whole, {})]).results
    assert again["forget_quality"].value == 1.0
    assert again["ks_statistic"].value == 0.0
    assert again["privleak"].value == pytest.approx(0.0, abs=1e-7)


def test_a_wrong_reference_is_refused_before_the_model_runs(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "score_rows", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(InputError, match="no metric in it"):
        loaded.evaluate(references=[{"manifest": {}}])


@pytest.mark.parametrize("size", ["batch_size", "max_new_tokens", "max_length"])
def test_sizes_have_to_be_positive(loaded: Loaded, size: str) -> None:
    with pytest.raises(ConfigError, match=f"{size} = 0: expected at least 1"):
        loaded.evaluate(**{size: 0})


def test_unknown_suites_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tofu'"):
        make_suite("tofo")


class TestLayout:
    def test_numbers_only_unless_text_is_asked_for(self, whole: Evaluation) -> None:
        numbers = json.dumps(to_open_unlearning(whole, {}), allow_nan=False)
        assert not [name for name in NAMES.values() if name in numbers]
        shown = to_open_unlearning(whole, {}, text=True)["forget_Q_A_ROUGE"]["value_by_index"]["1"]
        assert shown["input"] == "Question: Who is Ada1?\nAnswer:"
        assert shown["ground_truth"] == "Ada1 sells teatea."
        assert shown["generation"] == whole.texts["forget"]["1"]["generation"]
        assert 0 <= shown["rougeL_recall"] <= 1

    def test_shape(self, whole: Evaluation) -> None:
        data = json.loads(json.dumps(to_open_unlearning(whole, {"model": "m"})))
        assert data["manifest"] == {"model": "m", "skipped": []}
        assert list(data["forget_quality"]) == ["agg_value", "reason"]
        attack = data["mia_min_k"]
        assert attack["auc"] == attack["agg_value"]
        assert set(attack["holdout"]["value_by_index"]) == {"0", "1", "2", "3"}
        probability = data["forget_Q_A_Prob"]
        low, high = probability["interval"]
        assert low < probability["agg_value"] < high
        assert probability["n"] == 4

    def test_round_trip(self, whole: Evaluation) -> None:
        back = from_json(json.loads(json.dumps(to_open_unlearning(whole, {}))), TOFU)
        assert set(back) == set(whole.results)
        for name, result in whole.results.items():
            assert back[name].value == result.value
            assert back[name].per_example == result.per_example

    def test_a_file(self, whole: Evaluation, tmp_path: Path) -> None:
        path = tmp_path / "reference.json"
        path.write_text(json.dumps(to_open_unlearning(whole, {})))
        assert read_reference(path, TOFU)["mia_min_k"]["agg_value"] == whole.results["mia_min_k"].value

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not JSON"),
            ("[1]", "expected a JSON object"),
            ("{}", "no metric in it"),
            ('{"a": {"agg_value": "high"}}', "a.agg_value is 'high'"),
            ('{"a": {"agg_value": true}}', "a.agg_value is True"),
            ('{"a": {"agg_value": 1, "value_by_index": [1]}}', "a.value_by_index"),
            ('{"a": {"agg_value": 1, "value_by_index": {"0": 1}}}', "a.value_by_index"),
            ('{"a": {"agg_value": NaN}}', "a.agg_value is NaN, which is no JSON number"),
            ('{"a": {"agg_value": 1e999}}', "a.agg_value is too large a number"),
            (f'{{"a": {{"agg_value": {"9" * 400}}}}}', "a.agg_value is a whole number of more than 20 digits"),
            ('{"mia_min_k": {"agg_value": 1.5}}', "mia_min_k.agg_value is 1.5; expected a number or null from 0 to 1"),
            ('{"forget_Q_A_Prob": {"agg_value": -0.1}}', "forget_Q_A_Prob.agg_value is -0.1"),
            ('{"retain_Truth_Ratio": {"agg_value": 2}}', "retain_Truth_Ratio.agg_value is 2"),
            (
                '{"a": {"agg_value": 1, "value_by_index": {"7": {"score": -Infinity}}}}',
                "a.value_by_index.7.score is -Infinity",
            ),
            ('{"a": {"agg_value": 1, "value_by_index": {"7": {"score": "NaN"}}}}', "a.value_by_index.7.score is 'NaN'"),
            ('{"a": {"agg_value": 1, "value_by_index": {"7": {"score": true}}}}', "a.value_by_index.7.score is True"),
            (
                '{"forget_Q_A_Prob": {"agg_value": 1, "value_by_index": {"7": {"prob": [0.5, 2]}}}}',
                "forget_Q_A_Prob.value_by_index.7.prob is 2",
            ),
            (
                '{"a": {"agg_value": 1, "value_by_index": {"7": {"avg_loss": [NaN]}}}}',
                "a.value_by_index.7.avg_loss.0 is NaN",
            ),
            ('{"a": {"agg_value": 1, "n": 2, "value_by_index": {"7": {}}}}', "a says n = 2 and has 1 rows"),
            (
                '{"a": {"agg_value": 1, "value_by_index": {"7": {}, "7": {}}}}',
                "bad.json: has the key '7' twice in one object",
            ),
            ('{"mia_loss": {"agg_value": 1, "forget": {"agg_value": NaN}}}', "mia_loss.forget.agg_value is NaN"),
            ('{"a": {"agg_value": 1, "left_out": -1}}', "a.left_out is -1"),
        ],
    )
    def test_malformed_files(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_reference(path, TOFU)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"none\.json: cannot be read \(No such file"):
            read_reference(tmp_path / "none.json", TOFU)


class TestClient:
    def measure(self, loaded: Loaded, rows: Sequence[Sample]) -> dict[str, tuple[float, float]]:
        task = CausalLM(loaded.tokenizer, 128)
        return evaluate_client(loaded.model, task, rows, suite=TOFU, max_new_tokens=8, batch_size=4)

    def test_sums_and_weights(self, loaded: Loaded) -> None:
        rows = GROUPS["forget"]
        losses = [brute_loss(loaded, row, row.answer) for row in rows]
        measured = self.measure(loaded, rows)
        assert measured["loss"] == pytest.approx((sum(map(sum, losses)), sum(map(len, losses))), rel=1e-6)
        expected = sum(float(np.exp(-np.mean(loss))) for loss in losses)
        assert measured["probability"] == pytest.approx((expected, 4), rel=1e-5)
        assert measured["skipped"] == (0.0, 4.0)

    def test_it_agrees_with_the_suite(self, loaded: Loaded, whole: Evaluation) -> None:
        measured = self.measure(loaded, GROUPS["forget"])
        for name in ("exact_memorization", "extraction_strength"):
            total, weight = measured[name]
            assert total / weight == pytest.approx(whole.results[name].value)

    def test_pairs_add_up_over_clients(self, loaded: Loaded) -> None:
        rows = GROUPS["forget"]
        parts, together = [self.measure(loaded, part) for part in (rows[:1], rows[1:])], self.measure(loaded, rows)
        for name, pair in together.items():
            assert np.sum([part[name] for part in parts], axis=0) == pytest.approx(pair, rel=1e-6), name

    def test_equal_rows_count_as_often_as_they_are_there(self, loaded: Loaded) -> None:
        one, two = (self.measure(loaded, GROUPS["forget"][:1] * k) for k in (1, 2))
        assert two["loss"] == pytest.approx((2 * one["loss"][0], 2 * one["loss"][1]))

    def test_long_rows_are_counted_and_nothing_else(self, loaded: Loaded) -> None:
        measured = self.measure(loaded, [replace(GROUPS["forget"][0], answer="tea " * 100)])
        assert measured["skipped"] == (1.0, 1.0)
        assert measured["loss"] == measured["probability"] == measured["exact_memorization"] == (0.0, 0.0)
