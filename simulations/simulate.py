"""Run a scenario with `simulate`; its result can forget, and knows its oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from oblivion.config import ForgetConfig, RunConfig, as_spelled, config_from_mapping
from oblivion.errors import ConfigError, InputError, nearest
from oblivion.federation.client_store import ClientStore, personal
from oblivion.federation.hosts import Hosts
from oblivion.federation.opened import OpenRun
from oblivion.learners import models_of
from oblivion.ledger.opening import check_ledger_exists, wait_until_free
from oblivion.ledger.rounds import line
from oblivion.run.directory import RunDirectory
from oblivion.run.events import Observer, Sink
from oblivion.run.records import RunRecord, read_run_record
from oblivion.run.scenarios import free_directory
from oblivion.run_format import CLIENT_STORE
from oblivion.types import Adapter, ForgetRequest
from server.main import BUSY_SECONDS, check_plans, run_commit, run_forget, run_plan, run_refuse, run_scenario
from server.prepare import begin_run, check, check_again, check_data, forgotten_by

T = TypeVar("T")


def on_engine(config: RunConfig, work: Callable[[Hosts], T]) -> T:
    """Run `work` with the hosts of the config's engine."""
    if config.engine == "inline":
        from simulations.engines.inline import run
    else:
        from simulations.engines.ray import run
    return run(config, work)


