"""Every metric against what OpenUnlearning computes (locuslab/open-unlearning, commit d3d7cf9).

`fixtures/metrics_forget10_base.json` holds their numbers, per row and aggregate: the 260k-parameter TinyStories
model, the first 40 rows of each of TOFU's files (forget10), our plain template, fp32, batches of 32 (their own
scoring) and greedy generation of at most 64 tokens. Their forget quality is null, since there is no reference.
The test needs the model and the data beside the checkout; without them the fixture itself is still checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from oblivion.metrics.engine.auc import auc
from oblivion.metrics.model_utility import harmonic_mean
from oblivion.metrics.privleak import privleak

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "fixtures" / "metrics_forget10_base.json").read_text(encoding="utf-8")
)
ROWS = 40


@pytest.fixture(scope="module")
def ours(shared: Path) -> dict[str, Any]:
    from oblivion.config import ModelConfig
    from oblivion.data.datasets.tofu import evaluation_groups
    from oblivion.data.templates.plain import PlainTemplate
    from oblivion.metrics.engine.one_pass import evaluate_model, to_open_unlearning
    from oblivion.metrics.suites import make_suite
    from oblivion.models.loading import load_base
    from oblivion.tasks.causal_lm import CausalLM

    base = load_base(ModelConfig(name=str(shared / "models" / "stories260k"), dtype="float32"))
    groups = {name: rows[:ROWS] for name, rows in evaluation_groups(shared / "data" / "tofu", "forget10").items()}
    evaluation = evaluate_model(
        base.model,
        CausalLM(base.tokenizer, base.max_length, PlainTemplate()),
        groups,
        suite=make_suite("tofu"),
        max_new_tokens=64,
        batch_size=64,
    )
    assert evaluation.skipped == ()
    return to_open_unlearning(evaluation, {}, text=True)


def leaves(theirs: Any, ours: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Every number of theirs with ours at the same place."""
    if isinstance(theirs, dict):
        for key, value in theirs.items():
            yield from leaves(value, ours[key], (*path, key))
    elif isinstance(theirs, list):
        assert len(theirs) == len(ours), path
        for index, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            yield from leaves(a, b, (*path, str(index)))
    else:
        yield path, theirs, ours


def tolerance(path: tuple[str, ...], value: float) -> float:
    """Absolute tolerance; the fixture has ten digits, and their exact memorisation is a mean in fp32."""
    name = path[0]
    if "TR__" in name:
        return 5e-5 * abs(value)
    if name.endswith("ROUGE") or name in ("extraction_strength", "privleak") or "auc" in path:
        return 1e-9
    if name == "exact_memorization":
        return 2e-7 * max(abs(value), 1e-3)
    if name == "mia_min_k_plus_plus":
        return 3e-5 if path[-1] != "agg_value" or len(path) > 2 else 1e-9
    if name.startswith("mia_"):
        return 1e-9 if path == (name, "agg_value") else 1e-5
    if "avg_loss" in path:
        return 1e-5
    if name.endswith(
        "normalised"
    ):  # p / (p + q): its error is p (1 - p) times that of log p - log q, each 1e-5 at most
        return max(1e-6, 2e-5 * abs(value) * (1 - abs(value)))
    return 1e-6


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_every_number(ours: dict[str, Any], name: str) -> None:
    compared = 0
    for path, theirs, mine in leaves(GOLDEN[name], ours[name], (name,)):
        compared += 1
        if theirs is None:
            assert mine is None, path
        else:
            assert mine == pytest.approx(theirs, rel=0, abs=tolerance(path, theirs)), path
    assert compared >= (1 if "value_by_index" not in GOLDEN[name] else ROWS)


def test_generations_and_their_inputs_are_identical(shared: Path, ours: dict[str, Any]) -> None:
    original = json.loads((shared / "golden" / "metrics_forget10_base.json").read_text(encoding="utf-8"))
    for group in ("forget", "retain", "ra", "wf"):
        theirs, mine = (side[f"{group}_Q_A_ROUGE"]["value_by_index"] for side in (original, ours))
        for index, row in theirs.items():
            assert {key: mine[index][key] for key in ("input", "ground_truth", "generation")} == {
                key: row[key] for key in ("input", "ground_truth", "generation")
            }


def test_the_fixture_holds_numbers_only() -> None:
    assert not [path for path, value, _ in leaves(GOLDEN, GOLDEN) if isinstance(value, str)]


@pytest.mark.parametrize("name", ["mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"])
def test_areas_from_their_scores(name: str) -> None:
    """Our AUC of their scores is theirs, and scikit-learn's."""
    scores = {g: [row["score"] for row in GOLDEN[name][g]["value_by_index"].values()] for g in ("forget", "holdout")}
    area = auc(scores["forget"], scores["holdout"])
    assert area == pytest.approx(GOLDEN[name]["auc"], abs=1e-12)
    labels = np.repeat([0, 1], ROWS)
    assert area == pytest.approx(roc_auc_score(labels, scores["forget"] + scores["holdout"]), abs=1e-12)


def test_utility_and_privleak_from_their_numbers() -> None:
    value = {name: entry["agg_value"] for name, entry in GOLDEN.items()}
    parts = [value["retain_Q_A_Prob"], value["ra_Q_A_Prob_normalised"], value["wf_Q_A_Prob_normalised"]]
    parts += [value[f"{g}_{m}"] for g in ("retain", "ra", "wf") for m in ("Q_A_ROUGE", "TR__true_better")]
    assert harmonic_mean(parts) == pytest.approx(value["model_utility"], rel=1e-8)
    assert harmonic_mean(parts) == pytest.approx(hmean(parts))
    assert privleak(GOLDEN["mia_min_k"]["auc"], 0.5) == pytest.approx(value["privleak"], rel=1e-8)


@pytest.mark.parametrize("group", ["forget", "retain", "ra", "wf"])
def test_truth_ratio_from_their_losses(group: str) -> None:
    from oblivion.metrics.truth_ratio import truth_ratio, truth_share

    right = "Q_A_PARA_Prob" if group in ("forget", "retain") else "Q_A_Prob"
    for index, row in GOLDEN[f"{group}_{right}"]["value_by_index"].items():
        wrong = GOLDEN[f"{group}_Q_A_PERT_Prob"]["value_by_index"][index]["avg_loss"]
        expected = GOLDEN[f"{group}_TR__true_better"]["value_by_index"][index]["score"]
        assert truth_ratio(row["avg_loss"], wrong) == pytest.approx(expected, rel=2e-5)
        share = GOLDEN[f"{group}_TR__prob_mean"]["value_by_index"][index]["score"]
        assert truth_share(row["avg_loss"], wrong) == pytest.approx(share, rel=2e-5)
