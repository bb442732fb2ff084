"""The Flower ServerApp: ``flwr run .`` runs the same workflow as ``oblivion run``.

Its two config keys are ``scenario`` (a name in the installed distribution, or an absolute path: of a file, or of the
directory of a run that was interrupted) and ``set`` (space-separated ``key=value`` pairs). The run directory is made
under ``runs/`` in the ServerApp's working folder.
"""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from oblivion.config import load_config
from oblivion.run.directory import RunDirectory
from oblivion.run.events import Event, Observer
from oblivion.run.scenarios import free_directory, scenario_path
from server.main import run_scenario
from server.prepare import begin_run, check, check_again
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
        _log.info("%sreport: %s", "finished already; " if event.get("already") else "", event["report"])


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a scenario on the nodes of a Flower federation."""
    named = Path(str(context.run_config["scenario"]))
    if named.is_absolute() and named.is_dir():  # Flower cannot resume a run: a new one takes up what the old one stored
        run, config = RunDirectory.open(named)
        config = check_again(run, config)
    else:
        path = scenario_path(str(named))
        config = load_config(path, shlex.split(str(context.run_config["set"])))
        run, config = begin_run(*check(config), free_directory(path.stem, Path.cwd() / "runs"))
    hosts = GridHosts(grid, config.simulation.deadline)
    run_scenario(config, hosts, run, Observer(run.log, _log_event))
