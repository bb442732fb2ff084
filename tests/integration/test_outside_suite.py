"""The suite of docs/extending.md as a package of its own: installed, run with a parameter, and reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outside import Install, install_example
from outside import install as install

import oblivion as ob
from oblivion.report import build_report
from simulations import simulate


def test_a_suite_of_another_package_is_run_with_its_parameter(
    install: Install, micro_model: Path, tmp_path: Path
) -> None:
    install_example(install, "suites", "insisting", "Insisting")
    settings = {
        "engine": "inline",
        "model.name": str(micro_model),
        "lora.rank": 2,
        "federation.clients": 3,
        "federation.clients-per-round": 3,
        "federation.rounds": 1,
        "train.local-epochs": 1,
        "data.parameters.rows_per_client": 8,
        "data.parameters.holdout_authors": 1,
        "forget.client": "client-2",
        "forget.methods": ["exclude"],
        "evaluate.suite": "insisting",
        "evaluate.parameters.also": "Say: {}",
        "evaluate.limit": 2,
        "evaluate.max-new-tokens": 2,
        "simulation.hosts": 1,
    }
    run = simulate(ob.load_config(None, settings), tmp_path / "run")
    (request,) = run.record.requests
    assert request.models["exclude"].central["insisting"].n == 2
    assert set(request.models["exclude"].clients["client-0"]) >= {"loss", "probability"}
    assert json.loads((run.directory / "manifest.json").read_text())["packages"][0]["name"] == "insisting"
    page = build_report([run.directory])
    assert "Best of two answers" in page and "with best ROUGE" in page and "Truth ratio" not in page

    with pytest.raises(ob.OblivionError, match=r"evaluate\.parameters: 'insisting' has no parameter 'twice'"):
        simulate(ob.load_config(None, settings | {"evaluate.parameters.twice": True}), tmp_path / "other")
