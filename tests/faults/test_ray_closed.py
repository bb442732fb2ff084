"""Nobody without the run's token is served by its Ray, and nothing of it outlives the run."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from oblivion.errors import ConfigError, FederationError
from server import doctor
from server.ray_folder import ray_folder
from simulations.engines import ray_closed as closing

TOKEN = re.compile(r"[0-9a-f]{64}")
SIMULATION = """
import sys
from oblivion.config import load_config
from oblivion.types import DescribeRequest
from simulations.engines import ray as ray_engine

def work(hosts):
    list(hosts.ask([DescribeRequest(host=name, config={}) for name in hosts.names()]))
    print("up", flush=True)  # the actors have answered
    sys.stdin.readline()

for _ in range(2):
    ray_engine.run(load_config(None, {"simulation.hosts": 1}), work)
"""
ATTACK = """
import sys
from pathlib import Path
import ray

@ray.remote
def attack(path):
    Path(path).write_text("was here")

ray.init(address=sys.argv[1])
ray.get(attack.remote(sys.argv[2]))
"""
FOLDER = """
import sys
from server.ray_folder import ray_folder
with ray_folder() as (folder, watch):
    folder.mkdir()
    print(folder, watch.pid, flush=True)
    sys.stdin.readline()
"""
HARMLESS = re.compile(r"/grpc\.(health|channelz|reflection)\.")
"""gRPC's own questions: is the server there, what methods and how many connections does it have."""


def environment(**more: str) -> dict[str, str]:
    """Of a process that knows nothing of any Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "RAY_USAGE_STATS_ENABLED": "0", **more}


def start(code: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment(**more),
    )  # fmt: skip


def wait_gone(path: Path) -> bool:
    end = time.monotonic() + 30
    while path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return not path.exists()


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)


def test_every_run_has_a_new_token_and_leaves_the_environment_as_it_was(
    no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray  # sets variables of its own

    assert not ray.is_initialized()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    before = dict(os.environ)
    seen = set()
    for _ in range(2):
        with closing.ray_closed() as closed:
            assert closed.own and os.environ["RAY_AUTH_MODE"] == "token"
            seen.add(os.environ["RAY_AUTH_TOKEN"])
        assert dict(os.environ) == before
    assert len(seen) == 2 and all(TOKEN.fullmatch(token) for token in seen), "the user's token is for clusters"


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:1", "somewhere", "127.0.0.1"])
def test_what_is_no_address_of_a_cluster_is_refused(
    no_ray: None, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(ConfigError, match=r"accepted: host:port of its head node"):
        closing.how_closed()


def test_a_cluster_without_token_is_not_joined(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(ConfigError, match="set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"):
        closing.how_closed()
    assert "without a token" in doctor.examine()["ray closed"]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert not closing.how_closed().own and "with its token" in doctor.examine()["ray closed"]


def test_a_cluster_that_serves_everybody_or_nobody_is_not_joined() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def serve(request: bytes, context: grpc.ServicerContext) -> bytes:
        return b""

    handler = grpc.unary_unary_rpc_method_handler(serve)
    service, _, method = closing._CHECK_ALIVE[1:].partition("/")
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(FederationError, match="serves calls without a token; start every node of it"):
        closing._check_refuses(f"127.0.0.1:{port}")
    server.stop(0).wait()
    with pytest.raises(FederationError, match="does not answer: UNAVAILABLE"):
        closing._check_refuses(f"127.0.0.1:{port}")


def test_after_sigkill_nothing_runs_and_the_folder_is_gone(tmp_path: Path) -> None:
    run = start(FOLDER)
    assert run.stdout is not None
    folder = Path(run.stdout.readline().split()[0])
    assert folder.parent.stat().st_mode & 0o077 == 0
    with (folder / "worker.out").open("w") as log, (folder / "worker.out").open() as reading:
        worker = subprocess.Popen(["sleep", "600"], stdout=log)
        daemon = subprocess.Popen(["sh", "-c", "sleep 600; :", f"--session-dir={folder}/session"])
        reader = subprocess.Popen(["sleep", "600"], stdin=reading)
    try:
        with ray_folder():
            assert folder.is_dir(), "another run leaves it alone"
        run.kill()
        assert run.wait(30) == worker.wait(30) == daemon.wait(30) == -signal.SIGKILL
        assert wait_gone(folder.parent)
        assert reader.poll() is None, "who only reads a log is none of Ray's"
    finally:
        for process in (worker, daemon, reader):
            process.kill()
            process.wait()


def wait_until_free(folder: Path) -> None:
    """A process that was killed lets go of what it holds a little later."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)


def test_when_the_watch_is_killed_too_the_next_run_removes_the_folder() -> None:
    run = start(FOLDER)
    assert run.stdout is not None
    name, watch = run.stdout.readline().split()
    os.kill(int(watch), signal.SIGKILL)
    run.kill()
    run.wait()
    assert Path(name).is_dir()
    wait_until_free(Path(name).parent)
    with ray_folder() as (folder, _):
        assert folder.parent.parent == Path(name).parent.parent
    assert not Path(name).parent.exists()


