"""The removal of docs/extending.md as a package of its own: installed, tried with its parameters, and committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from outside import Install, install_example
from outside import install as install

import oblivion as ob
from oblivion.report import build_report
from simulations import RunResult, simulate


def test_a_removal_of_another_package_is_run_with_its_parameters(
    install: Install, micro_scenario: Path, tmp_path: Path
) -> None:
    install_example(install, "removals", "fade", "Fade")
    soft_table = {"method": "fade", "times": 2, "factor": 0.5}
    settings = {"federation.rounds": 2, "forget.methods": [], "evaluate.oracle-seeds": 0}
    run = simulate(ob.load_config(micro_scenario, {**settings, "forget.methods.soft": soft_table}), tmp_path / "run")
    (request,) = run.record.requests
    assert set(request.models) == {"original", "soft"} and request.models["soft"].guarantee == "approximate"
    soft = RunResult(run.directory, f"{request.id}/soft")
    for name, tensor in soft.adapter.items():
        torch.testing.assert_close(tensor, 0.25 * run.adapter[name])
    plan = json.loads((soft.adapter_folder.parent / "plan.json").read_text())
    assert plan["phases"] == [{"kind": "shrinking", "first": 3, "last": 4, "factor": 0.5}]
    assert (plan["name"], plan["method"], plan["label"]) == ("soft", "fade", "soft: fade to 0.25")
    assert {"item": "what others taught", "status": "not covered", "why": "it fades, too"} in plan["checklist"]
    assert "soft: fade to 0.25" in build_report([run.directory])
    faded = soft.adapter
    committed = soft.commit()
    assert all(torch.equal(tensor, faded[name]) for name, tensor in committed.adapter.items())

    with pytest.raises(ob.OblivionError, match=r"forget\.methods\.soft: 'fade' has no parameter 'time'"):
        simulate(ob.load_config(micro_scenario, {**settings, "forget.methods.soft": {"method": "fade", "time": 2}}))
