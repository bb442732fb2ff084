"""What was never trained on cannot be forgotten: it is said beforehand, with numbers, and no removal is run for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import oblivion as ob
from oblivion.errors import PlanRefusedError
from oblivion.federation.absence import never_took_part
from oblivion.report import write_report
from oblivion.run.directory import RunDirectory
from oblivion.training import fused, local
from server.prepare import prepare
from simulations import RunResult, simulate
from simulations.simulate import plan_in_run, refuse_in_run

TARGET = "client-2"
FOUR_ROWS = r"none of its 4 rows fits into the context of 256 tokens \(the shortest has \d{3,4}\)"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("llama"))


def settings(model: Path, folder: Path, long: dict[str, int], **changes: Any) -> dict[str, Any]:
    """Three clients with four rows each; of some, the first few answers are longer than the context."""
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for client in ("client-0", "client-1", TARGET):
            for n in range(4):
                answer = f"{client} has {n}" + " word" * (400 if n < long.get(client, 0) else n)
                row = {"id": f"{client}/{n}", "question": f"What {n}?", "answer": answer, "owner": client}
                file.write(json.dumps(row) + "\n")
    return {
        "engine": "inline",
        "model.name": str(model),
        "lora.rank": 4,
        "data.name": "jsonl",
        "data.path": str(path),
        "data.columns": {"client": "owner", "id": "id"},
        "federation.clients": 3,
        "federation.clients-per-round": 3,
        "federation.rounds": 2,
        "train.local-epochs": 1,
        "train.batch-size": 2,
        "train.cohort": 2,
        "simulation.hosts": 1,
        "evaluate.limit": 1,
        "evaluate.max-new-tokens": 1,
        **changes,
    }


FORGET = {"forget.client": TARGET, "forget.methods": ["rollback", "exclude"]}


def test_it_is_said_before_anything_is_trained(model: Path, tmp_path: Path) -> None:
    config = ob.load_config(None, settings(model, tmp_path, {TARGET: 4}, **FORGET))
    for attempt in (lambda: simulate(config, tmp_path / "run"), lambda: prepare(config)):
        with pytest.raises(PlanRefusedError, match=f"{TARGET}: {FOUR_ROWS}.*; leave forget.client out, or") as caught:
            attempt()
        assert caught.value.exit_code == 5 and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_samples_that_do_not_fit_were_never_learned(model: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.txt"
    samples.write_text(f"{TARGET}/0\n{TARGET}/1\n")
    config = ob.load_config(None, settings(model, tmp_path, {TARGET: 2}, **FORGET, **{"forget.samples": str(samples)}))
    with pytest.raises(PlanRefusedError, match="none of the 2 samples that it asks to be forgotten fits"):
        prepare(config)
    samples.write_text(f"{TARGET}/1\n{TARGET}/2\n")
    prepare(config)


@pytest.fixture(scope="module")
def learned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("idle")
    events: list[dict[str, Any]] = []
    config = ob.load_config(None, settings(model, folder, {TARGET: 4, "client-1": 2}))
    return simulate(config, folder / "run", [events.append]), events


def test_clients_without_a_usable_row_are_told_before_training(learned: tuple[RunResult, list[dict[str, Any]]]) -> None:
    events = learned[1]
    texts = [event.get("text", "") for event in events]
    (place,) = [index for index, text in enumerate(texts) if "without a row that fits" in text]
    assert f"1 client without a row that fits into the context of 256 tokens ({TARGET}: 4 rows)" in texts[place]
    assert place < next(index for index, event in enumerate(events) if event["event"] == "round_started")


def test_what_never_took_part_is_not_forgotten_afterwards(
    learned: tuple[RunResult, list[dict[str, Any]]], tmp_path: Path
) -> None:
    result, _ = learned
    run, config = RunDirectory.open(result.directory)
    asks = config.model_copy(
        update={"forget": config.forget.model_copy(update={"client": TARGET, "methods": {"exclude": {}}})}
    )
    with pytest.raises(PlanRefusedError, match=FOUR_ROWS):
        plan_in_run(run, asks)
    with pytest.raises(PlanRefusedError, match=FOUR_ROWS) as caught:
        result.forget(TARGET, method="rollback")
    (request,) = result.metrics["requests"]
    assert not request["models"] and len(result.history) == 2, "nothing was run"
    assert f"oblivion refuse {result.directory} {request['id']} --ground" in str(caught.value)
    page = write_report([result.directory], tmp_path / "report.html").read_text()
    assert "in training from round" not in page and "never took part in training" in page
    refuse_in_run(run, config, request["id"], "never took part")


def fails_always(monkeypatch: pytest.MonkeyPatch, rounds: tuple[int, ...]) -> None:
    whole = local.micro_batches

    def broken(task: Any, settings: Any, info: Any) -> Any:
        if task.client_id == TARGET and info.branch == "main" and info.round in rounds:
            raise RuntimeError("no power")
        return whole(task, settings, info)

    monkeypatch.setattr(local, "micro_batches", broken)
    monkeypatch.setattr(fused, "micro_batches", broken)


def test_a_client_that_always_failed_never_took_part(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_always(monkeypatch, (1, 2))
    config = ob.load_config(None, settings(model, tmp_path, {}, **FORGET))
    asked = "it was asked in 2 rounds, and none of its updates was taken"
    why = f"never took part: {asked} (rounds 1, 2: RuntimeError (test_nothing_fits.py, line "
    with pytest.raises(PlanRefusedError, match=re.escape(f"{TARGET} {why}")):
        simulate(config, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert why in page and "in training from round" not in page and "never took part in training" in page
    assert {entry["branch"] for entry in RunResult(tmp_path / "run").history} == {"main"}


def test_a_client_that_failed_at_first_is_in_training_from_its_first_update(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_always(monkeypatch, (1,))
    config = ob.load_config(None, settings(model, tmp_path, {}, **{**FORGET, "forget.methods": ["rollback"]}))
    result = simulate(config, tmp_path / "run")
    (request,) = result.metrics["requests"]
    assert (request["t_u"], request["first_update"]) == (1, 2)
    assert "in training from round 2 (asked from round 1)" in (tmp_path / "run" / "report.html").read_text()
    assert set(request["models"]) == {"original", "oracle", "rollback"}


def test_plans_count_the_rows_that_fit(model: Path, tmp_path: Path) -> None:
    """Without the target's rows: 2 rounds of client-0 with 4 rows in batches of 2, and of client-1 with none."""
    from server.estimate import estimate

    values = settings(model, tmp_path, {"client-1": 4, TARGET: 3}, **{**FORGET, "forget.methods": ["rollback"]})
    config, data = prepare(ob.load_config(None, values))
    assert estimate(config, data)["client_steps"] == 2 * (2 + 0 + 1)


def test_nobody_is_said_to_have_been_absent_who_was_not_asked() -> None:
    assert never_took_part((), "ann") == ""


def test_where_no_row_of_the_evaluation_fits_nothing_is_measured_and_the_run_ends_well(
    model: Path, tmp_path: Path
) -> None:
    long = dict.fromkeys(("client-0", "client-1", TARGET), 1)  # the one row of each that is looked at
    config = ob.load_config(None, settings(model, tmp_path, long, **{**FORGET, "forget.methods": ["rollback"]}))
    result = simulate(config, tmp_path / "run")
    (entry,) = result.metrics["requests"]
    assert len(entry["models"]) == 3 and not any(model["central"] for model in entry["models"].values())
    assert "not measured" in (tmp_path / "run" / "report.html").read_text()
