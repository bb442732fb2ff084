"""Removals that work with stored updates in a whole run: tried, named, committed, and followed by another request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import oblivion as ob
from oblivion.errors import PlanRefusedError
from oblivion.ledger.opening import read_ledger
from simulations import RunResult, simulate

LATE, OTHER = "client-2", "client-1"
SMALL = {
    "federation.rounds": 4,
    "evaluate.limit": 2,
    "evaluate.max-new-tokens": 1,
    "forget.methods": [],
    "forget.methods.federaser": {"interval": 2, "recovery-rounds": 0},
    "forget.methods.puf": {},
    "forget.methods.back": {"method": "puf", "scale": 0.25, "recovery-rounds": 1},
    "forget.methods.msa": {"beta": 0.0},
}


@pytest.fixture(scope="module")
def trained(micro_scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    config = ob.load_config(micro_scenario, SMALL)
    return simulate(config, tmp_path_factory.mktemp("stored") / "run")


def trial(result: RunResult, name: str) -> RunResult:
    (entry,) = [request for request in result.record.requests if request.client == LATE]
    return RunResult(result.directory, f"{entry.id}/{name}")


def test_puf_is_the_original_less_the_last_update(trained: RunResult) -> None:
    ledger, _ = read_ledger(trained.directory)
    try:
        (own,) = [update for update in ledger.contributions("main", 4) if update.client_id == LATE]
    finally:
        ledger.close()
    for name, tensor in trial(trained, "puf").adapter.items():
        torch.testing.assert_close(tensor, trained.adapter[name] - 0.5 * own.delta[name], rtol=0, atol=1e-6)
    plan = json.loads((trained.directory / "forgets" / trial(trained, "back").model / "plan.json").read_text())
    assert plan["label"] == "back: puf + 1 round" and [p["kind"] for p in plan["phases"]] == ["server-step", "rounds"]


def test_trials_cost_what_their_phases_take(trained: RunResult) -> None:
    (request,) = trained.record.requests
    costs = {name: model.cost.client_steps for name, model in request.models.items() if model.cost}
    assert costs["puf"] == costs["msa"] == 0 < costs["back"] and 0 < costs["federaser"] < costs["oracle"]


def test_a_run_goes_on_from_a_committed_federaser(trained: RunResult) -> None:
    # back to round 1, round 2 without the client, round 4 calibrated: the head is at round 3, and learned 4
    head = trial(trained, "federaser").commit()
    assert head.record.head and "federaser" in head.record.head
    again = head.forget(OTHER, method="exclude", parameters={"recovery_rounds": 1})
    assert again.adapter
    with pytest.raises(PlanRefusedError, match="whole client"):
        head.forget(OTHER, "authors:0.5", method="puf")
    rolled = head.forget(OTHER, method="rollback")
    oracle = head.oracle(OTHER)
    assert all(torch.equal(tensor, oracle.adapter[name]) for name, tensor in rolled.adapter.items())
