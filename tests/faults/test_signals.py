"""SIGTERM and SIGHUP end a command like Ctrl-C, with code 130; of two runs in one directory one is told so."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from oblivion import cli
from oblivion.config import RunConfig
from oblivion.errors import ConfigError
from oblivion.files import write_folder
from oblivion.run.directory import RunDirectory

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SETTINGS = """
model.name = "{model}"
engine = "inline"
lora.rank = 2
federation.clients = 3
federation.rounds = 3
train.local-epochs = 1
train.batch-size = 4
data.parameters.rows_per_client = 4
data.parameters.holdout_authors = 1
evaluate.limit = 2
evaluate.max-new-tokens = 2
evaluate.oracle-seeds = 0
simulation.hosts = 1
"""
WAITING = """
import signal, sys, time
import typer
from oblivion import cli

@cli.app.command("wait")
def wait() -> None:
    try:
        print("ready", flush=True)
        time.sleep(600)
    finally:
        print("cleaned up", flush=True)

sys.argv = ["oblivion", "wait"]
cli.main()
"""


@contextlib.contextmanager
def started(*command: str, ignore: signal.Signals | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process of the command line, killed at the end if it lives."""
    heard = dict.fromkeys((signal.SIGHUP, signal.SIGTERM), signal.SIG_DFL)  # whatever the tests were started with
    before = {n: signal.signal(n, signal.SIG_IGN if n is ignore else how) for n, how in heard.items()}
    try:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}, start_new_session=True,
        )  # fmt: skip
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_cleans_up_and_ends_with_130(number: signal.Signals) -> None:
    with started("-c", WAITING) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "cleaned up\n", "interrupted\n")


def test_what_nohup_ignores_stays_ignored() -> None:
    with started("-c", WAITING, ignore=signal.SIGHUP) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "cleaned up\n", "interrupted\n")


def test_the_handlers_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    monkeypatch.setattr(sys, "argv", ["oblivion", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_the_loser_of_two_runs_is_told_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both saw that the directory did not exist; the other one came first."""
    root = tmp_path / "run"
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path != root and real(path))
    RunDirectory.create(root, RunConfig(), {"winner": True})
    before = {path: path.read_bytes() for path in root.iterdir()}
    with pytest.raises(ConfigError, match=r"run exists already: another process has just made it; choose another"):
        RunDirectory.create(root, RunConfig(), {"winner": False})
    assert {path: path.read_bytes() for path in root.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "and nothing half-written"


def test_many_at_once_make_one_folder(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def make(number: int) -> bool:
        try:
            write_folder(tmp_path / "run", {"a": b"%d" % number, "b": b"%d" % number})
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(make, range(32))) == 1
    written = {path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert len(written) == 1 and [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.fixture(scope="module")
def scenario(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenario") / "small.toml"
    path.write_text(SETTINGS.format(model=micro_model))
    return path


@pytest.fixture(scope="module")
def undisturbed(scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish("run", str(scenario), "--out", str(out))
    return bits(out)


def finish(*arguments: str) -> None:
    with started("-m", "oblivion.cli", *arguments) as process:
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def bits(out: Path) -> str:
    return hashlib.sha256((out / "adapters/original/adapter_model.safetensors").read_bytes()).hexdigest()


def round_committed(out: Path) -> bool:
    log = out / "events.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    return any(json.loads(line)["event"] == "round_committed" for line in lines)


def interrupt(process: subprocess.Popen[str], number: signal.Signals, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 240
    while not ready() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.endswith("interrupted\n"), errors
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "number"),
    [(engine, number) for engine in ("inline", "ray") for number in (signal.SIGTERM, signal.SIGHUP)],
)
def test_a_run_that_was_ended_goes_on_with_the_same_bits(
    engine: str, number: signal.Signals, scenario: Path, undisturbed: str, tmp_path: Path
) -> None:
    before = set(Path("/tmp").glob("oblivion-*"))
    out = tmp_path / "run"
    with started("-m", "oblivion.cli", "run", str(scenario), "--engine", engine, "--out", str(out)) as process:
        interrupt(process, number, lambda: round_committed(out))
    assert set(Path("/tmp").glob("oblivion-*")) <= before
    finish("run", "--resume", "--out", str(out))
    assert bits(out) == undisturbed
    for arguments in (
        ("forget", str(out), "--client", "client-1", "--method", "exclude"),
        ("evaluate", str(out), "--suite", "scenario"),
    ):
        with started("-m", "oblivion.cli", *arguments) as process:
            interrupt(process, number, lambda: "torch" in loaded(process.pid))
    assert bits(out) == undisturbed


def loaded(pid: int) -> str:
    """The libraries that a process has loaded: a sign that its command is under way."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/maps").read_text()
    return ""
