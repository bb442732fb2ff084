"""The Flower ServerApp: ``flwr run .`` runs the same workflow as ``oblivion run``.

Its two config keys are ``scenario`` (a name in the installed distribution, or an absolute path) and ``set``
(space-separated ``key=value`` pairs). The run directory is made under ``runs/`` in the ServerApp's working folder.
"""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from oblivion.config import load_config
from server.events import Event, Observer
from server.main import run_scenario
from server.manifest import make_manifest
from server.prepare import prepare
from server.run_directory import RunDirectory
from server.scenarios import free_directory, scenario_path
from strategies.grid_hosts import GridHosts

app = ServerApp()
_log = logging.getLogger("flwr")
_log.propagate = False  # a library that sets up the root logger would show every line twice


def _log_event(event: Event) -> None:
    if event["event"] in ("phase", "warning"):
        _log.info("%s", event["text"])
    elif event["event"] == "round_committed":
        _log.info("%s round %s/%s loss %.3f", event["branch"], event["round"], event["rounds"], event["loss"])
    elif event["event"] == "finished":
        _log.info("report: %s", event["report"])


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a scenario on the nodes of a Flower federation."""
    path = scenario_path(str(context.run_config["scenario"]))
    config, data = prepare(load_config(path, shlex.split(str(context.run_config["set"]))))
    root = free_directory(path.stem, Path.cwd() / "runs")
    run = RunDirectory.create(root, config, make_manifest(config, data))
    hosts = GridHosts(grid, config.simulation.deadline)
    run_scenario(config, hosts, run, Observer(run.log, _log_event))
