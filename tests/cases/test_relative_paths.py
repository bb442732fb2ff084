"""Every setting that holds a path is kept as an absolute one, so that a run goes on from any folder."""

import json
from pathlib import Path

import pytest
from command_line import oblivion

from oblivion.config import RunConfig, load_config
from oblivion.data.datasets import path_parameters, with_paths
from oblivion.errors import InputError
from server.prepare import absolute_paths, check
from simulations import RunResult, simulate


def rows(path: Path, *questions: str) -> None:
    lines = [{"question": q, "answer": f"{q} is so.", "owner": f"client-{n % 3}"} for n, q in enumerate(questions)]
    path.write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    rows(folder / "rows.jsonl", *(f"What is {n}?" for n in range(9)))
    rows(folder / "holdout.jsonl", "What is ten?", "What is eleven?")
    rows(folder / "public.jsonl", "What is twelve?")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    return folder


def config(**values: object) -> RunConfig:
    base = {"data.name": "jsonl", "data.path": "rows.jsonl", "data.columns.client": "owner", "federation.clients": 3}
    return load_config(None, base | {key.replace("__", "."): value for key, value in values.items()})


def test_every_setting_with_a_path(here: Path) -> None:
    (here / "ids.txt").write_text("x")
    (here / "model").mkdir()
    asked = config(
        data__path="~/rows.jsonl",
        data__public="public.jsonl",
        data__parameters={"holdout": "~/holdout.jsonl", "split": "here"},
        model__name="model",
        forget__samples="ids.txt",
    )
    made = absolute_paths(asked)
    assert made.data.path == str(here / "rows.jsonl") and made.data.public == str(here / "public.jsonl")
    assert made.data.parameters == {"holdout": str(here / "holdout.jsonl"), "split": "here"}
    assert made.model.name == str(here / "model") and made.forget.samples == str(here / "ids.txt")
    assert absolute_paths(made) == made


def test_what_is_no_path_stays(here: Path) -> None:
    (here / "dataset").mkdir()
    (here / "tiny").mkdir()
    (here / "train").mkdir()
    values = {"data__path": "owner/name", "data__public": "dataset", "forget__samples": "authors:0.5"}
    asked = config(**values, data__parameters={"split": "train"})
    assert absolute_paths(asked) == asked
    (here / "owner").mkdir()
    rows(here / "owner" / "name", "a?")
    assert absolute_paths(asked).data.path == str(here / "owner" / "name"), "what is here comes before the hub"


def test_a_parameter_may_be_relative_to_the_data(here: Path) -> None:
    folder = here / "clients"
    folder.mkdir()
    rows(folder / "test.json", "a?")
    asked = config(data__path="clients", data__columns={}, data__parameters={"holdout": "test.json"})
    assert absolute_paths(asked).data.parameters["holdout"] == str(folder / "test.json")


def test_a_link_stays_one(here: Path) -> None:
    """Stores of data keep a file under its hash, and a link to it under its name."""
    (here / "5f3a").write_text("question,answer,owner\nq,a,client-0\n")
    (here / "rows.csv").symlink_to(here / "5f3a")
    asked = config(data__path="rows.csv", federation__clients=1)
    assert absolute_paths(asked).data.path == str(here / "rows.csv")
    assert set(check(asked)[1].clients) == {"client-0"}


def test_an_outside_loader_declares_its_paths(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @with_paths("questions")
    def loader() -> None:
        """Nothing."""

    assert path_parameters(loader) == ("questions",) and path_parameters(print) == ()
    monkeypatch.setattr("oblivion.data.datasets.datasets.get", lambda name: loader)
    made = absolute_paths(config(data__parameters={"questions": "public.jsonl", "holdout": "holdout.jsonl"}))
    assert made.data.parameters == {"questions": str(here / "public.jsonl"), "holdout": "holdout.jsonl"}


@pytest.mark.parametrize(
    "setting",
    ["data.path", "data.public", "data.parameters.holdout", "forget.samples", "model.name"],
)
@pytest.mark.parametrize("path", ["~/none.jsonl", "./none.jsonl", "~nobody/none.jsonl"])
def test_a_missing_file_is_one_line_at_once(setting: str, path: str, here: Path) -> None:
    values = {"forget__client": "client-1", setting.replace(".", "__"): path}
    with pytest.raises(InputError) as error:
        check(config(**values))
    assert "none.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_later_commands_from_another_folder(
    micro_model: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "model.name": str(micro_model), "engine": "inline", "lora.rank": 2, "federation.rounds": 1,
        "train.local-epochs": 1, "evaluate.max-new-tokens": 2, "evaluate.oracle-seeds": 0, "evaluate.limit": 2,
        "data.parameters.holdout": "holdout.jsonl", "data.public": "public.jsonl",
    }  # fmt: skip
    simulate(config(**{key.replace(".", "__"): value for key, value in values.items()}), tmp_path / "run")
    assert f'holdout = "{here}/holdout.jsonl"' in (tmp_path / "run" / "config.toml").read_text()
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    tried = RunResult(tmp_path / "run").forget(client="client-1", method="exclude", parameters={"recovery_rounds": 1})
    assert tried.metrics["requests"][0]["client"] == "client-1"

    (here / "run").symlink_to(tmp_path / "run")
    for words in (["report", "~/run", "--out=~/shown.html"], ["ledger", "export", "~/run", "--checkpoint", "~/c.json"]):
        code, _, err = oblivion(*words)
        assert code == 0, err
    assert (here / "shown.html").is_file() and (here / "c.json").is_file() and not any(other.iterdir())
