"""The study of stale control variates: its claim on quadratic losses, and that it runs on a language model."""

from __future__ import annotations

from typing import Any

import pytest

from oblivion.aggregation.rules.control import ControlRule
from oblivion.aggregation.rules.feddyn import FedDyn
from oblivion.aggregation.rules.scaffold import Scaffold
from simulations import stale_control
from simulations.stale_control import language_model, quadratic


@pytest.mark.parametrize("rule", [Scaffold(), FedDyn(alpha=0.5)], ids=["scaffold", "feddyn"])
def test_a_stale_variate_keeps_the_client_for_good_and_a_corrected_one_does_not(rule: ControlRule) -> None:
    found = {(r["variates"], r["further_rounds"]): r["distance"] for r in quadratic(rule)}
    assert found["stale", 300] == pytest.approx(1.0, abs=1e-3), "the model does not move at all"
    assert found["corrected", 20] < 0.1 and found["corrected", 300] < 1e-3


def test_the_study_runs_on_a_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    small: dict[str, Any] = {**stale_control.SCENARIO, "federation.rounds": 2, "train.local-epochs": 1}
    monkeypatch.setattr(stale_control, "SCENARIO", {**small, "data.parameters.rows_per_client": 4})
    monkeypatch.setattr(stale_control, "ROUNDS_AFTER", 2)
    found = {result["variates"]: result for result in language_model("scaffold")}
    assert list(found) == ["(the model before)", "(never saw it)", "corrected", "stale"]
    assert found["corrected"]["distance"] != found["stale"]["distance"]
    assert all(0 < result["known"] < 1 for result in found.values())