def test_the_users_own_folders_of_such_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.ray_folder._short_folder", lambda: own)
    own, empty, full, open_ = (
        tmp_path / f"oblivion-{word}" for word in ("ownfoldr", "emptyone", "fullofit", "readable")
    )
    for folder in (own, empty, full, open_):
        folder.mkdir(mode=0o700)
    (full / "ray").mkdir()
    (full / "thesis").write_text("x")
    (open_ / "ray").mkdir()
    open_.chmod(0o755)
    with ray_folder():
        pass
    assert not own.exists() and empty.exists() and (full / "thesis").exists() and open_.exists()


def methods() -> list[str]:
    """Every method that the binaries of Ray name."""
    import ray

    core = Path(ray.__file__).parent
    places = (core / "core/src/ray/gcs/gcs_server", core / "core/src/ray/raylet/raylet", core / "_raylet.so")
    name = re.compile(rb"/(?:ray\.rpc|grpc|opentelemetry)\.[A-Za-z0-9.]+/[A-Za-z]+")
    found = {match.decode() for place in places for match in name.findall(place.read_bytes())}
    assert len(found) > 100
    return sorted(found)


def answer(channel: grpc.Channel, method: str) -> str:
    call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
    metadata = [("node_id", "00" * 28)] if method.endswith("StartSync") else []
    try:
        call(b"", timeout=5, metadata=metadata)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "SERVED"


def listeners(run: int) -> Iterator[tuple[str, Any]]:
    for process in [psutil.Process(run), *psutil.Process(run).children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    yield process.name(), connection.laddr


def outward() -> str:
    """The address under which others reach this machine; the loopback where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def token_of(run: int) -> str:
    (server,) = [child for child in psutil.Process(run).children() if "gcs_server" in child.name()]
    return server.environ()["RAY_AUTH_TOKEN"]


def command_line(process: psutil.Process) -> str:
    """Return what the process list shows of a process; one that has ended meanwhile shows nothing."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def strings_of(run: int) -> str:
    """All that `ps` shows, and all that lies in the session folder."""
    shown = [command_line(process) for process in psutil.process_iter()]
    own = [command_line(process) for process in psutil.Process(run).children(recursive=True)]  # not another run's
    (folder,) = {
        match for line in own for match in re.findall(r"=(/\S*/oblivion-\w{8})/ray", line) if Path(match).is_dir()
    }
    assert Path(folder).stat().st_mode & 0o077 == 0
    files = [path.read_text(errors="replace") for path in Path(folder).rglob("*") if path.is_file()]
    return "\n".join([*shown, *files])


@pytest.mark.slow
def test_no_listener_of_a_run_serves_a_call_without_its_token(tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("oblivion-*"))
    run = start(SIMULATION, TMPDIR="/tmp", OMP_NUM_THREADS="1")
    assert run.stdin is not None and run.stdout is not None and run.stderr is not None
    tokens = []
    try:
        for _ in range(2):  # the second simulation of a process, too
            assert run.stdout.readline() == "up\n", run.stderr.read()
            found = list(listeners(run.pid))
            assert {"gcs_server", "raylet"} <= {name for name, _ in found} and len(found) >= 6
            served = {address.port: attack_listener(name, address, tmp_path) for name, address in found}
            assert not {port: methods for port, methods in served.items() if methods}
            tokens.append(token_of(run.pid))
            assert TOKEN.fullmatch(tokens[-1]) and tokens[-1] not in strings_of(run.pid)
            children = psutil.Process(run.pid).children(recursive=True)
            run.stdin.write("\n")
            run.stdin.flush()
        _, errors = run.communicate(timeout=60)
        assert run.returncode == 0 and not errors, errors
        assert not [child for child in children if child.is_running()], "they end before the run does"
    finally:
        run.kill()
        run.wait()
    assert tokens[0] != tokens[1]
    assert set(Path("/tmp").glob("oblivion-*")) <= before


def attack_listener(name: str, address: Any, tmp_path: Path) -> list[str]:
    """Try everything that works without the token; the methods that were served."""
    assert address.ip.removeprefix("::ffff:") in ("127.0.0.1", "::1"), f"{name} is reached from outside"
    if outward() != "127.0.0.1":
        with socket.socket() as probe:
            assert probe.connect_ex((outward(), address.port)) != 0
    if "Agent" in name:  # HTTP
        for verb, path in (("GET", "/"), ("POST", "/get_or_create_runtime_env"), ("POST", "/get_runtime_envs_info")):
            web = http.client.HTTPConnection("127.0.0.1", address.port, timeout=10)
            web.request(verb, path, headers={"Authorization": f"Bearer {'0' * 64}"} if verb == "GET" else {})
            assert web.getresponse().status in (401, 403), (name, path)
        return []
    with grpc.insecure_channel(f"127.0.0.1:{address.port}") as channel:
        wrong = [method for method in methods() if not HARMLESS.match(method)]
        said = {method: answer(channel, method) for method in wrong}
    assert set(said.values()) <= {"UNAUTHENTICATED", "UNIMPLEMENTED", "SERVED"}, said
    assert "UNAUTHENTICATED" in said.values()
    if name == "gcs_server":
        mark = tmp_path / "mark"
        reaching = environment(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")  # else Ray tries the outward address only
        attacker = subprocess.run(
            [sys.executable, "-c", ATTACK, f"127.0.0.1:{address.port}", str(mark)],
            cwd=tmp_path, env=reaching, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert attacker.returncode != 0 and not mark.exists(), attacker.stderr
    return [method for method, code in said.items() if code == "SERVED"]
