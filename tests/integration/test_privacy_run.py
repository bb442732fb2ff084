"""Differential privacy through whole runs: noise of a secret, the budget in the report, what a removal may do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import oblivion as ob
from oblivion.errors import ConfigError, PlanRefusedError
from oblivion.ledger.store import StoredLedger
from oblivion.training.accountant import Mechanism, epsilon
from simulations import RunResult, simulate

SMALL: dict[str, Any] = {"forget.methods": ["rollback", "exclude"], "evaluate.limit": 2, "evaluate.max-new-tokens": 1}
UNITS: dict[str, dict[str, Any]] = {
    "client": {"privacy.unit": "client", "privacy.noise-multiplier": 2.0, "federation.aggregator": "fedavgm"},
    "sample": {"privacy.unit": "sample", "privacy.noise-multiplier": 1.5, "train.batch-size": 2},
}


def run(scenario: Path, out: Path, changes: dict[str, Any]) -> RunResult:
    return simulate(ob.load_config(scenario, {**SMALL, **changes}), out)


def model(result: RunResult, name: str) -> RunResult:
    (entry,) = result.metrics["requests"]
    return RunResult(result.directory, f"{entry['id']}/{name}")


@pytest.fixture(scope="module", params=UNITS)
def private(
    request: pytest.FixtureRequest, micro_scenario: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunResult:
    return run(micro_scenario, tmp_path_factory.mktemp(request.param) / "run", UNITS[request.param])


def test_the_budget_is_in_metrics_and_report(private: RunResult) -> None:
    said = private.metrics["privacy"]
    unit, sigma = private.config.privacy.unit, private.config.privacy.noise_multiplier
    assert said["unit"] == unit and said["delta"] == 1e-5 and said["noise_multiplier"] == sigma
    assert len(said["by_round"]) == 3 and said["by_round"] == sorted(said["by_round"])
    if unit == "client":
        assert said["by_round"][2] == epsilon(Mechanism(sigma, 1.0, 1), 3, 1e-5)
        assert said["forgetting"]["1"]["epsilon"] == said["by_round"][2]
    # main 3 rounds, the oracle's 3, rollback from round 2 on, exclude 1 more: all were trained on the others' data
    assert said["all"]["rounds"] == len(private.history) == 3 + 3 + 2 + 1
    assert said["models"]["main"]["epsilon"] == said["by_round"][2] < said["all"]["epsilon"]
    page = (private.directory / "report.html").read_text("utf-8")
    assert "Differential privacy" in page and f"{said['by_round'][2]:.2f}" in page
    assert ("one sample" if unit == "sample" else "one client") in page


def test_the_secret_is_in_keys_and_nowhere_else(private: RunResult) -> None:
    secrets = {path.read_bytes() for path in (private.directory / "keys" / "noise").glob("*.key")}
    assert len(secrets) == 3, "main, rollback and exclude; the oracle's went with its branch"
    assert all((private.directory / "keys").stat().st_mode & 0o777 == 0o700 for _ in secrets)
    others = [p for p in private.directory.rglob("*") if p.is_file() and "keys" not in p.parts]
    assert len(others) > 5
    for path in others:
        content = path.read_bytes()
        assert not any(secret in content or secret.hex().encode() in content for secret in secrets), path


def test_nothing_of_a_round_is_told_that_the_noise_does_not_cover(private: RunResult) -> None:
    assert all(entry["loss"] is None or math.isnan(entry["loss"]) for entry in private.history)
    assert all(entry["scheme_error"] == 0 for entry in private.history)


def test_two_branches_have_other_noise_and_with_one_secret_rollback_is_the_oracle(
    private: RunResult, micro_scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, oracle = model(private, "rollback").adapter, model(private, "oracle").adapter
    assert any(not torch.equal(t, oracle[n]) for n, t in fresh.items())
    monkeypatch.setattr(StoredLedger, "secret", lambda ledger, branch: b"s" * 32)
    one_secret = run(micro_scenario, tmp_path / "run", UNITS[private.config.privacy.unit])
    rollback, oracle = model(one_secret, "rollback").adapter, model(one_secret, "oracle").adapter
    assert all(torch.equal(t, oracle[n]) for n, t in rollback.items())


def test_a_rollback_can_be_committed_and_verified(private: RunResult) -> None:
    committed = model(private, "rollback").commit()
    folder = private.directory / "forgets" / model(private, "rollback").model
    assert json.loads((folder / "evidence.json").read_text())
    assert committed.metrics["privacy"]["unit"] == private.config.privacy.unit


def test_an_unlearning_update_is_refused(micro_scenario: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanRefusedError, match="local: an unlearning update has no noise") as caught:
        run(micro_scenario, tmp_path / "run", {**UNITS["client"], "forget.methods": ["local"]})
    assert caught.value.exit_code == 5 and not (tmp_path / "run").exists()


def test_a_budget_that_does_not_last_is_refused_before_the_run(micro_scenario: Path, tmp_path: Path) -> None:
    three = epsilon(Mechanism(2.0, 1.0, 1), 3, 1e-5)
    with pytest.raises(ConfigError, match=r"privacy\.max-epsilon = .*; 2 rounds fit") as caught:
        run(micro_scenario, tmp_path / "run", {**UNITS["client"], "privacy.max-epsilon": three - 0.1})
    assert caught.value.exit_code == 2
    # enough for the learning and the oracle, but not for two more rounds of a rollback
    enough = epsilon(Mechanism(2.0, 1.0, 1), 7, 1e-5) + 0.01
    with pytest.raises(
        PlanRefusedError, match=r"rollback: its 2 rounds would spend more than .*; 1 more rounds"
    ) as refused:
        run(micro_scenario, tmp_path / "run", {**UNITS["client"], "privacy.max-epsilon": enough})
    assert refused.value.exit_code == 5 and not (tmp_path / "run").exists()
