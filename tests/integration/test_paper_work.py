"""Paper work loads no model: planning, refusing and listing need no torch, a commit and a check no base model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oblivion.config import load_config
from oblivion.untrusted import read_json
from simulations import RunResult, simulate

SETTINGS: dict[str, Any] = {
    "engine": "inline",
    "lora.rank": 4,
    "lora.alpha": 8,
    "federation.clients": 3,
    "federation.rounds": 1,
    "federation.clients-per-round": 3,
    "train.local-epochs": 1,
    "train.cohort": 3,
    "data.parameters.rows_per_client": 4,
    "data.parameters.holdout_authors": 1,
    "evaluate.limit": 1,
    "evaluate.max-new-tokens": 1,
    "forget.client": "client-2",
    "forget.methods": {"exclude": {"recovery-rounds": 0}},
}
NO_MODEL = ("transformers", "peft", "tokenizers")
NO_TORCH = ("torch", *NO_MODEL)
GUARD = """
import sys
from importlib.abc import MetaPathFinder

forbidden = sys.argv[1].split(",")

class Guard(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Guard())
sys.argv[:2] = ["oblivion"]
from oblivion.cli import main
main()
"""


def guarded(forbidden: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Give a command in a process in which importing any of some packages raises."""
    command = [sys.executable, "-c", GUARD, ",".join(forbidden), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def good(forbidden: tuple[str, ...], *arguments: object) -> str:
    done = guarded(forbidden, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    config = load_config(None, {**SETTINGS, "model.name": str(micro_model)})
    return simulate(config, tmp_path_factory.mktemp("paper") / "run")


@pytest.fixture
def run(trained: RunResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.directory, tmp_path / "run"))


@pytest.fixture
def request_id(trained: RunResult) -> str:
    return trained.record.requests[0].id


def test_the_guard_sees_what_is_imported(run: Path) -> None:
    done = guarded(NO_TORCH, "forget", run, "--client", "client-1", "--method", "exclude")
    assert done.returncode != 0 and "was imported" in done.stderr


def test_a_plan_is_that_of_the_trial(run: Path, request_id: str) -> None:
    asked = ("forget", run, "--method", "exclude", "--plan", "--json")
    planned = json.loads(good(NO_TORCH, *asked, "--client", "client-2"))
    assert planned == read_json(run / "forgets" / request_id / "exclude/plan.json", "the plan")
    assert json.loads(good(NO_TORCH, *asked, "--client", "client-1"))["from_round"] == 1


def test_lists_and_the_ledger(run: Path, request_id: str, tmp_path: Path) -> None:
    assert f"{request_id}: everything of client-2, verified, due " in good(NO_TORCH, "requests", run)
    (asked,) = json.loads(good(NO_TORCH, "requests", run, "--json"))
    assert (asked["id"], asked["trials"]) == (request_id, ["exclude"])
    assert good(NO_TORCH, "ids", run, "--client", "client-1").startswith("1\tauthors/")
    assert "rollback" in good(NO_TORCH, "list", "removals") and "tofu" in good(NO_TORCH, "list", "suites")
    assert "head main" in good(NO_TORCH, "ledger", "show", run)
    assert "root" in good(NO_TORCH, "ledger", "export", run) and "clock" in good(NO_TORCH, "ledger", "clock", run)
    (tmp_path / "key").write_bytes(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    enrol = ("ledger", "enrol", run, "--client", "client-1", "--key", tmp_path / "key", "--json")
    assert json.loads(good(NO_TORCH, *enrol)) == {"enrolled": "client-1"}


def test_a_refusal_needs_neither_model_nor_rows(run: Path, request_id: str) -> None:
    shutil.rmtree(run / "adapters")
    assert good(NO_TORCH, "refuse", run, request_id, "--ground", "a law") == f"{request_id} refused: a law\n"
    assert "refused (a law)" in good(NO_TORCH, "requests", run)


def test_a_wrong_setting_costs_nothing() -> None:
    done = guarded((*NO_TORCH, "server", "flwr", "ray"), "run", "--set", "federation.rounds=many")
    assert done.returncode == 2 and "federation.rounds" in done.stderr and "was imported" not in done.stderr


def test_commit_verify_and_evidence_need_no_base_model(run: Path, request_id: str) -> None:
    done = guarded(NO_MODEL, "evidence", run, request_id)
    assert done.returncode == 2 and "no removal was committed for it" in done.stderr
    good(NO_MODEL, "commit", run, f"{request_id}/exclude", "--accept-no-guarantee")
    assert good(NO_MODEL, "ledger", "verify", run).startswith("everything holds")
    told = good(NO_TORCH, "evidence", run, request_id)
    assert "Guarantee: none" in told and "FAILED" not in told
    said = json.loads(good(NO_TORCH, "evidence", run, request_id, "--json"))
    assert said["statement"]["predicate"]["request"]["id"] == request_id
    (Path(said["evidence"])).write_bytes(Path(said["evidence"]).read_bytes().replace(b'"sig": "', b'"sig": "AA'))
    damaged = guarded(NO_TORCH, "evidence", run, request_id)
    assert damaged.returncode == 4 and "FAILED" in damaged.stdout


def test_a_run_that_did_not_note_which_rows_fit_still_plans(run: Path, request_id: str) -> None:
    manifest = read_json(run / "manifest.json", "the manifest")
    assert manifest.pop("unfit_rows") == {}
    (run / "manifest.json").write_text(json.dumps(manifest))
    done = subprocess.run(
        [sys.executable, "-m", "oblivion.cli", "forget", run, "--client", "client-2", "--method", "exclude", "--plan"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "guarantee none" in done.stdout
