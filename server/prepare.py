"""Check, load and resolve everything before a run writes anything."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from oblivion.aggregation import rule_of, scheme_of
from oblivion.aggregation.compatibility import check_factors, check_number, check_scheme, check_training
from oblivion.config import ForgetConfig, RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.datasets import datasets, path_parameters
from oblivion.data.federation import client_digests, data_digest, for_source, resolve
from oblivion.data.keyed_ids import key_files, keyed_data, new_keys, row_ids, run_data
from oblivion.data.requests import AUTHORS
from oblivion.data.templates import templates
from oblivion.errors import ConfigError, InputError, IntegrityError, nearest
from oblivion.federation.planning import check_oracle, make_context, make_plan, make_request, oracle_seeds, present
from oblivion.federation.resolving import with_dtype
from oblivion.federation.spending import check_removals
from oblivion.federation.too_long import check_fits, unfit_rows
from oblivion.learners import learner_of, models_of
from oblivion.learning import learning_phases
from oblivion.ledger.register import EXCLUSIONS, absences
from oblivion.ledger.rounds import Absence
from oblivion.ledger.schema import refuse_network
from oblivion.metrics.engine.suite import RunRows
from oblivion.metrics.suites import suite_of
from oblivion.models.loading import gpu_count
from oblivion.objectives.terms import objective_from
from oblivion.parameters import build
from oblivion.parts import parts_of
from oblivion.privacy.budget_checks import check_learning
from oblivion.privacy.settings import check_privacy
from oblivion.provenance import Package
from oblivion.removal.settings import check_methods, removal_from
from oblivion.run.directory import RunDirectory
from oblivion.run.manifest import make_manifest
from oblivion.run.records import read_manifest
from oblivion.training.fused import fusible
from oblivion.training.outputs import check_needs
from oblivion.training.slots import slots_for
from server.estimate import check_disk


def check_names(config: RunConfig) -> None:
    """Check every name and every parameter of a rule, a removal or an objective, without loading data or a model.

    Raises
    ------
    ConfigError
        Naming the key, the value and what is known.
    """
    check_methods(config.forget.methods)
    for key, name, registry in parts_of(config):
        if name not in registry.names():
            raise ConfigError(f"{key} = '{name}': unknown {registry.kind}; {nearest(name, registry.names())}")
        registry.check(name)
    build(templates, config.data.template, {}, "data.template")
    models_of(config.model)
    learning_phases(config, replay=False)
    check_training(rule_of(config), config)
    check_scheme(rule_of(config), scheme_of(config), config)
    check_privacy(config)


def absolute_paths(config: RunConfig) -> RunConfig:
    """Make paths independent of the folder a process runs in: hosts and later commands are other processes.

    A path is relative to the present folder; one among the parameters of a data set (see `path_parameters`) may also
    be relative to ``data.path``. What names nothing on the disk (a hub id) stays as it is.
    """
    data = config.data
    folder = _absolute(data.path)
    parameters = {
        name: _absolute(value, folder) if name in path_parameters(datasets.get(data.name)) else value
        for name, value in data.parameters.items()
    }
    public = data.public if data.public == "dataset" else _absolute(data.public)
    data = data.model_copy(update={"path": folder, "public": public, "parameters": parameters})
    model, model_folder = config.model, _absolute(config.model.name)
    if model.name != "tiny" and Path(model_folder).is_dir():
        model = model.model_copy(update={"name": model_folder})
    samples = config.forget.samples
    samples = samples if samples.startswith(AUTHORS) else _absolute(samples)
    forget = config.forget.model_copy(update={"samples": samples})
    return config.model_copy(update={"data": data, "model": model, "forget": forget})


def _absolute(text: Any, inside: str = "") -> Any:
    """Return the absolute path of what exists; else `text`, with its ``~`` expanded, for an error that names it.

    Raises
    ------
    InputError
        If the path is not UTF-8 text, as the files of a run are.
    """
    if not isinstance(text, str) or not text:
        return text
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # there is no such user
        return text
    found = next((one for one in (path, Path(inside) / path) if one.exists()), None)
    # A link is not resolved: its name says how the file is read, and it may lead elsewhere tomorrow.
    whole = str(found.absolute()) if found else str(path) if text.startswith("~") else text
    try:
        whole.encode()
    except UnicodeEncodeError:
        raise InputError(f"{whole!a}: the name of a file or folder is no UTF-8 text; rename it") from None
    return whole


def _hosts(clients: int) -> int:
    """Return one host per GPU, since a second would only load the base model again; without a GPU, one per core."""
    return max(1, min(gpu_count() or len(os.sched_getaffinity(0)), clients))


def check(
    config: RunConfig, fresh: bool = True, forgotten: Sequence[Absence] = (), root: Path | None = None
) -> tuple[RunConfig, FederatedData]:
    """Validate a config against its data, which is quick; what needs the base model in memory is left to `load`.

    Parameters
    ----------
    config : RunConfig
        Not resolved yet.
    fresh : bool, default True
        Whether nothing of the run was done yet, so that its base model must be there, and all of it is planned and
        must fit the privacy budget.
    forgotten : sequence of Absence, optional
        What the run has forgotten for good: these clients can ask for nothing, and no message may name them.
    root : Path, optional
        The run directory, where there is one: its ids and digests are keyed.

    Returns
    -------
    RunConfig
        With absolute paths and the number of hosts resolved.
    FederatedData
        The clients' rows, as their source has them.

    Raises
    ------
    OblivionError
        Whatever is wrong.
    """
    check_names(config)
    config = absolute_paths(config)
    gone = [absence.client for absence in forgotten if absence.samples is None]
    data = resolve(config, gone) if root is None else run_data(root, config, gone)
    if fresh:
        suite_of(config.evaluate).rows(RunRows(data=data))  # refuses data that it cannot measure
        models_of(config.model).locate(config.model)
    check_number(rule_of(config), config, tuple(data.clients))
    budget = check_learning(config, {client: len(rows) for client, rows in data.clients.items()}) if fresh else None
    if config.forget.client:
        left = present(data, forgotten)
        request = make_request(left, config.forget.client, config.forget.samples)
        if fresh:  # a refusal must not come after hours of learning; later, removals are planned from what was learned
            context = make_context(config, left, request)
            plans = [make_plan(config, request, context, method) for method in config.forget.methods]
            check_removals(budget, config, context.samples, list(oracle_seeds(config)), plans)
            check_oracle(config, request, context)
    if config.simulation.hosts == "auto":
        simulation = config.simulation.model_copy(update={"hosts": _hosts(len(data.clients))})
        config = config.model_copy(update={"simulation": simulation})
    return config, data


def load(config: RunConfig) -> RunConfig:
    """Load the base model, which stays in memory for the run, and resolve what is ``auto`` because of it.

    Parameters
    ----------
    config : RunConfig
        From `check`.

    Returns
    -------
    RunConfig
        With dtype and cohort size resolved.

    Raises
    ------
    OblivionError
        If the model cannot be loaded, or does not go with the config.
    """
    config = with_dtype(config)
    resident = learner_of(config)
    check_factors(scheme_of(config), config.lora.scheme, resident.parameters)
    if scheme_of(config).state_fields and resident.shared:
        layer = resident.shared[0].removeprefix("base_model.model.")
        raise ConfigError(
            f"lora.scheme = '{config.lora.scheme}' adds to the base model's weights, and {layer!r} shares its weight "
            "with another layer; leave it out of lora.targets, or take another scheme"
        )
    if config.train.cohort == "auto":
        fused = fusible(resident) is None and config.privacy.unit != "sample"
        asked = config.federation.clients_per_round
        cohort = slots_for(resident.width, config.train.batch_size, resident.device, asked) if fused else 1
        config = config.model_copy(update={"train": config.train.model_copy(update={"cohort": cohort})})
    resident.task.check()
    check_objectives(config)
    return config


def check_objectives(config: RunConfig) -> None:
    """Refuse a removal whose objective needs what the model cannot give; the model is loaded if there is an objective.

    Raises
    ------
    ConfigError
        Naming the objective and what is missing.
    """
    for method, settings in config.forget.methods.items():
        removal = removal_from(method, settings)
        if name := getattr(removal, "objective", ""):
            objective, resident = objective_from(name, getattr(removal, "parameters", {})), learner_of(config)
            check_needs(name, objective, resident.task, resident.model, bool(scheme_of(config).state_fields))


def prepare(config: RunConfig) -> tuple[RunConfig, FederatedData]:
    """Check and load a config; return it resolved, with its data."""
    config, data = check(config)
    config = load(config)
    _check_request(config, data)
    return config, data


def _check_request(config: RunConfig, data: FederatedData) -> None:
    """Refuse a scenario that asks to forget rows that do not fit into the model, and so will not be learned."""
    if config.forget.client:
        check_fits(config, data, make_request(data, config.forget.client, config.forget.samples))


def begin_run(config: RunConfig, data: FederatedData, root: Path) -> tuple[RunDirectory, RunConfig]:
    """Load the base model of a config that was checked, and make the run directory.

    Raises
    ------
    OblivionError
        Whatever is wrong, the disk included, before anything was written.
    """
    config = load(config)
    _check_request(config, data)
    check_disk(config, data, root.parent)
    refuse_network(root.parent)
    keys = new_keys(config, data.clients)
    keyed = keyed_data(data, keys)
    manifest = make_manifest(config, keyed)
    if (unfit := unfit_rows(config, keyed)) is not None:
        manifest["unfit_rows"] = unfit
    return RunDirectory.create(root, config, manifest, key_files(keys)), config


def check_again(run: RunDirectory, config: RunConfig) -> RunConfig:
    """Check a config for a run that exists, whose data and base model must still be what it learned from.

    Raises
    ------
    IntegrityError
        If anything changed but what was forgotten; see `check_data`.
    """
    config = check_data(run, config)
    models = models_of(config.model)
    models.locate(config.model)
    if read_manifest(run.root).model_digest != models.digest(config.model):
        raise _changed(run, f"the base model {config.model.name}")
    return config


def check_data(run: RunDirectory, config: RunConfig) -> RunConfig:
    """Check a config for a run that exists, without its base model; its data must still be what it learned from.

    What was forgotten may be gone from the source of the data, as it should be.

    Raises
    ------
    IntegrityError
        If anything else changed.
    """
    forgotten = forgotten_by(run)
    gone = {absence.client for absence in forgotten if absence.samples is None}
    if config.forget.client in gone:  # the scenario's request has been answered
        config = config.model_copy(update={"forget": ForgetConfig()})
    manifest = read_manifest(run.root)
    try:
        config, data = check(for_source(config, gone), fresh=False, forgotten=forgotten, root=run.root)
    except ConfigError as error:
        raise ConfigError(f"{error}{_not_installed(manifest.packages)}") from None
    if manifest.data_digest != data_digest(data):
        if not forgotten:
            raise _changed(run, "the data")
        known, now = manifest.client_digests, client_digests(present(data, forgotten))
        changed = sorted(client for client in known.keys() | now.keys() if known.get(client) != now.get(client))
        if changed:
            raise _changed(run, f"the data of {changed[0]}")
    return config


def _not_installed(packages: Iterable[Package]) -> str:
    """Say which packages that a run used are not there, which then may be why a part is unknown."""
    there = {distribution.name for distribution in distributions()}
    gone = [f"{package.name} {package.version}" for package in packages if package.name not in there]
    return f". The run used a package that is not installed now: {', '.join(gone)}" if gone else ""


def _changed(run: RunDirectory, what: str) -> IntegrityError:
    return IntegrityError(
        f"{what} changed since {run.root} was made, so nothing compares with it; restore it, or run again"
    )


def forgotten_by(run: RunDirectory) -> tuple[Absence, ...]:
    """Return whom and what a run has forgotten for good, by the list beside its keys."""
    return absences(run.read_json(f"keys/{EXCLUSIONS}", []))


def client_rows(run: RunDirectory, config: RunConfig, client: str) -> list[dict[str, str | int]]:
    """Return a client's rows with their ids, plain and keyed; see `oblivion.data.keyed_ids.row_ids`.

    Raises
    ------
    ConfigError
        If there is no such client, or the run has forgotten it.
    """
    gone = {absence.client for absence in forgotten_by(run) if absence.samples is None}
    if client in gone:
        raise ConfigError(f"'{client}' was forgotten by {run.root}; the key of its ids is destroyed")
    return row_ids(run.root, for_source(config, gone), client)
