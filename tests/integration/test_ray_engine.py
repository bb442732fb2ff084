"""The Ray engine: the bits of inline, also when an actor or everything is killed; Ctrl-C leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

COMMAND = [sys.executable, "-m", "oblivion.cli", "run"]
METHODS = ("--set", "forget.methods=rollback,exclude,local")


def start(*arguments: object) -> subprocess.Popen[str]:
    """``oblivion run`` as a process group of its own."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def wait_for_round(out: Path, number: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        log = out / "events.jsonl"
        events = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        if any(e["event"] == "round_committed" and e["round"] >= number for e in events):
            return
        time.sleep(0.05)
    raise AssertionError(f"round {number} was not reached")


def digests(out: Path) -> dict[str, str]:
    """Path to digest of every adapter, the random id of the request replaced."""
    (request,) = [entry["id"] for entry in json.loads((out / "metrics.json").read_text())["requests"]]
    files = sorted(out.rglob("adapter_model.safetensors"))
    return {
        str(path.relative_to(out)).replace(request, "<request>"): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill a process and everything that it started, at once."""
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in started:  # Ray's daemons lead groups of their own
        if child.is_running():
            child.kill()
    process.communicate(timeout=30)
    psutil.wait_procs(started, timeout=30)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def inline(micro_scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("inline") / "run"
    finish(start(micro_scenario, "--out", out, *METHODS))
    found = digests(out)
    trials = {f"forgets/<request>/{name}/adapters/adapter_model.safetensors" for name in ("exclude", "local")}
    rollback, oracle = (
        f"{where}/adapter_model.safetensors"
        for where in ("forgets/<request>/rollback/adapters", "adapters/oracle-<request>")
    )
    assert found.keys() == {*trials, rollback, oracle, "adapters/original/adapter_model.safetensors"}
    assert found[rollback] == found[oracle]
    return found


def test_ray_gives_the_bits_of_inline_also_when_an_actor_is_killed(
    inline: dict[str, str], micro_scenario: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(micro_scenario, "--out", out, "--engine", "ray", *METHODS)
    wait_for_round(out, 1, process)
    actors = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "ClientAppActor" in child.name()
    ] or [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any("ClientAppActor" in part for part in child.cmdline())
    ]
    assert actors, "no actor is running"
    actors[0].kill()
    finish(process)
    assert digests(out) == inline


def test_a_run_that_was_killed_is_resumed_with_the_bits_of_inline(
    inline: dict[str, str], micro_scenario: Path, tmp_path: Path
) -> None:
    """SIGKILL for everything at once, in the middle of learning."""
    out = tmp_path / "run"
    process = start(micro_scenario, "--out", out, "--engine", "ray", *METHODS)
    wait_for_round(out, 1, process)
    end_group(process)
    finish(start("--resume", "--out", out))
    assert digests(out) == inline


def test_ctrl_c_ends_with_130_and_leaves_no_process(micro_scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(micro_scenario, "--out", out, "--engine", "ray", "--set", "federation.rounds=200")
    wait_for_round(out, 1, process)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not [child for child in alive if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
