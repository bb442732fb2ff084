"""The suite `muse`: its files, its numbers by hand, and a run with its report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import write_muse
from metric_rows import scored_row

from oblivion.config import DataConfig, load_config
from oblivion.data.datasets.muse import evaluation_groups, load
from oblivion.data.federation import resolve
from oblivion.errors import ConfigError, InputError
from oblivion.evaluation import evaluate
from oblivion.metrics.engine.context import EvaluationContext
from oblivion.metrics.engine.generation import _cut
from oblivion.metrics.engine.one_pass import evaluate_model
from oblivion.metrics.engine.suite import FileRows, RunRows
from oblivion.metrics.privleak import PrivLeak, privleak
from oblivion.metrics.rouge import Rouge
from oblivion.metrics.suites import make_suite
from oblivion.models.loading import load_base
from oblivion.parameters import ParameterError
from oblivion.report import build_report
from oblivion.tasks.causal_lm import CausalLM
from oblivion.types import ForgetRequest
from simulations import RunResult, simulate

MUSE = make_suite("muse")
RUN = {
    "engine": "inline",
    "lora.rank": 2,
    "data.name": "muse",
    "data.template": "verbatim",
    "data.parameters.words": 8,
    "federation.clients": 3,
    "federation.clients-per-round": 3,
    "federation.rounds": 1,
    "train.local-epochs": 1,
    "forget.client": "forget",
    "forget.methods": ["rollback", "exclude"],
    "evaluate.suite": "muse",
    "evaluate.max-new-tokens": 3,
    "simulation.hosts": 1,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_muse(tmp_path_factory.mktemp("muse"))


def test_the_prompts_are_those_of_muse(files: Path) -> None:
    groups = MUSE.rows(FileRows(folder=str(files)))
    assert {name: len(rows) for name, rows in groups.items()} == {
        "knowmem_forget": 2, "knowmem_retain": 2, "verbmem": 2, "forget": 2, "holdout": 3,
    }  # fmt: skip
    asked = groups["knowmem_forget"][0]
    assert asked.prompt == "Question: Is it wet?\nAnswer: Yes.\n\nQuestion: Where is Ashby?\nAnswer:"
    assert asked.answer == " by a river"
    begun = groups["verbmem"][0]
    assert begun.prompt + begun.answer == "Ashby has 2 mills and 3 weirs. It lies by a river."
    assert groups["holdout"][2].answer == "Eyam has 2 wells." and groups["holdout"][2].prompt == ""
    assert MUSE.rows(FileRows(folder=str(files / "news"))).keys() == groups.keys()


def test_what_is_wrong_with_the_files_is_said(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown corpus of MUSE 'newz'.*did you mean 'news'"):
        MUSE.rows(FileRows(folder=str(files)), "newz")
    with pytest.raises(InputError, match="none of the folders knowmem, verbmem and privleak"):
        evaluation_groups(tmp_path, "books")
    broken = write_muse(tmp_path / "muse") / "news"
    (broken / "privleak" / "holdout.json").write_text('["a text", {"text": ""}]')
    with pytest.raises(InputError, match=r"holdout\.json: item 2: expected a text that is not empty"):
        evaluation_groups(broken, "")
    (broken / "knowmem" / "retain_qa.json").unlink()
    with pytest.raises(InputError, match=r"retain_qa\.json"):
        evaluation_groups(broken, "")


def test_one_client_holds_what_goes_and_the_others_share_what_stays(files: Path) -> None:
    settings: dict[str, Any] = {"name": "muse", "path": str(files), "template": "verbatim"}
    corpus = load(DataConfig(**settings), clients=3, seed=0, words=8)
    # Twelve words a town: two rows of 8 and 4. The texts that stay are one file, so they give 8, 8 and 8 words.
    assert [s.client_id for s in corpus.samples] == ["forget"] * 4 + ["retain-1", "retain-1", "retain-2"]
    assert corpus.samples[0].answer == "Ashby has 2 mills and 3 weirs. It"
    for changed, clients, words, said in (
        ({"template": "plain"}, 3, 8, "set it to 'verbatim'"),
        ({}, 1, 8, "set 2 or more"),
        ({}, 9, 8, "the texts that stay give 3 rows"),
        ({"path": ""}, 3, 8, "data.path is empty"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(DataConfig(**{**settings, **changed}), clients=clients, seed=0, words=words)
    with pytest.raises(ParameterError, match="words = 0"):
        load(DataConfig(**settings), clients=3, seed=0, words=0)


def test_a_run_measures_only_what_somebody_asks_to_be_forgotten(files: Path) -> None:
    data = resolve(load_config(None, {**RUN, "data.path": str(files)}))
    everything = MUSE.rows(RunRows(data=data))
    assert MUSE.rows(RunRows(data=data, request=ForgetRequest(id="r", client_id="forget"))) == everything
    other = MUSE.rows(RunRows(data=data, request=ForgetRequest(id="r", client_id="retain-1")))
    assert set(other) == {"knowmem_retain", "holdout"}
    plain = resolve(load_config(None, {"federation.clients": 3}))
    with pytest.raises(ConfigError, match=r"set data.name = 'muse'"):
        MUSE.rows(RunRows(data=plain))


def test_f1_without_stems_by_hand() -> None:
    # Common words in order: "the" and "sat", 2 of 4 generated and 2 of 3 true ones: F1 = 2 (1/2) (2/3) / (7/6) = 4/7.
    row = scored_row(0, "the cats sat", generation="the cat sat down", rouge={"rougeL_recall": 1.0})
    context = EvaluationContext({"verbmem": [row]})
    assert Rouge("verbmem", "rougeL_f1", stemmed=False).compute(context).value == pytest.approx(4 / 7)
    assert Rouge("verbmem").compute(context).value == 1.0  # with stems all three words are there


def test_an_answer_ends_before_the_first_stop() -> None:
    stops = MUSE.formats["knowmem_forget"].stops
    assert _cut(" by a river\nQuestion: Where?\n\nx", stops) == " by a river"
    assert _cut("\n\nby a river", stops) == ""
    assert _cut("no Question here", stops) == "no Question here"


def test_privleak_is_the_published_formula_on_published_numbers() -> None:
    # MUSE counts forget rows as positive: its AUC is 1 less ours. News: the retrained model has 0.4772, the target
    # model's PrivLeak is -99.8, which is an AUC of 0.4772 (1 - 0.998).
    retrained, target = 0.4772, 0.4772 * (1 - 0.998)
    assert privleak(1 - target, 1 - retrained) == pytest.approx((target - retrained) / retrained * 100, abs=1e-6)
    assert privleak(1 - target, 1 - retrained) == pytest.approx(-99.8, abs=1e-6)


def test_privleak_has_no_silent_default(files: Path, micro_model: Path) -> None:
    from oblivion.config import ModelConfig

    base = load_base(ModelConfig(name=str(micro_model)))
    groups = evaluation_groups(files, "news")
    found = evaluate_model(
        base.model, CausalLM(base.tokenizer, 200), groups, suite=MUSE, max_new_tokens=5, batch_size=8
    )
    assert found.skipped == ()
    assert found.results["privleak"].value is None and "none was given" in found.results["privleak"].reason
    assert found.results["mia_min_k"].n == 5
    assert PrivLeak().requires < PrivLeak(chance=None).requires
    # The true continuation is cut to as many tokens as may be generated; a byte is a token here.
    assert found.texts["verbmem"]["0"]["ground_truth"] == groups["verbmem"][0].answer[:5]
    assert len(found.texts["verbmem"]["0"]["generation"]) <= 5
    assert set(found.generated) == {"forget_knowmem_ROUGE", "retain_knowmem_ROUGE", "forget_verbmem_ROUGE"}


@pytest.fixture(scope="module")
def run(files: Path, micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    config = load_config(None, {**RUN, "model.name": str(micro_model), "data.path": str(files)})
    return simulate(config, tmp_path_factory.mktemp("run") / "muse")


def test_a_run_with_its_report(run: RunResult) -> None:
    (request,) = run.record.requests
    central = {name: model.central for name, model in request.models.items()}
    assert set(central) == {"original", "oracle", "rollback", "exclude"}
    assert central["rollback"]["privleak"].value == pytest.approx(0, abs=1e-6)  # it is the oracle, bit for bit
    assert central["oracle"]["privleak"].value is None and central["oracle"]["privleak"].reason
    own = request.models["original"].clients["retain-1"]
    assert set(own) == {*MUSE.client_metrics, "skipped"}
    page = build_report([run.directory])
    assert "VerbMem" in page and "with KnowMem" in page and "Model utility" not in page
    assert not re.search(r"[Tt]ruth ratio|forget_Q_A", page)


def test_evaluate_takes_the_suite_of_the_run(run: RunResult, files: Path) -> None:
    result = evaluate(run, limit=1, max_new_tokens=2)
    assert result["manifest"]["suite"] == "muse" and result["forget_knowmem_ROUGE"]["n"] == 1
    again = evaluate(run, data=str(files), limit=1, max_new_tokens=2, reference=[run, run])
    assert again["manifest"]["split"] == "news" and again["privleak"]["agg_value"] == pytest.approx(0, abs=1e-6)
