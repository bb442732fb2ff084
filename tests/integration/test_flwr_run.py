"""``flwr run .`` from a clean folder: the bundle with the installed distribution; Flower installs nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from oblivion.config import load_config
from simulations import simulate

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ("pyproject.toml", "LICENSE", "README.md", "server", "clients", "strategies")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def flower(tmp_path: Path) -> dict[str, str]:
    """An environment in which Flower starts a SuperLink of its own, on private ports."""
    return {
        **os.environ,
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def end_superlink(home: str) -> None:
    """End the SuperLink that this test started, found by its own FLWR_HOME."""
    mine = []
    for process in psutil.process_iter(["cmdline"]):
        if any(home in part for part in process.info["cmdline"] or []):
            mine += [*process.children(recursive=True), process]
    for process in mine:
        if process.is_running():
            process.terminate()
    psutil.wait_procs(mine, timeout=10)


def flwr_run(flower: dict[str, str], folder: Path, settings: str) -> str:
    """``flwr run`` of a bundle in an empty folder; returns what it said."""
    app, work = folder / "app", folder / "work"
    app.mkdir()
    work.mkdir()
    for name in BUNDLE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, app / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, app / name)
    try:
        done = subprocess.run(
            ["flwr", "run", str(app), "local", "--stream", "-c", settings],
            cwd=work,
            env=flower,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    finally:
        end_superlink(flower["FLWR_HOME"])
    return done.stdout + done.stderr


def test_flwr_run_gives_a_report_and_the_bits_of_inline(
    flower: dict[str, str], micro_scenario: Path, tmp_path: Path
) -> None:
    said = flwr_run(flower, tmp_path, f'scenario="{micro_scenario}" set="federation.rounds=2 forget.methods=exclude"')
    work = tmp_path / "work"
    report = work / "runs" / "micro" / "report.html"
    assert report.is_file(), said
    assert "client-2" in report.read_text()
    changes = {"federation.rounds": 2, "forget.methods": ["exclude"]}
    inline = simulate(load_config(micro_scenario, changes), tmp_path / "inline")
    assert digest(report.parent / "adapters" / "original") == digest(inline.adapter_folder)
    (trial,), (expected,) = (
        list(root.glob("forgets/*/exclude/adapters"))  # below the request's id, which is random
        for root in (report.parent, inline.directory)
    )
    assert digest(trial) == digest(expected)


@pytest.mark.slow
def test_a_new_flower_run_takes_up_what_an_interrupted_run_stored(
    flower: dict[str, str], micro_scenario: Path, tmp_path: Path
) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "round_committed" and (event["branch"], event["round"]) == ("main", 2):
            raise KeyboardInterrupt

    config = load_config(micro_scenario, {"forget.methods": ["rollback"]})
    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "run", sinks=[interrupt])
    said = flwr_run(flower, tmp_path, f'scenario="{tmp_path / "run"}"')
    assert (tmp_path / "run" / "report.html").is_file(), said
    whole = simulate(config, tmp_path / "whole")
    for pattern in ("adapters/original", "forgets/*/rollback/adapters"):
        (one,), (other,) = (list(root.glob(pattern)) for root in (tmp_path / "run", whole.directory))
        assert digest(one) == digest(other)


def test_the_bundle_holds_code_and_licence_only(flower: dict[str, str], tmp_path: Path) -> None:
    import zipfile

    app = tmp_path / "app"
    shutil.copytree(ROOT, app, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache"))
    (app / "data.jsonl").write_text('{"question": "secret", "answer": "secret"}\n')
    subprocess.run(["flwr", "build", "--app", str(app)], cwd=tmp_path, env=flower, check=True, capture_output=True)
    (bundle,) = tmp_path.glob("*.fab")
    names = zipfile.ZipFile(bundle).namelist()
    allowed = ("clients/", "server/", "strategies/")
    others = [name for name in names if not (name.startswith(allowed) and name.endswith(".py"))]
    assert {Path(name).name for name in others} <= {"LICENSE", "pyproject.toml", "CONTENT", "README.md"}, others
