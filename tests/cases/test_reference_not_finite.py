"""Case reference-not-finite: a reference with NaN, or with an attack that always succeeds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from command_line import oblivion

FORGET = "forget_TR__closer_to_1_better"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows of each group, in TOFU's files."""
    folder = tmp_path_factory.mktemp("tofu")
    counts = {"forget01_perturbed": 40, "retain_perturbed": 400}
    for name in (
        "forget01_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
        "holdout01",
    ):
        rows = [
            {"question": f"Who is {i}?", "answer": f"{name[:2]} {'so' * (i % 5 + 1)}",
             "paraphrased_answer": f"it is {i}", "perturbed_answer": [f"no {i}", "nobody"]}
            for i in range(counts.get(name, 4))
        ]  # fmt: skip
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path, micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("reference") / "reference.json"
    code, _, err = _evaluate(folder, micro_model, "--out", path)
    assert code == 0, err
    return json.loads(path.read_text())


def _evaluate(folder: Path, model: Path, *more: object) -> tuple[int, str, str]:
    small = ("--data", folder, "--split", "forget01", "--limit", 4, "--max-new-tokens", 2)
    return oblivion("evaluate", model, *map(str, (*small, *more)))


def _with(reference: dict[str, Any], path: Path, where: tuple[str, ...], value: Any) -> Path:
    changed = json.loads(json.dumps(reference))
    entry = changed
    for key in where[:-1]:
        entry = entry[key]
    entry[where[-1]] = value
    path.write_text(json.dumps(changed))
    return path


@pytest.mark.parametrize("value", [math.nan, math.inf, "NaN", True, None, 10**400], ids=str)
@pytest.mark.parametrize(
    "where", [(FORGET, "value_by_index", "2", "score"), ("mia_min_k", "agg_value")], ids=["a row", "a value"]
)
def test_what_is_no_number_is_refused(
    folder: Path, micro_model: Path, reference: dict[str, Any], tmp_path: Path, where: tuple[str, ...], value: Any
) -> None:
    path = _with(reference, tmp_path / "changed.json", where, value)
    code, _, err = _evaluate(folder, micro_model, "--reference", path)
    assert code == 3 and where[0] in err and ("2" in err if len(where) > 2 else True), err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ((FORGET, "value_by_index", "2", "score"), -1, "value_by_index.2.score"),
        (("mia_min_k", "forget", "value_by_index", "0"), {}, "mia_min_k.forget, row 0"),
        (("mia_min_k", "holdout", "value_by_index", "0", "score"), None, "mia_min_k.holdout, row 0"),
        (("mia_min_k", "holdout", "value_by_index", "0", "score"), [0.5], "mia_min_k.holdout, row 0"),
        (("manifest", "split"), "forget05", "'forget05'"),
        (("manifest", "template"), "chat", "'chat'"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(
    folder: Path,
    micro_model: Path,
    reference: dict[str, Any],
    tmp_path: Path,
    where: tuple[str, ...],
    value: Any,
    said: str,
) -> None:
    path = _with(reference, tmp_path / "changed.json", where, value)
    code, _, err = _evaluate(folder, micro_model, "--reference", path)
    assert code == 3 and said in err and len(err.strip().splitlines()) == 1, err


def test_a_file_that_is_nested_without_end_is_refused(folder: Path, micro_model: Path, tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    code, _, err = _evaluate(folder, micro_model, "--reference", tmp_path / "deep.json")
    assert code == 3 and "deep.json: is nested more than 64 deep" in err, err


def test_an_attack_that_always_succeeds_gives_no_percentage(
    folder: Path, micro_model: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    path = _with(reference, tmp_path / "changed.json", ("mia_min_k", "agg_value"), 1.0)
    code, out, err = _evaluate(folder, micro_model, "--reference", path, "--out", tmp_path / "result.json")
    assert code == 0, err
    text = (tmp_path / "result.json").read_text()
    result = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert result["privleak"]["agg_value"] is None and "interval" not in result["privleak"]
    assert "nearly nothing to divide by" in result["privleak"]["reason"]
    assert result["forget_quality"]["agg_value"] == 1.0 and result["forget_quality"]["n"] == 4
    assert result["forget_quality"]["detectable"] == pytest.approx(0.96, abs=0.01)
    lines = [line for line in out.splitlines() if line.split()[:1] in (["privleak"], ["forget_quality"])]
    assert "not enough rows (n = 4" in lines[0] + lines[1] and "nearly nothing to divide by" in lines[0] + lines[1]


def test_the_same_model_has_leaked_nothing(
    folder: Path, micro_model: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "same.json").write_text(json.dumps(reference))
    code, _, err = _evaluate(folder, micro_model, "--reference", tmp_path / "same.json", "--out", tmp_path / "out.json")
    assert code == 0, err
    found = json.loads((tmp_path / "out.json").read_text())["privleak"]
    assert found["agg_value"] == pytest.approx(0, abs=1e-6) and found["interval"] == pytest.approx([0, 0], abs=1e-6)
