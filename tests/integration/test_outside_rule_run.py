"""The server rule of docs/extending.md as a package of its own: installed, run with client-level privacy, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from outside import Install, example, install_example
from outside import install as install

import oblivion as ob
from oblivion.run.records import read_plan
from simulations import RunResult, simulate

PRIVATE = {"privacy.unit": "client", "privacy.noise-multiplier": 0.0, "privacy.clip-norm": 0.5}
SHORT = {"federation.rounds": 2, "federation.joins": {}, "evaluate.oracle-seeds": 0, "evaluate.limit": 1}


def test_a_rule_of_another_package_runs_with_client_privacy_and_its_own_parameter(
    install: Install, micro_scenario: Path, tmp_path: Path
) -> None:
    install_example(install, "aggregators", "momentum", "Momentum")

    def run(name: str, rule: str, **more: object) -> RunResult:
        settings = {**SHORT, **PRIVATE, "forget.methods": ["exclude"], "federation.aggregator": rule, **more}
        return simulate(ob.load_config(micro_scenario, settings), tmp_path / name)

    none = run("none", "momentum", **{"federation.parameters.momentum": 0.0})
    plain = run("plain", "fedavg")
    half = run("half", "momentum", **{"federation.parameters.momentum": 0.5})
    same = [torch.equal(none.adapter[name], tensor) for name, tensor in plain.adapter.items()]
    other = [not torch.equal(half.adapter[name], tensor) for name, tensor in plain.adapter.items()]
    assert all(same) and any(other), "without momentum it is the mean, and the parameter reaches the rule"
    assert none.record.privacy is not None and none.record.privacy.unit == "client"
    (request,) = half.record.requests
    plan = read_plan(half.directory, f"{request.id}/exclude")
    kept = [entry for entry in plan.checklist if "momentum v" in f"{entry.item} {entry.why}"]
    assert [entry.status for entry in kept] == ["not covered"], "the checklist names what the rule declares"


def test_what_the_rule_does_not_say_of_itself_is_refused(
    install: Install, micro_scenario: Path, tmp_path: Path
) -> None:
    text = example("Momentum").split("# By hand")[0].replace("    of_mean: ClassVar[bool] = True\n", "")
    install("heavy", "1", {"aggregators": {"momentum": "heavy:Momentum"}}, {"heavy.py": text})
    for settings, message in (
        (PRIVATE, r"'momentum' is not a function of the mean alone; choose one of fedadagrad, "),
        ({"lora.scheme": "flora"}, r"'momentum' cannot be used with lora.scheme = 'flora': .* clipped_mean, fedavg, "),
        ({"federation.parameters.moment": 1}, r"'momentum' has no parameter 'moment'; did you mean 'momentum'"),
    ):
        with pytest.raises(ob.OblivionError, match=message):
            simulate(
                ob.load_config(micro_scenario, {**settings, "federation.aggregator": "momentum"}), tmp_path / "run"
            )
    assert not (tmp_path / "run").exists()
