"""`evaluate` recognises runs, adapter folders, models and results, and writes one layout for all of them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import oblivion

from oblivion.config import ModelConfig, load_config
from oblivion.data.federation import resolve
from oblivion.errors import ConfigError, InputError
from oblivion.evaluation import evaluate, find_target
from oblivion.metrics.engine.table import table
from oblivion.metrics.suites import make_suite
from oblivion.models.loading import locate
from simulations import RunResult, simulate

MICRO = """
model.name = "{model}"
engine = "inline"
lora.rank = 4
lora.alpha = 8
federation.clients = 3
federation.rounds = 1
federation.clients-per-round = 3
train.local-epochs = 2
train.learning-rate = 3e-2
data.parameters.rows_per_client = 8
data.parameters.holdout_authors = 1
forget.client = "client-2"
evaluate.limit = 2
evaluate.max-new-tokens = 2
simulation.hosts = 1
"""
# The files that TOFU has for its split of 1 %, with the number of rows that is checked; 3 where it is not.
TOFU = {
    "forget01_perturbed": 40,
    "retain_perturbed": 400,
    "real_authors_perturbed": 3,
    "world_facts_perturbed": 3,
    "holdout01": 3,
}
SMALL: dict[str, Any] = {"limit": 2, "max_new_tokens": 2}
TRUTH_RATIOS = ("closer_to_1_better", "true_better", "prob_mean")


@pytest.fixture(scope="module")
def run(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("target")
    (folder / "micro.toml").write_text(MICRO.format(model=micro_model))
    return simulate(load_config(folder / "micro.toml"), folder / "run")


@pytest.fixture(scope="module")
def tofu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tofu")
    for name, count in TOFU.items():
        rows = []
        for number in range(count):
            row: dict[str, Any] = {"question": f"{name} {number}?", "answer": f"It is {number}."}
            if "perturbed" in name:
                row |= {"paraphrased_answer": f"That is {number}.", "perturbed_answer": ["It is x.", "It is y."]}
            rows.append(json.dumps(row))
        (folder / f"{name}.json").write_text("\n".join(rows))
    return folder


def values(result: dict[str, Any]) -> dict[str, float | None]:
    return {name: entry["agg_value"] for name, entry in result.items() if name != "manifest"}


def test_a_run_and_its_result_are_the_same_target(run: RunResult) -> None:
    by_path, by_text, by_result = find_target(run.directory), find_target(str(run.directory)), find_target(run)
    assert by_path.run == by_text.run == by_result.run == run.config
    assert by_path.model == by_result.model == run.config.model
    assert by_path.name == by_text.name == by_result.name == str(run.directory / "adapters/original")
    assert by_path.adapter is not None and list(by_path.adapter.tensors) == list(run.adapter)
    settings = by_path.adapter.settings.to_peft()
    assert (settings.r, settings.lora_alpha) == (4, 8)


def test_another_model_of_a_run(run: RunResult) -> None:
    oracle = run.oracle("client-2")
    target = find_target(oracle)
    assert target.run == run.config and target.name == str(oracle.adapter_folder) != str(run.adapter_folder)


def test_a_model_of_a_run_is_measured_on_the_rows_that_it_was_asked_to_forget(run: RunResult, tmp_path: Path) -> None:
    ids = [row.id for row in resolve(run.config).clients["client-0"]]
    (tmp_path / "ids.txt").write_text("\n".join(ids[1:4]))
    whole = run.forget("client-1", method="exclude", parameters={"recovery_rounds": 0})
    part = run.forget(
        "client-0", samples=str(tmp_path / "ids.txt"), method="exclude", parameters={"recovery_rounds": 0}
    )
    for result in (whole, part):
        entry = next(e for e in run.metrics["requests"] if result.model.startswith(e["id"]))
        stored = entry["models"]["exclude"]["central"]["forget_Q_A_Prob"]["value"]
        measured = evaluate(result, **SMALL)["forget_Q_A_Prob"]["agg_value"]
        assert measured == pytest.approx(stored, abs=1e-6)
        assert evaluate(result, max_new_tokens=1)["manifest"]["rows"]["forget"] == entry["rows"]
    shutil.copytree(run.directory, tmp_path / "copy")
    metrics = run.metrics
    for entry in metrics["requests"]:
        del entry["client"]
    (tmp_path / "copy/metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=r"metrics\.json: requests\.0\.client is missing"):
        find_target(RunResult(tmp_path / "copy", whole.model))


def test_an_adapter_folder_names_its_base(run: RunResult, micro_model: Path) -> None:
    target = find_target(run.adapter_folder)
    assert target.run is None and target.model == ModelConfig(name=str(micro_model))
    assert find_target(run.adapter_folder, base="tiny").model.name == "tiny"


def test_a_model_folder_and_the_built_in_model(micro_model: Path) -> None:
    for name in (str(micro_model), "tiny"):
        target = find_target(name)
        assert target.model == ModelConfig(name=name)
        assert target.adapter is target.run is None


def test_a_hub_id_keeps_its_revision() -> None:
    assert find_target("owner/name", revision="abc").model == ModelConfig(name="owner/name", revision="abc")


@pytest.mark.parametrize("missing", ["adapters/original", "adapters"])
def test_a_run_that_did_not_finish(run: RunResult, tmp_path: Path, missing: str) -> None:
    shutil.copytree(run.directory, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / missing)
    with pytest.raises(InputError, match=r"adapters/original is missing: the learning of .*copy did not finish"):
        find_target(tmp_path / "copy")


def test_the_model_of_a_run_is_its_head(run: RunResult, tmp_path: Path) -> None:
    shutil.copytree(run.directory, tmp_path / "copy")
    shutil.move(tmp_path / "copy" / "adapters" / "original", tmp_path / "copy" / "head")
    metrics = tmp_path / "copy" / "metrics.json"
    metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "head": "head"}))
    target = find_target(tmp_path / "copy")
    assert target.name == str(tmp_path / "copy" / "head") and target.adapter is not None
    assert target.adapter.tensors.keys() == run.adapter.keys()
    shutil.rmtree(tmp_path / "copy" / "head")
    with pytest.raises(InputError, match=r"head is missing: .* or it was erased"):
        find_target(tmp_path / "copy")


def test_an_adapter_without_a_base(run: RunResult, tmp_path: Path, micro_model: Path, tofu: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(run.adapter_folder, folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(InputError, match="--base"):
        find_target(folder)
    named = evaluate(run.adapter_folder, data=str(tofu), split="forget01", **SMALL)
    given = evaluate(folder, base=str(micro_model), data=str(tofu), split="forget01", **SMALL)
    assert values(named) == values(given)
    plain = evaluate(micro_model, data=str(tofu), split="forget01", **SMALL)
    assert plain["forget_Q_A_Prob"] != named["forget_Q_A_Prob"]  # the adapter is really there


def test_a_run_is_evaluated_on_its_own_rows(run: RunResult) -> None:
    result = evaluate(run.directory, **SMALL)
    stored = run.metrics["requests"][0]["models"]["original"]["central"]
    for name in ("forget_Q_A_Prob", "retain_Q_A_Prob", "ra_Q_A_ROUGE", "extraction_strength"):
        assert result[name]["agg_value"] == pytest.approx(stored[name]["value"], abs=1e-6)
    assert result["manifest"]["rows"] == dict.fromkeys(("forget", "retain", "ra", "wf", "holdout"), 2)
    assert result["manifest"]["split"] == "" and result["manifest"]["template"] == "plain"


def test_without_a_limit_every_row_counts(run: RunResult) -> None:
    rows = evaluate(run.directory, max_new_tokens=1)["manifest"]["rows"]
    assert rows["forget"] == run.metrics["requests"][0]["rows"] > 2


def test_the_file_and_the_table_of_a_model(micro_model: Path, tofu: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "result.json"
    arguments = (micro_model, "--data", tofu, "--split", "forget01", "--limit", "2", "--max-new-tokens", "2")
    code, shown, err = oblivion("evaluate", *arguments, "--out", out)
    assert code == 0, err
    result = json.loads(out.read_text("utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert shown.strip() == table(result, make_suite("tofu")).strip()
    for name, value in values(result).items():
        assert name in shown
        assert value is None or math.isfinite(value)
    for ratio in TRUTH_RATIOS:
        assert f"forget_TR__{ratio}" in result
    assert set(result["forget_Q_A_Prob"]["value_by_index"]) == {"0", "1"}
    assert result["forget_quality"]["agg_value"] is None  # there is no reference, and none is made up
    manifest = result["manifest"]
    assert manifest["model"] == manifest["target"] == str(micro_model) and len(manifest["model_digest"]) == 64
    assert manifest["rows"] == dict.fromkeys(("forget", "retain", "ra", "wf", "holdout"), 2)
    assert (manifest["split"], manifest["limit"], manifest["max_new_tokens"]) == ("forget01", 2, 2)
    code, printed, _ = oblivion("evaluate", *arguments, "--json")
    assert code == 0 and json.loads(printed) == result


def test_rows_are_kept_out_of_the_file_unless_asked_for(micro_model: Path, tofu: Path) -> None:
    numbers = evaluate(micro_model, data=str(tofu), split="forget01", **SMALL)
    assert "It is 0." not in json.dumps(numbers)
    texts = evaluate(micro_model, data=str(tofu), split="forget01", text=True, **SMALL)
    row = texts["forget_Q_A_ROUGE"]["value_by_index"]["0"]
    assert row["ground_truth"] == "It is 0." and "forget01_perturbed 0?" in row["input"] and "generation" in row
    assert values(texts) == values(numbers)


def test_a_reference_may_be_a_file_or_a_model(micro_model: Path, run: RunResult, tofu: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": str(tofu), "split": "forget01", "limit": 6, "max_new_tokens": 2}
    original = evaluate(micro_model, **settings)
    (tmp_path / "original.json").write_text(json.dumps(original))
    by_file = evaluate(run.directory, reference=str(tmp_path / "original.json"), **settings)
    by_model = evaluate(run.directory, reference=str(micro_model), **settings)
    assert values(by_file) == values(by_model)
    assert 0 <= by_file["forget_quality"]["agg_value"] <= 1
    itself = evaluate(run.directory, reference=run, **settings)
    assert itself["forget_quality"]["agg_value"] == 1 and itself["ks_statistic"]["agg_value"] == 0
    assert itself["privleak"]["agg_value"] == 0


def test_a_reference_on_other_rows_is_refused(micro_model: Path, tofu: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.json"
    arguments = (micro_model, "--data", tofu, "--split", "forget01", "--max-new-tokens", "2")
    assert oblivion("evaluate", *arguments, "--limit", "2", "--out", out)[0] == 0
    code, _, err = oblivion("evaluate", *arguments, "--limit", "3", "--reference", out)
    assert code == 3 and "2 forget rows and this model on 3" in err


@pytest.mark.parametrize(("name", "rows"), [("retain_perturbed", 399), ("forget01_perturbed", 41)])
def test_files_that_are_not_tofus(tofu: Path, tmp_path: Path, micro_model: Path, name: str, rows: int) -> None:
    shutil.copytree(tofu, tmp_path / "data")
    lines = (tofu / f"{name}.json").read_text().splitlines()
    (tmp_path / "data" / f"{name}.json").write_text("\n".join((lines * 2)[:rows]))
    code, _, err = oblivion("evaluate", micro_model, "--data", tmp_path / "data", "--split", "forget01", "--limit", "1")
    assert code == 3 and f"{name}.json: has {rows} rows; TOFU's own file has {TOFU[name]}" in err


def test_a_run_can_be_measured_on_other_data(run: RunResult, tofu: Path) -> None:
    result = evaluate(run.directory, data=str(tofu), split="forget01", **SMALL)
    assert result["manifest"]["data"] == str(tofu) and result["manifest"]["template"] == "plain"
    assert values(result) != values(evaluate(run.directory, **SMALL))


def test_the_table_says_what_was_measured_and_what_must_be_known_beside_it() -> None:
    entry = {"agg_value": 0.25, "n": 4, "interval": [0.1, 0.4]}
    manifest = {"target": "a", "model": "m", "suite": "tofu", "template": "chat", "data": "d", "split": "forget01"}
    result = {
        "forget_Q_A_Prob": entry,
        "retain_Q_A_ROUGE": {"agg_value": 1 / 3, "n": 3, "left_out": 1},
        "model_utility": {"agg_value": 0.0, "n": 9, "components": {"ra_Q_A_ROUGE": 0.0, "wf_Q_A_ROUGE": 0.5}},
        "forget_quality": {"agg_value": 0.75, "n": 17, "detectable": 0.466},
        "ks_statistic": {"agg_value": 0.235, "n": 17, "detectable": 0.466},
        "privleak": {"agg_value": None, "reason": "none was given"},
        "own": {"agg_value": 1234567.0},
        "manifest": manifest | {"rows": {"forget": 4, "ra": 3}, "skipped": ["a", "b"]},
    }
    assert table(result, make_suite("tofu")).splitlines() == [
        "target    a (model m)",
        "suite     tofu, template chat",
        "data      d, forget01",
        "rows      forget 4, ra 3",
        "  metric                             value  95 % interval        rows",
        "",
        "the rows to be forgotten",
        "  forget_Q_A_Prob                     0.25  [0.1, 0.4]           4",
        "",
        "the rows that stay",
        "  retain_Q_A_ROUGE                   0.333                       3     1 row left out: not defined there",
        "",
        "whether forgotten rows can be told apart from rows never seen (1: all of them, 0.5: none)",
        "  privleak                               -                             none was given",
        "",
        "against a model that never saw the forgotten rows",
        "  forget_quality                         -                       17    "
        "not enough rows (n = 17): a KS statistic up to 0.47 may be chance",
        "  ks_statistic                       0.235                       17    "
        "a KS statistic up to 0.47 may be chance",
        "",
        "others",
        "  model_utility                          0                       9     0 because ra_Q_A_ROUGE is 0",
        "  own                             1.23e+06",
        "",
        "2 rows are longer than the model's context and left out whole",
    ]
    enough = {"forget_quality": {"agg_value": 1.6e-14, "n": 40, "detectable": 0.304}}
    assert table(enough, make_suite("tofu")).splitlines()[-1].split()[:3] == ["forget_quality", "1.6e-14", "40"]


class TestWhatIsNotThere:
    """A path with a slip of the pen is no hub id, and `evaluate` names its own options."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "runs" / "demo").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)

    def test_a_hub_id_needs_the_option_that_evaluate_has(self) -> None:
        with pytest.raises(ConfigError) as caught:
            find_target("owner/name")
        assert "if it is a hub id, give its commit with --revision" in str(caught.value)
        assert "model.revision" not in str(caught.value)
        assert find_target("owner/name", revision="abc").model.revision == "abc"

    @pytest.mark.parametrize("name", ["runs/nope", "./runs/nope", "nope", "runs/demo/nope"])
    def test_a_mistyped_path_is_no_hub_id(self, name: str) -> None:
        with pytest.raises(InputError) as caught:
            find_target(name)
        assert f"{name} is neither a run nor an adapter folder" in str(caught.value)
        assert "there is no such folder" in str(caught.value) and "is a hub id" not in str(caught.value)

    def test_a_base_model_names_its_option(self, run: RunResult, tmp_path: Path) -> None:
        adapter = shutil.copytree(run.adapter_folder, tmp_path / "adapter")
        settings = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "some/base"}))
        with pytest.raises(ConfigError, match=r"--base = 'owner/name'.*--revision"):
            find_target(adapter, base="owner/name")
        with pytest.raises(InputError, match="--base = 'runs/nope': there is no such folder in runs"):
            find_target(adapter, base="runs/nope")
        with pytest.raises(ConfigError, match=r"base_model_name_or_path of .*adapter_config\.json = 'some/base'"):
            find_target(adapter)

    def test_a_scenario_names_its_setting(self) -> None:
        with pytest.raises(ConfigError, match=r"model\.name = 'owner/name'.*set model\.revision to a commit"):
            locate(ModelConfig(name="owner/name"))
        with pytest.raises(InputError, match=r"model\.name = 'runs/nope': there is no such folder in runs"):
            locate(ModelConfig(name="runs/nope"))
