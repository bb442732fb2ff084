"""The main job on the inline engine: what it leaves on disk, and the bits it must reproduce."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import oblivion as ob
from oblivion.data.federation import resolve
from oblivion.errors import ConfigError, PlanRefusedError
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.overview import requests
from oblivion.ledger.rounds import RoundRecord
from oblivion.types import Adapter
from simulations import RunResult, simulate


def run(scenario: Path, out: Path, changes: dict[str, Any] | None = None) -> RunResult:
    return simulate(ob.load_config(scenario, changes or {}), out)


def same_bits(one: Adapter, other: Adapter) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(micro_scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    out = tmp_path_factory.mktemp("run") / "micro"
    return run(micro_scenario, out, {"forget.methods": ["retrain", "exclude", "local"]})


def entry(result: RunResult) -> dict[str, Any]:
    (only,) = result.metrics["requests"]
    return dict(only)


def trial_of(result: RunResult, name: str) -> RunResult:
    """A trial of the run's one request, whose id is random."""
    return RunResult(result.directory, f"{entry(result)['id']}/{name}")


def records_of(result: RunResult, branch: str = "main") -> tuple[RoundRecord, ...]:
    ledger, _ = open_ledger(result.directory, result.config.ledger)
    try:
        return ledger.records(branch)
    finally:
        ledger.close()


def test_every_model_is_measured_centrally_and_on_every_client(trained: RunResult) -> None:
    models = entry(trained)["models"]
    assert set(models) == {"original", "oracle", "retrain", "exclude", "local"}
    for model in models.values():
        assert set(model["clients"]) == {f"client-{i}" for i in range(4)}
        for metric in ("forget_Q_A_Prob", "forget_Q_A_ROUGE", "model_utility", "mia_min_k", "extraction_strength"):
            assert model["central"][metric]["value"] is not None
    assert models["local"]["central"]["forget_quality"]["value"] is not None  # it has the oracle as its reference
    assert models["retrain"]["central"]["forget_quality"]["value"] == 1.0  # the same model as the reference


def test_what_each_model_cost(trained: RunResult) -> None:
    models = entry(trained)["models"]
    assert models["oracle"]["cost"]["fraction"] == models["retrain"]["cost"]["fraction"] == 1.0
    oracle, exclude = (models[name]["cost"]["client_steps"] for name in ("oracle", "exclude"))
    assert models["exclude"]["cost"]["fraction"] == pytest.approx(exclude / oracle)
    tokens = {name: model["cost"]["tokens"] for name, model in models.items()}
    assert models["original"]["cost"]["token_fraction"] is None and models["oracle"]["cost"]["token_fraction"] == 1
    for name in ("exclude", "local"):
        assert models[name]["cost"]["token_fraction"] == pytest.approx(tokens[name] / tokens["oracle"])
    assert 3 * exclude == oracle  # one round of the same three clients, against three


def test_retraining_is_the_oracle_bit_for_bit(trained: RunResult) -> None:
    oracle = trial_of(trained, "oracle").adapter
    assert same_bits(trial_of(trained, "retrain").adapter, oracle)
    assert not same_bits(trained.adapter, oracle)


def test_rounds_before_the_client_joined_are_the_same_with_and_without_it(trained: RunResult) -> None:
    losses = {(e["branch"].split("/")[-1], e["round"]): e["loss"] for e in trained.history}
    assert losses["main", 1] == losses["oracle", 1]
    assert losses["main", 2] != losses["oracle", 2]
    assert entry(trained)["t_u"] == 2


def test_the_guarantees_and_the_checklist(trained: RunResult) -> None:
    models = entry(trained)["models"]
    assert {name: models[name]["guarantee"] for name in ("retrain", "exclude", "local")} == {
        "retrain": "exact",
        "exclude": "none",
        "local": "approximate",
    }
    statuses = {t["item"]: t["status"] for t in models["local"]["checklist"]}
    assert statuses["other clients' later updates"] == "not covered"


def test_the_ledger_has_what_the_history_tells(trained: RunResult) -> None:
    records = records_of(trained)
    assert [record.round for record in records] == [1, 2, 3]
    assert [record.selected for record in records] == [
        ("client-0", "client-1", "client-3"),
        *[("client-0", "client-1", "client-2", "client-3")] * 2,
    ]
    told = {(e["branch"], e["round"]): (e["loss"], e["clients"]) for e in trained.history}
    assert all(told["main", record.round] == (record.loss, len(record.accepted)) for record in records)
    request = entry(trained)["id"]
    kept = {"main"} | {f"{request}/{name}" for name in ("retrain", "exclude", "local")}
    ledger, register = open_ledger(trained.directory, trained.config.ledger)
    try:
        assert kept <= {branch.name for branch in ledger.branches()}
        assert not [branch.name for branch in ledger.branches() if "oracle" in branch.name], (
            "an oracle leaves no rounds"
        )
        assert ledger.restorable("main") == (0, 1, 2, 3) and register.head() == "main"
        assert register.asked(request).state == "verified"
        for record in records:
            there = [update.client_id for update in ledger.contributions("main", record.round)]
            assert there == list(record.accepted)
    finally:
        ledger.close()


