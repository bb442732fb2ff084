"""The objective of docs/extending.md with a hidden state, as a package of its own: installed, run, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from outside import Install, install_example
from outside import install as install

import oblivion as ob
from simulations import RunResult, simulate

SHORT = {"federation.rounds": 2, "federation.joins": {}, "evaluate.oracle-seeds": 0, "evaluate.limit": 1}


def quiet(**parameters: object) -> dict[str, object]:
    return {"method": "local", "objective": "mute", "learning-rate": 0.01, "recovery-rounds": 0, **parameters}


def test_an_objective_of_another_package_forgets_with_hidden_states_and_its_own_parameters(
    install: Install, micro_scenario: Path, tmp_path: Path
) -> None:
    install_example(install, "objectives", "mute", "Mute")
    methods = {"quiet": quiet(layer=1, share=0.2), "deep": quiet(layer=2, share=0.2), "idle": quiet(layer=1, share=9.0)}
    settings = {**SHORT, "forget.methods": methods}
    run = simulate(ob.load_config(micro_scenario, settings), tmp_path / "run")
    (request,) = run.record.requests

    def trial(name: str) -> RunResult:
        return RunResult(run.directory, f"{request.id}/{name}")

    def moved(name: str, beside: RunResult) -> bool:
        return any(not torch.equal(tensor, beside.adapter[key]) for key, tensor in trial(name).adapter.items())

    assert not moved("idle", run), "a state is never nine times as long as it was, so nothing is asked of it"
    assert moved("quiet", run) and moved("deep", trial("quiet")), "both parameters reach the objective"
    assert json.loads((run.directory / "manifest.json").read_text())["packages"][0]["name"] == "mute"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"depth": 1}, r"forget\.methods\.quiet: 'local' with 'mute' has no parameter 'depth'"),
        ({"layer": 0}, r"layer = 0 is not allowed; it must be a whole number of at least 1"),
        ({"layer": 3}, r"'mute'.*hidden:3"),
    ],
)
def test_a_parameter_and_a_block_that_are_not_there_are_refused(
    install: Install, micro_scenario: Path, tmp_path: Path, parameters: dict[str, object], said: str
) -> None:
    install_example(install, "objectives", "mute", "Mute")
    settings = {**SHORT, "forget.methods.quiet": quiet(**parameters)}
    with pytest.raises(ob.OblivionError, match=said):
        simulate(ob.load_config(micro_scenario, settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
