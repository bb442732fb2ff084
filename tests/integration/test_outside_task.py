"""The task of docs/extending.md as a package of its own: it learns, forgets, commits and reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from outside import Install, install_example
from outside import install as install

import oblivion as ob
from oblivion.models.resident import weight_bytes
from oblivion.report import build_report
from simulations import RunResult, simulate

SETTINGS = {
    "engine": "inline",
    "model.name": "bigrams",
    "federation.clients": 3,
    "federation.clients-per-round": 3,
    "federation.rounds": 3,
    "federation.joins": {"client-2": 2},
    "train.learning-rate": 0.05,
    "data.parameters.rows_per_client": 8,
    "forget.client": "client-2",
    "forget.methods": ["rollback", "local"],
    "evaluate.suite": "classes",
    "evaluate.oracle-seeds": 1,
    "evaluate.limit": 4,
    "simulation.hosts": 1,
}


def test_a_task_of_another_package_learns_forgets_and_reports(install: Install, tmp_path: Path) -> None:
    install_example(install, "tasks", "bigrams", "Bigrams")
    run = simulate(ob.load_config(None, SETTINGS), tmp_path / "run")
    assert {name: tuple(tensor.shape) for name, tensor in run.adapter.items()} == {"weight": (27, 27)}
    losses = [entry["loss"] for entry in run.history]
    assert losses[1] < losses[0]
    (request,) = run.record.requests

    def of(name: str) -> RunResult:
        return RunResult(run.directory, f"{request.id}/{name}")

    assert weight_bytes(of("rollback").adapter) == weight_bytes(of("oracle").adapter)
    assert not torch.equal(of("local").adapter["weight"], run.adapter["weight"])
    assert request.models["rollback"].central["forget_probability"].value is not None
    assert "Probability" in build_report([run.directory])
    assert [one["name"] for one in json.loads((run.directory / "manifest.json").read_text())["packages"]] == ["bigrams"]
    oracle = weight_bytes(of("oracle").adapter)
    assert weight_bytes(of("rollback").commit().adapter) == oracle


def test_its_parameter_reaches_the_model_and_what_it_does_not_have_is_refused(install: Install, tmp_path: Path) -> None:
    install_example(install, "tasks", "bigrams", "Bigrams")
    short = {**SETTINGS, "forget.client": "", "forget.methods": [], "federation.joins": {}, "federation.rounds": 1}
    run = simulate(ob.load_config(None, {**short, "model.parameters.alphabet": "aeiou"}), tmp_path / "vowels")
    assert run.adapter["weight"].shape == (6, 6)
    for settings, said in (
        ({"model.parameters.letters": "aeiou"}, r"model\.parameters: 'bigrams' has no parameter 'letters'"),
        ({"model.parameters.alphabet": 3}, r"'bigrams' with alphabet = 3 is not allowed"),
        ({"lora.scheme": "flora"}, r"lora\.scheme = 'flora'"),
        ({"model.name": "tiny", "model.parameters.alphabet": "a"}, r"'causal_lm' has no parameter 'alphabet'"),
    ):
        with pytest.raises(ob.OblivionError, match=said):
            simulate(ob.load_config(None, {**short, **settings}), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