def test_no_text_of_any_client_is_written(trained: RunResult) -> None:
    data = resolve(trained.config)
    texts = [row.answer for rows in data.clients.values() for row in rows]
    texts += [wrong for rows in data.clients.values() for row in rows for wrong in row.wrong_answers]
    written = [path for path in trained.directory.rglob("*") if path.is_file()]
    assert len(written) > 10
    for path in written:
        content = path.read_bytes()
        assert not [text for text in texts if text.encode() in content], path


def test_adapters_load_in_peft_with_equal_logits(trained: RunResult) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from oblivion.models.resident import load_resident

    config = trained.config
    base = AutoModelForCausalLM.from_pretrained(config.model.name, trust_remote_code=False)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, trained.adapter_folder)(input_ids=ids).logits
        resident = load_resident(config.model, config.lora)
        resident.write(trained.adapter)
        assert torch.allclose(resident.model(input_ids=ids).logits, expected, atol=1e-6)


def test_two_runs_have_the_same_bits_whatever_the_hosts(
    trained: RunResult, micro_scenario: Path, tmp_path: Path
) -> None:
    for hosts in (1, 3):
        changes = {"simulation.hosts": hosts, "forget.methods": ["local"]}
        again = run(micro_scenario, tmp_path / f"hosts-{hosts}", changes)
        assert same_bits(again.adapter, trained.adapter)
        assert same_bits(trial_of(again, "local").adapter, trial_of(trained, "local").adapter)


def test_cohorts_of_another_size_change_the_rounding_alone(
    trained: RunResult, micro_scenario: Path, tmp_path: Path
) -> None:
    assert trained.config.train.cohort == 2
    again = run(micro_scenario, tmp_path / "cohorts", {"train.cohort": 3, "forget.methods": []})
    losses = {(e["branch"], e["round"]): e["loss"] for e in trained.history}
    for entry in again.history:
        if entry["branch"] == "main":
            assert entry["loss"] == pytest.approx(losses["main", entry["round"]], rel=1e-4)
    other = run(micro_scenario, tmp_path / "again", {"train.cohort": 3, "simulation.hosts": 3, "forget.methods": []})
    assert same_bits(again.adapter, other.adapter)


def test_with_dropout_clients_are_trained_one_by_one_and_it_is_said_once(micro_scenario: Path, tmp_path: Path) -> None:
    changes = {
        "train.cohort": "auto",
        "lora.dropout": 0.1,
        "forget.client": "",
        "forget.methods": [],
        "federation.rounds": 2,
    }
    said: list[str] = []
    config = ob.load_config(micro_scenario, changes)
    result = simulate(config, tmp_path / "run", sinks=[lambda e: said.append(str(e.get("text", "")))])
    assert result.config.train.cohort == 1
    (line,) = [text for text in said if "one by one" in text or "memory" in text]
    assert line.startswith("clients are trained one by one: lora.dropout is above 0")
    # Also where somebody asks for cohorts: they share a message, not a pass.
    said.clear()
    config = ob.load_config(micro_scenario, {**changes, "train.cohort": 3, "forget.methods": []})
    again = simulate(config, tmp_path / "again", sinks=[lambda e: said.append(str(e.get("text", "")))])
    assert same_bits(again.adapter, result.adapter)
    assert len([text for text in said if "one by one" in text or "memory" in text]) == 1


def test_another_seed_gives_another_model(trained: RunResult, micro_scenario: Path, tmp_path: Path) -> None:
    assert not same_bits(
        run(micro_scenario, tmp_path / "seed", {"seed": 1, "forget.methods": []}).adapter, trained.adapter
    )


def test_forgetting_later_adds_a_trial_and_never_repeats_one(trained: RunResult) -> None:
    first = trained.forget("client-2", method="local")
    assert first.model.endswith("/local")
    rounds = len(trained.history)
    again = trained.forget("client-2", method="local")
    assert again.model == first.model and len(trained.history) == rounds  # nothing was run
    other = trained.forget("client-2", method="local", parameters={"objective": "simnpo"})
    assert other.model.endswith("/local-2")
    assert not same_bits(other.adapter, first.adapter)
    slower = trained.forget("client-2", method="local", parameters={"learning_rate": 1e-4})
    assert slower.model.endswith("/local-3")
    assert same_bits(RunResult(trained.directory).adapter, trained.adapter)  # a trial changes nothing else


