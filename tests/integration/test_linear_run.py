"""Whole runs of the task `linear`: everything but the modality is what language models run on."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import simulations.engines.inline
from oblivion.aggregation.rules import aggregators
from oblivion.cli import app
from oblivion.config import load_config
from oblivion.federation.host import Host
from oblivion.ledger.verify import verify_ledger
from oblivion.models.resident import weight_bytes
from oblivion.types import HostReply, HostRequest
from simulations.simulate import RunResult, resume, simulate

SMALL = {
    "engine": "inline",
    "seed": 3,
    "model.name": "linear",
    "data.name": "gaussian",
    "data.public": "dataset",
    "data.parameters.rows_per_client": 12,
    "federation.clients": 8,
    "federation.rounds": 3,
    "train.learning-rate": 0.05,
    "train.local-epochs": 1,
    "evaluate.suite": "classes",
}
ASKS = {"forget.client": "client-3", "federation.joins": {"client-3": 2}}


def run(root: Path, **settings: Any) -> RunResult:
    return simulate(load_config(None, {**SMALL, **settings}), root)


def same(one: RunResult, other: RunResult) -> bool:
    return weight_bytes(one.adapter) == weight_bytes(other.adapter)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(tmp_path_factory.mktemp("linear") / "run", **ASKS, **{"forget.methods": ["rollback", "exclude"]})


def of(learned: RunResult, name: str) -> RunResult:
    return RunResult(learned.directory, f"{learned.metrics['requests'][0]['id']}/{name}")


def test_rollback_is_the_oracle_and_the_report_has_the_numbers(learned: RunResult) -> None:
    assert same(of(learned, "rollback"), of(learned, "oracle"))
    assert not same(of(learned, "exclude"), of(learned, "oracle")) and not same(learned, of(learned, "oracle"))
    models = learned.metrics["requests"][0]["models"]
    for name, entry in models.items():
        assert entry["central"]["holdout_accuracy"]["value"] > 0.5, name
        assert entry["clients"]["client-3"]["accuracy"]["n"] > 0
    page = (learned.directory / "report.html").read_text("utf-8")
    shown = f"{models['original']['central']['forget_probability']['value']:.2f}"
    assert shown in page and "Accuracy on held-out rows" in page
    about_text = re.compile("question|token|language model")
    assert not about_text.search(page.partition('<section class="learning">')[0] + page.partition("<footer>")[2])


def test_a_commit_its_evidence_and_the_ledger(learned: RunResult, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    trained = run(tmp_path / "run", **ASKS, **{"forget.methods": ["rollback"], "seed": 4})
    oracle = weight_bytes(of(trained, "oracle").adapter)
    trial = of(trained, "rollback")
    trial.commit()
    signed = json.loads(next(trained.directory.rglob("evidence.json")).read_text("utf-8"))
    assert '"exact"' in base64.b64decode(signed["payload"]).decode() and weight_bytes(trained.adapter) == oracle
    done = CliRunner().invoke(app, ["ledger", "verify", str(trained.directory)])
    assert done.exit_code == 0 and "everything holds" in done.output


def test_the_adapter_of_a_head_goes_also_where_the_next_head_goes_on_from_it(tmp_path: Path) -> None:
    trained = run(tmp_path / "run", **ASKS, **{"forget.methods": ["rollback"]})
    first = of(trained, "rollback")
    head = first.commit()
    kept = head.directory / "forgets" / first.model / "adapters"
    assert kept.is_dir()
    head.forget(client="client-2", method="exclude").commit(accept_no_guarantee=True)
    assert not kept.exists(), "it had learned from client-2"
    assert not verify_ledger(head.directory).findings


@pytest.mark.parametrize(
    "after", [pytest.param(3, marks=pytest.mark.slow), 9, pytest.param(20, marks=pytest.mark.slow)]
)
def test_a_run_that_dies_ends_with_the_same_bits(
    learned: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """A host that dies takes its process with it; what was committed by then is not done again."""
    answered = 0

    class Dying(Host):
        def answer(self, request: HostRequest) -> HostReply:
            nonlocal answered
            answered += 1
            if answered > after:
                raise KeyboardInterrupt
            return super().answer(request)

    root = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(simulations.engines.inline, "Host", Dying)
        with pytest.raises(KeyboardInterrupt):
            run(root, **ASKS, **{"forget.methods": ["rollback", "exclude"]})
    resumed = resume(root)
    assert same(resumed, learned)
    for name in ("rollback", "exclude", "oracle"):
        assert same(of(resumed, name), of(learned, name))


@pytest.mark.parametrize("rule", aggregators.names())
def test_every_rule(rule: str, tmp_path: Path) -> None:
    plain = getattr(aggregators.get(rule), "plain_sgd", False)
    optimizer = {"train.optimizer": "sgd"} if plain else {}
    strategy = {"federation.parameters": {"strategy": "FedAvg"}} if rule == "flower" else {}
    settings = {"federation.aggregator": rule, "federation.rounds": 2, **optimizer, **strategy}
    trained = run(tmp_path / "run", **settings)
    losses = [entry["loss"] for entry in trained.history]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in trained.adapter.values())
    assert losses[1] < losses[0] and any(bool(tensor.any()) for tensor in trained.adapter.values())


@pytest.mark.parametrize("method", ["npo", "simnpo", "grad_ascent", "grad_diff", "dpo", "shred", "blur_npo", "puf"])
def test_objectives_that_need_logits_and_removals_from_stored_updates(learned: RunResult, method: str) -> None:
    table = {"method": method} if method == "puf" else {"method": "local", "objective": method, "learning-rate": 0.05}
    trial = learned.forget("client-3", method=table.pop("method"), parameters=table)
    assert not same(trial, learned) and not same(trial, of(learned, "oracle"))


@pytest.mark.parametrize("unit", ["sample", "client"])
def test_differential_privacy(unit: str, tmp_path: Path) -> None:
    noisy = run(tmp_path / "noisy", **{"privacy.unit": unit, "privacy.noise-multiplier": 1.0})
    bare = run(tmp_path / "bare", **{"privacy.unit": unit, "privacy.noise-multiplier": 0.0})
    assert not same(noisy, bare) and "privacy" in noisy.metrics


def test_the_shipped_scenario_needs_no_language_model(tmp_path: Path) -> None:
    code = (
        "import sys, oblivion as ob\n"
        "settings = {'engine': 'inline', 'federation.rounds': 4, 'forget.methods': ['rollback']}\n"
        f"ob.simulate(ob.load_config('linear', settings), {str(tmp_path / 'run')!r})\n"
        "print([name for name in ('transformers', 'peft', 'tokenizers', 'nltk', 'rouge_score') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
