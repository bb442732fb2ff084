"""The Ray engine: a Flower simulation, driven in this process. What depends on Ray is here and in `ray_closed`.

``flwr.simulation.run_simulation`` is used because it is the only way to reach two things that a federation cannot do
without: the actors' restarts (a killed actor comes back and its message is handled again) and Ctrl-C. Flower marks
it as deprecated; the version is pinned and a test holds what is relied on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from oblivion.config import RunConfig
from oblivion.errors import FederationError
from oblivion.federation.hosts import Hosts
from oblivion.models.loading import gpu_count
from server.ray_folder import ray_folder
from server.ray_watch import Watch
from simulations.engines.ray_closed import Closed, ray_closed

T = TypeVar("T")
_log = logging.getLogger(__name__)
_RESTARTS = 5
_INTERRUPTED = 130
_STANDARD_ERROR = 2
_LONGEST = 500
"""The most characters of a cause in a message."""
_SHOW_CURSOR = "\x1b[?25h"


def _quiet() -> None:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("flwr").setLevel(logging.CRITICAL)


def _keep_signals() -> None:
    """Keep `ray.init` from setting its own handler for SIGTERM, which would end this thread alone."""
    from ray._private import utils

    utils.set_sigterm_handler = lambda handler: None


def _kill_actors() -> None:
    """Have Flower kill its actors at the end: it asks them to leave, which Ray reports as failures."""
    import ray
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool

    def terminate(pool: BasicActorPool) -> None:
        for actor in pool.pool:
            ray.kill(actor)

    BasicActorPool.terminate_all_actors = terminate  # type: ignore[method-assign,assignment]


def _hush_raylet() -> None:
    """Keep Ray's notes about actors that are restarted or end from standard output, which belongs to results.

    They come on the error channel, which ``log_to_driver`` does not switch off; a log at debug level has them.
    """
    from ray._private import worker

    def note(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        _log.debug("%s", " ".join(data["lines"]))

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = note


def run(config: RunConfig, work: Callable[[Hosts], T]) -> T:
    """Run `work` as the ServerApp of a Flower simulation with `simulation.hosts` nodes, one actor each.

    Raises
    ------
    FederationError
        If the simulation ends without a result.
    """
    _quiet()
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from clients.app import app as client_app
    from strategies.grid_hosts import GridHosts

    _hush_raylet()
    _keep_signals()
    _kill_actors()
    _quiet()  # importing Flower sets its logger up again
    hosts = config.simulation.host_count
    stop = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            asked = GridHosts(grid, 2 * config.simulation.deadline, hosts, stop)
            asked.start(config.to_json())  # hosts load their models while the server loads its own
            results.append(work(asked))
        except BaseException as error:
            errors.append(error)

    with ray_closed() as closed, _session(closed, stop) as init_args:
        backend: dict[str, dict[str, Any]] = {
            "init_args": {**init_args, "log_to_driver": False, "logging_level": "error"},
            "client_resources": {
                "num_cpus": 1,
                "num_gpus": gpu_share(hosts, gpu_count()),
                "max_restarts": _RESTARTS,
                "max_task_retries": _RESTARTS,
            },
        }
        if closed.own:
            backend["init_args"]["num_cpus"] = hosts
        try:
            run_simulation(server_app, client_app, num_supernodes=hosts, backend_config=backend)
        except Exception as error:
            stop.set()  # ends the server's wait for hosts that will not come
            raise FederationError(
                f"the Flower simulation failed: {cause_of(error)}; `oblivion doctor` may say more, and --engine "
                "inline runs without Ray"
            ) from error
    if errors:
        raise errors[0]
    if not results:
        raise FederationError("the Flower simulation ended without a result; --engine inline runs without it")
    return results[0]


@contextlib.contextmanager
def _session(closed: Closed, stop: threading.Event) -> Iterator[dict[str, Any]]:
    """Open Ray's own session, or join a cluster's, and end it without a trace; yields the arguments of `ray.init`."""
    with contextlib.ExitStack() as stack:
        init_args: dict[str, Any] = {"address": closed.address}
        watch: Watch | None = None
        if closed.own:
            folder, watch = stack.enter_context(ray_folder())
            init_args["_temp_dir"] = str(folder)
        stack.enter_context(_Interrupt(stop, watch))
        yield init_args


def cause_of(error: BaseException) -> str:
    """Return an error's first cause on one line, because Flower's own errors only say that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_LONGEST]}" if text else type(error).__name__


def gpu_share(hosts: int, gpus: int) -> float:
    """Return the part of a GPU that every host gets, so that all of them have a place.

    Ray puts no host on two GPUs, and counts in ten-thousandths, to which the share is rounded down.
    """
    return 10_000 // math.ceil(hosts / gpus) / 10_000 if gpus else 0.0


class _Interrupt:
    """Ctrl-C, SIGTERM and SIGHUP end the process and everything it started, with exit code 130."""

    def __init__(self, stop: threading.Event, watch: Watch | None) -> None:
        self._stop = stop
        self._watch = watch
        self._before: dict[int, Any] = {}
        self._start: Any = None

    def __enter__(self) -> None:
        from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

        start = self._start = RayBackend.init_ray

        def start_and_listen(backend: RayBackend, config: Any) -> None:
            start(backend, config)
            self._listen()  # Ray's core has put a handler of its own first, which prints its stack

        RayBackend.init_ray = start_and_listen  # type: ignore[method-assign,assignment]
        self._listen()

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup has it ignored
                    before = signal.signal(number, self._interrupted)
                    self._before.setdefault(number, before)

    def __exit__(self, *exception: object) -> None:
        from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

        RayBackend.init_ray = self._start  # type: ignore[method-assign]
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        for other in self._before:
            signal.signal(other, signal.SIG_IGN)
        self._stop.set()
        # Threads inside ray.get never return, so the process cannot end in the ordinary way.
        watching = self._watch.pid if self._watch else 0
        children = [child for child in _descendants(os.getpid()) if child != watching]
        with contextlib.suppress(OSError):  # the terminal may be gone
            sys.stderr.write(f"{_SHOW_CURSOR if sys.stderr.isatty() else ''}interrupted\n")
            sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STANDARD_ERROR)  # Ray would report there what is killed now
        for child in children:
            _kill(child)
        if self._watch is not None:
            self._watch.finish()
        os._exit(_INTERRUPTED)


def _descendants(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