def test_an_interrupted_removal_can_be_tried_again(trained: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    import oblivion.federation.measure as measure

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measure, "measure_clients", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained.forget("client-3", method="exclude")
    assert "client-3" not in {e["client"] for e in trained.metrics["requests"]}
    assert trained.forget("client-3", method="exclude").model.endswith("/exclude")


def test_forgetting_some_samples(trained: RunResult) -> None:
    erased = trained.forget("client-1", samples="authors:0.5", method="local")
    request = next(e for e in trained.metrics["requests"] if e["client"] == "client-1")
    assert request["samples"] and request["samples"] == request["rows"]
    clients = request["models"]["local"]["clients"]
    assert {"client-1 (forgotten)", "client-1 (kept)"} <= set(clients)
    total = len(resolve(trained.config).clients["client-1"])
    assert clients["client-1 (forgotten)"]["probability"]["n"] == request["rows"]
    assert clients["client-1 (kept)"]["probability"]["n"] == total - request["rows"]
    plan = json.loads((erased.adapter_folder.parent / "plan.json").read_text())
    assert plan["phases"][0]["anchor"] == "retained"


def test_the_oracle_of_another_client_is_trained_when_it_is_asked_for(trained: RunResult) -> None:
    oracle = trained.oracle("client-0")
    assert oracle.model.endswith("/oracle")
    assert not same_bits(oracle.adapter, trained.adapter)


def test_removing_a_client_that_was_never_selected_changes_no_bit(micro_scenario: Path, tmp_path: Path) -> None:
    changes = {
        "federation.clients-per-round": 1,
        "federation.joins.client-2": 1,
        "forget.client": "",
        "forget.methods": [],
    }
    result = run(micro_scenario, tmp_path / "run", changes)
    selected = {client for record in records_of(result) for client in record.selected}
    absent = min({f"client-{i}" for i in range(4)} - selected)
    assert same_bits(result.oracle(absent).adapter, result.adapter)


def test_learning_alone_is_measured_too(micro_scenario: Path, tmp_path: Path) -> None:
    result = run(
        micro_scenario,
        tmp_path / "run",
        {"forget.client": "", "forget.methods": [], "federation.aggregator": "fedadam"},
    )
    assert result.metrics["learned"]["central"]["model_utility"]["value"] is not None
    assert (result.directory / "report.html").is_file()


def test_a_wrong_request_is_refused_before_anything_is_written(micro_scenario: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="client-9"):
        run(micro_scenario, tmp_path / "run", {"forget.client": "client-9", "forget.methods": []})
    assert not (tmp_path / "run").exists()


def test_a_removal_that_cannot_work_is_refused(micro_scenario: Path, tmp_path: Path) -> None:
    changes = {"data.public": "", "forget.methods": {"local": {"objective": "grad_diff"}}}
    with pytest.raises(PlanRefusedError, match="rows to keep"):
        run(micro_scenario, tmp_path / "run", changes)


def test_a_removal_that_cannot_be_planned_starts_no_engine_and_takes_no_request_in(
    trained: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = requests(trained.directory)
    monkeypatch.setattr(import_module("simulations.simulate"), "on_engine", lambda *_: pytest.fail("it was started"))
    with pytest.raises(PlanRefusedError, match="whole client"):
        trained.forget("client-2", "authors:0.5", method="puf")
    assert requests(trained.directory) == known


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run: RunResult(run.directory, "req-x/local").adapter, "has no model 'req-x/local'; .*original"),
        (lambda run: run.commit(), "there is no request 'original': it is the run's own model"),
        (lambda run: ob.evaluate(run, limit=-1), "limit = -1 is not allowed"),
        (lambda run: ob.evaluate(run, batch_size="8"), "batch_size = '8' is not allowed"),
        (lambda run: ob.evaluate(run, split="forget10"), "--split forget10: it names a part of the folder of --data"),
        (lambda run: simulate("demo"), "takes what load_config returns, and not 'demo'"),
    ],
)
def test_a_mistaken_call_from_python_is_told_what_is_wrong(
    trained: RunResult, call: Callable[[Any], Any], words: str
) -> None:
    with pytest.raises(ob.OblivionError, match=words):
        call(trained)


def test_evaluate_from_python_with_an_oracle_as_reference(trained: RunResult) -> None:
    erased = trained.forget("client-2", method="local")
    table = ob.evaluate(erased, suite="tofu", reference=trained.oracle("client-2"), limit=4, max_new_tokens=3)
    stored = entry_of(trained, "client-2")["models"]["local"]["central"]["forget_Q_A_Prob"]["value"]
    assert table["forget_Q_A_Prob"]["agg_value"] == pytest.approx(stored, abs=1e-6)
    assert table["forget_quality"]["agg_value"] is not None


def entry_of(result: RunResult, client: str) -> dict[str, Any]:
    return next(e for e in result.metrics["requests"] if e["client"] == client)
