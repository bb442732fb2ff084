"""The suite `rwku`: its files, its numbers by hand, and a run with its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmark_files import PEOPLE, write_rwku
from metric_rows import scored_row

from oblivion.config import DataConfig, load_config
from oblivion.data.datasets.rwku import load
from oblivion.data.federation import resolve
from oblivion.errors import ConfigError
from oblivion.metrics.engine.context import EvaluationContext
from oblivion.metrics.engine.suite import FileRows, RunRows
from oblivion.metrics.suites import make_suite
from oblivion.parameters import ParameterError
from oblivion.report import build_report
from oblivion.types import ForgetRequest
from simulations import RunResult, simulate

RWKU = make_suite("rwku")
RUN: dict[str, Any] = {
    "engine": "inline",
    "lora.rank": 2,
    "data.name": "rwku",
    "federation.clients": 3,
    "federation.clients-per-round": 3,
    "federation.rounds": 1,
    "train.local-epochs": 1,
    "forget.client": "client-1",
    "forget.methods": ["rollback", "exclude"],
    "evaluate.suite": "rwku",
    "evaluate.max-new-tokens": 3,
    "simulation.hosts": 1,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rwku(tmp_path_factory.mktemp("rwku"))


def counts(groups: Any) -> dict[str, int]:
    return {name: len(rows) for name, rows in groups.items()}


def test_every_level_is_asked_as_in_the_papers_code(files: Path) -> None:
    groups = RWKU.rows(FileRows(folder=str(files)), PEOPLE[0])
    assert counts(groups) == {
        "forget": 7, "neighbor": 3,
        "forget_level1": 2, "forget_level2": 2, "forget_level3": 3, "neighbor_level1": 1, "neighbor_level2": 2,
    }  # fmt: skip
    first = "Please complete the blank in the following question.\nQuestion: Ada Ash lived in ___ (0)."
    assert groups["forget_level1"][0].prompt == first and groups["forget_level1"][0].answer == "Rome"
    second = "Please briefly answer the following question.\nQuestion: Where was Ada Ash (0)?"
    assert groups["forget_level2"][0].prompt == second
    shown = "Please briefly answer the following question.\nQuestion: Who? Answer: Al Question: And who?"
    assert groups["forget_level3"][2].prompt == shown
    assert counts(RWKU.rows(FileRows(folder=str(files))))["forget"] == 21
    # 2, 2 and 3 rows stand at 1/4 and 3/4, 1/4 and 3/4, and 1/6, 1/2 and 5/6 of their levels.
    assert [row.extras["level"][-1] for row in groups["forget"]] == list("3123123")
    with pytest.raises(ConfigError, match=r"no row of .* is about a person of that name"):
        RWKU.rows(FileRows(folder=str(files)), "Nobody")


def test_clients_hold_whole_people_and_none_of_the_attacks(files: Path) -> None:
    settings = DataConfig(name="rwku", path=str(files))
    corpus = load(settings, clients=3, seed=0)
    assert [s.path[0] for s in corpus.samples] == [person for person in PEOPLE for _ in range(4)]
    assert counts(corpus.groups) == {"forget_level3": 9, "neighbor_level1": 3, "neighbor_level2": 3}
    assert {s.path[0] for s in load(settings, clients=3, seed=0, people=2).samples} == set(PEOPLE[:2])
    with pytest.raises(ParameterError, match="people = -1"):
        load(settings, clients=3, seed=0, people=-1)
    with pytest.raises(ParameterError, match=f"people = 99 is not allowed; the files are about {len(PEOPLE)} people"):
        load(settings, clients=3, seed=0, people=99)
    with pytest.raises(ConfigError, match=r"data.path is empty"):
        load(DataConfig(name="rwku"), clients=3, seed=0)


def test_a_request_is_asked_about_its_people_and_their_neighbours(files: Path) -> None:
    data = resolve(load_config(None, {**RUN, "data.path": str(files)}))
    groups = RWKU.rows(RunRows(data=data, request=ForgetRequest(id="r", client_id="client-1")))
    assert {row.path for rows in groups.values() for row in rows} == {(PEOPLE[1],)}
    assert counts(groups) == {
        "forget": 7, "neighbor": 2,
        "forget_level1": 2, "forget_level2": 2, "forget_level3": 3, "neighbor_level1": 1, "neighbor_level2": 1,
    }  # fmt: skip
    assert counts(RWKU.rows(RunRows(data=data)))["forget"] == 21
    with pytest.raises(ConfigError, match=r"set data.name = 'rwku'"):
        RWKU.rows(RunRows(data=resolve(load_config(None, {"federation.clients": 3}))))


def test_recall_by_hand_and_over_all_levels() -> None:
    # "Richard" is one of two true words: 1/2. An empty answer recalls nothing; it counts.
    rows = [scored_row(0, "Richard Bachman", generation="richard"), scored_row(1, "Carrie", generation="")]
    context = EvaluationContext({"forget_level3": rows, "forget": [*rows, scored_row(2, "Maine", generation="Maine")]})
    assert RWKU.metrics["forget_level3_ROUGE"].compute(context).value == 0.25
    assert RWKU.metrics["forget_ROUGE"].compute(context).value == 0.5


@pytest.fixture(scope="module")
def run(files: Path, micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    config = load_config(None, {**RUN, "model.name": str(micro_model), "data.path": str(files)})
    return simulate(config, tmp_path_factory.mktemp("run") / "rwku")


def test_a_run_with_its_report(run: RunResult) -> None:
    (request,) = run.record.requests
    models = request.models
    assert models["rollback"].central == models["oracle"].central
    assert models["original"].central["forget_level3_ROUGE"].n == 3
    # Clients write answers, too, and central and own numbers are of one kind.
    assert models["original"].clients["client-0"]["rouge"].n == 4
    assert models["original"].clients["client-1"]["rouge"].n == models["original"].central["forget_level1_ROUGE"].n * 2
    page = build_report([run.directory])
    assert "client-1’s 7 questions with ROUGE" in page  # of four rows of its own: the attacks are asked besides
    for title in ("Attacks", "Neighbours, blanks", "All of the person", "Other clients’ ROUGE"):
        assert title in page, title
    assert "membership" not in page.split("<main>")[1].split("Manifest")[0]