@dataclass(frozen=True)
class RunResult:
    """A finished run, or one trial of it.

    Attributes
    ----------
    directory : Path
        The run directory.
    model : str
        ``"original"`` (the run's present model: what was learned, or the last committed removal), or
        ``"<request>/<trial>"``, or ``"<request>/oracle"``.
    """

    directory: Path
    model: str = "original"

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return RunDirectory.open(self.directory)[1]

    @property
    def record(self) -> RunRecord:
        """What ``metrics.json`` says, once it is checked.

        Raises
        ------
        InputError
            If the run has not measured anything yet, or the file is not what the run wrote.
        """
        return read_run_record(self.directory)

    @property
    def metrics(self) -> dict[str, Any]:
        """The same as plain values, as they stand in the file."""
        return self.record.to_json()

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per round: branch, round, loss, clients, ..."""
        return [entry.to_json() for entry in self.record.history]

    @property
    def adapter_folder(self) -> Path:
        """The folder of the model's adapter; that of a language model is in PEFT format.

        Raises
        ------
        InputError
            If it was erased because somebody in it was forgotten, or there is no such model.
        """
        record = self.record
        where = record.adapter(self.model)
        id, _, name = self.model.partition("/")
        models = {one.id: one.models for one in record.requests}
        if self.model != "original" and name not in models.get(id, {}):
            known = ["original", *(f"{request}/{model}" for request, some in models.items() for model in some)]
            if any(one.committed for one in record.requests):  # the record of a trial goes with it
                raise InputError(
                    f"{self.model} of {self.directory} was erased when a removal was committed, or never was there; "
                    f"known: {', '.join(known)}"
                )
            raise InputError(f"{self.directory} has no model '{self.model}'; {nearest(self.model, known)}")
        if where is None or not (self.directory / where).is_dir():
            raise InputError(f"{self.model} of {self.directory} was erased when a removal was committed")
        return self.directory / where

    @property
    def adapter(self) -> Adapter:
        """The model's adapter."""
        return models_of(self.config.model).read_adapter(self.adapter_folder)

    def adapter_of(self, client: str) -> Adapter:
        """Return the model's adapter as a client uses it: with the tensors that it keeps for itself, if there are any.

        Raises
        ------
        InputError
            If the model was erased.
        """
        run, config = RunDirectory.open(self.directory)
        shared, store = self.adapter, ClientStore(run.root / CLIENT_STORE)
        opened = OpenRun(check_data(run, config), None, run, Observer(run.log), BUSY_SECONDS)
        try:
            branches = {branch.name: branch for branch in opened.ledger.branches()}
            branch = opened.head if self.model == "original" else self.model
        finally:
            opened.close()
        if branch not in branches:
            return shared
        return personal(shared, store.newest(client, line(branches, branch, branches[branch].rounds)))

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
            The client that is to be forgotten.
        samples : str, default ""
            A file with one sample id a line, or ``"authors:0.5"``; empty for the whole client.
        method : str, default "local"
            A registered removal, or the name of settings in the run's ``forget.methods``.
        parameters : mapping, optional
            Settings of this trial over those, such as ``{"objective": "simnpo"}``.
        """
        run, config = RunDirectory.open(self.directory)
        tree = config.to_json()
        table = tree["forget"]["methods"].get(method, {})
        changes = {as_spelled(table, key): value for key, value in (parameters or {}).items()}
        tree["forget"] = {"client": client, "samples": samples, "methods": {method: {**table, **changes}}}
        names = forget_in_run(run, config_from_mapping(tree, "forget"), sinks)
        return RunResult(self.directory, f"{names['request']}/{names[method]}")

    def commit(self, sinks: Sequence[Sink] = (), accept_no_guarantee: bool = False) -> RunResult:
        """Make this trial the head of its run, and erase what it invalidates; the evidence lies beside its plan.

        Parameters
        ----------
        sinks : sequence of callables
            Called with every event.
        accept_no_guarantee : bool, default False
            Whether a trial may be committed whose guarantee is none, that is, which removes nothing from the model.

        Raises
        ------
        ConfigError
            If this is the run's own model, and so no trial.
        """
        if self.model == "original":
            raise ConfigError(
                "there is no request 'original': it is the run's own model; commit what forget(...) returns"
            )
        run, config = RunDirectory.open(self.directory)
        commit_in_run(run, config, self.model, sinks, accept_no_guarantee)
        return RunResult(self.directory)

    def oracle(self, client: str, samples: str = "") -> RunResult:
        """Return the model that never saw the data; it is trained if it does not exist yet."""
        run, config = RunDirectory.open(self.directory)
        tree = config.to_json()
        tree["forget"].update(client=client, samples=samples, methods={})
        names = forget_in_run(run, config_from_mapping(tree, "forget"))
        return RunResult(self.directory, f"{names['request']}/oracle")


def _check_not_forgotten(run: RunDirectory, client: str) -> None:
    """Refuse early what the ledger would refuse: a request of a client that was forgotten."""
    for absence in forgotten_by(run):
        if absence.client == client and absence.samples is None:
            raise ConfigError(f"'{client}' was forgotten by {run.root}; nothing of it is left")


def forget_in_run(
    run: RunDirectory, config: RunConfig, sinks: Sequence[Sink] = (), signed: ForgetRequest | None = None
) -> dict[str, str]:
    """Answer a request in a run that has learned; see `server.main.run_forget`."""
    check_ledger_exists(run.root)
    _check_not_forgotten(run, config.forget.client)
    config = check_again(run, config)
    observer = Observer(run.log, *sinks)
    # This comes before the engine starts, because a removal that is under way needs the memory.
    wait_until_free(run.root, BUSY_SECONDS, lambda text: observer.event("phase", text=f"waiting: {text}"))
    check_plans(config, run, signed)
    return on_engine(config, lambda hosts: run_forget(config, hosts, run, observer, signed))


def plan_in_run(run: RunDirectory, config: RunConfig, signed: ForgetRequest | None = None) -> dict[str, Any]:
    """Plan the one removal that `config.forget` names, without running anything or loading a model."""
    check_ledger_exists(run.root)
    _check_not_forgotten(run, config.forget.client)
    return run_plan(check_data(run, config), run, Observer(run.log), signed)


def commit_in_run(
    run: RunDirectory, config: RunConfig, trial: str, sinks: Sequence[Sink] = (), accept_no_guarantee: bool = False
) -> dict[str, Any]:
    """Commit a trial; see `server.main.run_commit`."""
    check_ledger_exists(run.root)
    config = config.model_copy(update={"forget": ForgetConfig()})  # what the scenario asked for does not matter here
    return run_commit(check_data(run, config), run, Observer(run.log, *sinks), trial, accept_no_guarantee)


def refuse_in_run(run: RunDirectory, config: RunConfig, request: str, ground: str) -> None:
    """Refuse an open request; see `server.main.run_refuse`.

    Raises
    ------
    ConfigError
        If the ground is empty.
    """
    if not ground.strip():
        raise ConfigError("--ground is empty; say why the request is refused, since the ledger keeps the ground")
    check_ledger_exists(run.root)
    run_refuse(config, run, Observer(run.log), request, ground)


def open_run(directory: str | Path) -> RunResult:
    """Open a run on disk.

    Raises
    ------
    InputError
        If there is no run in the directory, or one of another format.
    """
    return RunResult(RunDirectory.open(Path(directory))[0].root)


def resume(directory: str | Path, sinks: Sequence[Sink] = ()) -> RunResult:
    """Go on with a run that was interrupted, from the last cohort that it stored; it ends with the same bits.

    Raises
    ------
    InputError
        If there is no run in the directory.
    """
    run, config = RunDirectory.open(Path(directory))
    config = check_again(run, config)
    on_engine(config, lambda hosts: run_scenario(config, hosts, run, Observer(run.log, *sinks)))
    return RunResult(run.root)


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
    if not isinstance(config, RunConfig):
        raise ConfigError(f"simulate takes what load_config returns, and not {config!r:.60}")
    root = Path(out) if out is not None else free_directory("run", Path("runs"))
    if root.exists():
        raise ConfigError(f"{root} exists already; choose another --out, or remove it")
    config, data = check(config)

    def work(hosts: Hosts) -> None:  # the base model is loaded while the hosts start
        run, resolved = begin_run(config, data, root)
        run_scenario(resolved, hosts, run, Observer(run.log, *sinks))

    on_engine(config, work)
    return RunResult(root)
