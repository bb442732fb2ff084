"""`simulate` runs a scenario; its result can forget, and knows its oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from oblivion.config import RunConfig, config_from_mapping
from oblivion.errors import ConfigError, IntegrityError
from oblivion.models.loading import model_digest
from oblivion.models.resident import read_adapter_folder
from oblivion.types import Adapter
from server.events import Observer, Sink
from server.main import run_forget, run_plan, run_scenario
from server.manifest import make_manifest
from server.planning import make_request
from server.prepare import check_names, prepare
from server.rounds import Hosts
from server.run_directory import RunDirectory
from server.scenarios import free_directory

T = TypeVar("T")


def on_engine(config: RunConfig, work: Callable[[Hosts], T]) -> T:
    """Run `work` with the hosts of the config's engine."""
    if config.engine == "inline":
        from simulations.inline import run
    else:
        from simulations.ray_engine import run
    return run(config, work)


@dataclass(frozen=True)
class RunResult:
    """A finished run, or one trial of it.

    Attributes
    ----------
    directory : Path
        The run directory.
    model : str
        ``"original"``, or ``"<request>/<trial>"``, or ``"<request>/oracle"``.
    """

    directory: Path
    model: str = "original"

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return RunDirectory.open(self.directory)[1]

    @property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` says."""
        metrics: dict[str, Any] = RunDirectory(self.directory).read_json("metrics.json", {})
        return metrics

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per round: branch, round, loss, clients, ..."""
        history: list[dict[str, Any]] = self.metrics["history"]
        return history

    @property
    def adapter_folder(self) -> Path:
        """The model's adapter in PEFT format."""
        if self.model == "original":
            return self.directory / "adapters" / "original"
        request, name = self.model.split("/")
        entry = next(e for e in self.metrics["requests"] if e["id"] == request)
        return self.directory / str(entry["models"][name]["adapter"])

    @property
    def adapter(self) -> Adapter:
        """The model's adapter."""
        return read_adapter_folder(self.adapter_folder)[0]

    def forget(
        self,
        client: str,
        samples: str = "",
        method: str = "local",
        parameters: Mapping[str, Any] | None = None,
        sinks: Sequence[Sink] = (),
    ) -> RunResult:
        """Try a removal; it changes nothing else in the run.

        Parameters
        ----------
        client : str
            Who is to be forgotten.
        samples : str, default ""
            A file with one sample id a line, or ``"authors:0.5"``; empty for the whole client.
        method : str, default "local"
            A registered removal.
        parameters : mapping, optional
            ``forget`` settings of this trial, such as ``{"objective": "simnpo"}``.
        """
        run, config = RunDirectory.open(self.directory)
        tree = config.to_json()
        changes = {key.replace("_", "-"): value for key, value in (parameters or {}).items()}
        tree["forget"] = {**tree["forget"], **changes, "client": client, "samples": samples, "methods": [method]}
        names = forget_in_run(run, config_from_mapping(tree, "forget"), sinks)
        return RunResult(self.directory, f"{names['request']}/{names[method]}")

    def oracle(self, client: str, samples: str = "") -> RunResult:
        """The model that never saw the data, trained when it does not exist yet."""
        run, config = RunDirectory.open(self.directory)
        prepared, data = prepare(config)
        request = make_request(data, client, samples)
        entries = {entry["id"]: entry for entry in self.metrics["requests"]}
        if request.id not in entries or "oracle" not in entries[request.id]["models"]:
            forget = prepared.forget.model_copy(update={"client": client, "samples": samples, "methods": ()})
            forget_in_run(run, prepared.model_copy(update={"forget": forget}))
        return RunResult(self.directory, f"{request.id}/oracle")


def _prepare_again(run: RunDirectory, config: RunConfig) -> RunConfig:
    """Prepare a config for a finished run, whose data and base model must still be what it learned from."""
    config, data = prepare(config)
    manifest = run.read_json("manifest.json", {})
    now = {"data_digest": data.digest, "model_digest": model_digest(config.model)}
    for key, what in (("data_digest", "the data"), ("model_digest", f"the base model {config.model.name}")):
        if manifest.get(key, now[key]) != now[key]:
            raise IntegrityError(
                f"{what} changed since {run.root} was made, so nothing compares with it; restore it, or run again"
            )
    return config


def forget_in_run(run: RunDirectory, config: RunConfig, sinks: Sequence[Sink] = ()) -> dict[str, str]:
    """Answer a request in a finished run; see `server.main.run_forget`."""
    config = _prepare_again(run, config)
    observer = Observer(run.log, *sinks)
    return on_engine(config, lambda hosts: run_forget(config, hosts, run, observer))


def plan_in_run(run: RunDirectory, config: RunConfig) -> dict[str, Any]:
    """Plan the one removal that `config.forget` names, without running anything."""
    config = _prepare_again(run, config)
    from simulations.inline import run as inline

    return inline(config, lambda hosts: run_plan(config, hosts, run, Observer()))


def simulate(config: RunConfig, out: str | Path | None = None, sinks: Sequence[Sink] = ()) -> RunResult:
    """Run a scenario from beginning to end.

    Parameters
    ----------
    config : RunConfig
        From `oblivion.load_config`.
    out : str or Path, optional
        The run directory, which must not exist; by default the first free ``runs/run``, ``runs/run-2``, ...
    sinks : sequence of callables
        Called with every event.

    Raises
    ------
    OblivionError
        Whatever is wrong with the config, data or model is found before anything is written.
    """
    check_names(config)
    root = Path(out) if out is not None else free_directory("run", Path("runs"))
    if root.exists():
        raise ConfigError(f"{root} exists already; choose another --out, or remove it")
    config, data = prepare(config)
    run = RunDirectory.create(root, config, make_manifest(config, data))
    observer = Observer(run.log, *sinks)
    on_engine(config, lambda hosts: run_scenario(config, hosts, run, observer))
    return RunResult(root)
