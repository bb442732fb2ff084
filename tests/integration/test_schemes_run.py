"""LoRA schemes through whole runs: training, ledger, removals, evaluation and the adapters that are saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import oblivion as ob
from oblivion.errors import ConfigError
from oblivion.learners import learner_of
from oblivion.ledger.opening import open_ledger
from oblivion.models.adapter_folder import read_adapter_folder
from oblivion.models.factors import factor_of
from oblivion.models.loading import load_base
from oblivion.models.resident import ResidentModel
from oblivion.run.directory import RunDirectory
from oblivion.run.events import Event
from server.prepare import prepare
from simulations import RunResult, resume, simulate

LATE = "client-2"
SMALL: dict[str, Any] = {
    "federation.rounds": 4,
    f"federation.joins.{LATE}": 3,
    "federation.quorum": 0.5,
    "forget.methods": ["rollback", "local"],
    "evaluate.limit": 2,
    "evaluate.max-new-tokens": 1,
    "ledger.checkpoint-every": 2,
}
SCHEMES: dict[str, dict[str, Any]] = {
    "ffa": {"federation.aggregator": "fedadam", "federation.parameters.learning_rate": 0.05},
    "rolora": {"federation.aggregator": "fedavgm"},
    "flexlora": {"federation.ranks.client-0": 2},
    "flora": {"federation.ranks.client-0": 2},
    "fedex": {"train.cohort": 1, "federation.max-influence": 1.0},
}


@pytest.fixture(scope="module", params=SCHEMES)
def run(request: pytest.FixtureRequest, micro_scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    changes = {**SMALL, "lora.scheme": request.param, **SCHEMES[request.param]}
    return simulate(ob.load_config(micro_scenario, changes), tmp_path_factory.mktemp(request.param) / "run")


def model(result: RunResult, name: str) -> RunResult:
    (entry,) = result.metrics["requests"]
    return RunResult(result.directory, f"{entry['id']}/{name}")


def test_rollback_is_the_oracle_bit_for_bit_and_can_be_committed(run: RunResult) -> None:
    rollback, oracle = model(run, "rollback").adapter, model(run, "oracle").adapter
    assert list(rollback) == list(oracle) and all(torch.equal(t, oracle[n]) for n, t in rollback.items())
    assert any(not torch.equal(t, oracle[n]) for n, t in run.adapter.items() if t.shape == oracle[n].shape)
    checklist = {t["item"]: t["status"] for t in run.metrics["requests"][0]["models"]["local"]["checklist"]}
    keeps = run.config.lora.scheme in ("flora", "fedex")
    assert checklist["residual beside the base model"] == ("not covered" if keeps else "unaffected")


def test_what_was_frozen_is_as_it_began_and_half_as_much_travels(run: RunResult) -> None:
    scheme, config = run.config.lora.scheme, run.config
    resident = learner_of(config)
    initial = resident.initial_adapter(config.seed)
    if scheme == "ffa":
        final = run.adapter
        assert all(torch.equal(final[n], t) == (factor_of(n) == "A") for n, t in initial.items())
    ledger, _ = open_ledger(run.directory, config.ledger)
    try:
        for record in ledger.records("main"):
            sent = {factor_of(n) for u in ledger.contributions("main", record.round) for n in u.delta}
            expected = {"ffa": {"B"}, "rolora": {"B"} if record.round % 2 else {"A"}}.get(scheme, {"A", "B"})
            assert sent == expected
            size = sum(4 * t.numel() for n, t in initial.items() if factor_of(n) in expected)
            assert record.cost.bytes_up == size * len(record.accepted)
            assert record.scheme_error < 1e-4 or scheme == "flexlora"
        state = ledger.last_state("main", 4).state
        assert bool(state.residual) == (scheme in ("flora", "fedex"))
    finally:
        ledger.close()


def test_a_client_of_a_lower_rank_sends_nothing_beyond_it(run: RunResult) -> None:
    if not run.config.federation.ranks:
        pytest.skip("all clients of this scheme have one rank")
    ledger, _ = open_ledger(run.directory, run.config.ledger)
    try:
        first = {u.client_id: u.delta for u in ledger.contributions("main", 2)}
    finally:
        ledger.close()
    for name, delta in first["client-0"].items():
        rest = delta[2:] if factor_of(name) == "A" else delta[:, 2:]
        assert not rest.any() and delta.any()
    assert any(t[2:].any() for n, t in first["client-1"].items() if factor_of(n) == "A")


def test_the_saved_adapter_is_the_model_that_was_measured(run: RunResult) -> None:
    """The logits of base, residual and adapter are those of the saved adapter, loaded as peft reads it."""
    config = run.config
    ledger, _ = open_ledger(run.directory, config.ledger)
    try:
        state = ledger.last_state("main", 4).state
    finally:
        ledger.close()
    ids = torch.tensor([[1, 5, 9, 17, 33, 20, 8]])
    resident = ResidentModel(load_base(config.model), config.lora)
    resident.write(state.adapter)
    before = {n: m.base_layer.weight.clone() for n, m in resident.lora_layers.items()}
    with torch.no_grad(), resident.over(state.residual):
        expected = resident.model(ids).logits
    assert all(torch.equal(m.base_layer.weight, before[n]) for n, m in resident.lora_layers.items())
    saved = read_adapter_folder(run.adapter_folder)
    lora = saved.settings.to_peft()
    assert lora.lora_alpha / lora.r == config.lora.alpha / config.lora.rank
    other = ResidentModel(load_base(config.model), saved.settings)
    other.write(saved.tensors)
    with torch.no_grad():
        torch.testing.assert_close(other.model(ids).logits, expected, rtol=0, atol=1e-5)
    from peft import PeftModel

    plain = PeftModel.from_pretrained(load_base(config.model).model, str(run.adapter_folder))
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, expected, rtol=0, atol=1e-5)


def test_what_the_scheme_loses_is_told_of_every_round(run: RunResult) -> None:
    errors = [e["scheme_error"] for e in run.history if e["branch"] == "main"]
    assert len(errors) == 4
    assert (max(errors) > 1e-3) == (run.config.lora.scheme == "flexlora")


@pytest.mark.parametrize("stop", [("main", 3), ("oracle", 4)], ids=["learning", "oracle"])
def test_resume_gives_the_bits_of_the_uninterrupted_run(
    run: RunResult, micro_scenario: Path, tmp_path: Path, stop: tuple[str, int]
) -> None:
    """The last checkpoint is of round 2: residual and frozen halves are computed again from there."""

    def pressed(event: Event) -> None:
        if event["event"] == "round_started" and event["branch"].endswith(stop[0]) and event["round"] == stop[1]:
            raise KeyboardInterrupt

    scheme = run.config.lora.scheme
    config = ob.load_config(micro_scenario, {**SMALL, "lora.scheme": scheme, **SCHEMES[scheme]})
    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "run", sinks=[pressed])
    resumed = resume(tmp_path / "run")
    for one, other in ((run, resumed), *((model(run, n), model(resumed, n)) for n in ("oracle", "rollback", "local"))):
        assert list(one.adapter) == list(other.adapter)
        assert all(torch.equal(t, other.adapter[n]) for n, t in one.adapter.items())
    told = [
        sorted((e["branch"].split("/")[-1], e["round"], e["scheme_error"]) for e in r.history) for r in (run, resumed)
    ]
    assert [x[1:] for x in told[0]] == [x[1:] for x in told[1]]


def test_a_committed_rollback_erases_and_verifies(run: RunResult) -> None:
    committed = model(run, "rollback").commit()
    evidence = json.loads(
        (committed.directory / "forgets" / model(run, "rollback").model / "evidence.json").read_text()
    )
    assert evidence and RunDirectory(committed.directory).read_json("metrics.json", {})["head"]


def test_control_variates_of_each_factor_work_in_its_own_rounds(micro_scenario: Path, tmp_path: Path) -> None:
    sgd = {"federation.aggregator": "scaffold", "train.optimizer": "sgd", "train.learning-rate": 0.1}
    changes = {**SMALL, **sgd, "lora.scheme": "rolora", "forget.methods": ["rollback", "exclude"]}
    result = simulate(ob.load_config(micro_scenario, changes), tmp_path / "run")
    rollback, oracle = model(result, "rollback").adapter, model(result, "oracle").adapter
    assert all(torch.equal(t, oracle[n]) for n, t in rollback.items())


def test_the_gate_does_not_hold_one_factor_against_the_norms_of_the_other(micro_scenario: Path, tmp_path: Path) -> None:
    """With plain SGD at a small rate B moves fifty times as far as A."""
    nobody = {"forget.methods": [], "forget.client": "", "federation.joins": {}}
    sgd = {"train.optimizer": "sgd", "train.learning-rate": 0.01, "federation.rounds": 7}
    changes = {**SMALL, **nobody, **sgd, "lora.scheme": "rolora"}
    result = simulate(ob.load_config(micro_scenario, changes), tmp_path / "run")
    assert [(e["clients"], e["refused"]) for e in result.history] == [(4, 0)] * 7


@pytest.mark.parametrize("scheme", ["fedit", *SCHEMES])
def test_weights_are_fp32_where_a_residual_is_folded_into_them(
    micro_scenario: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oblivion.learners.resolve_dtype", lambda model: "bfloat16")  # as on a GPU with a wide model
    config, _ = prepare(ob.load_config(micro_scenario, {"lora.scheme": scheme}))
    assert config.model.dtype == ("float32" if scheme in ("flora", "fedex") else "bfloat16")


def test_fedit_tells_what_it_loses(micro_scenario: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "forget.methods": [], "forget.client": "", "federation.joins": {}, "train.local-epochs": 3}
    result = simulate(ob.load_config(micro_scenario, settings), tmp_path / "run")
    assert max(e["scheme_error"] for e in result.history) > 1e-3


def test_combinations_that_make_no_sense_run_nothing(micro_scenario: Path, tmp_path: Path) -> None:
    for settings in ({"lora.scheme": "flora", "federation.aggregator": "median"}, {"federation.ranks.client-1": 2}):
        with pytest.raises(ConfigError) as caught:
            simulate(ob.load_config(micro_scenario, settings), tmp_path / "run")
        assert caught.value.exit_code == 2 and not (tmp_path / "run").exists()
