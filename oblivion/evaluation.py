"""Evaluate a target: a run, an adapter folder, a model folder or a hub id."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from oblivion.config import EvaluateConfig, ModelConfig, RunConfig
from oblivion.data.federation import for_source
from oblivion.data.groups import evenly
from oblivion.data.keyed_ids import run_data
from oblivion.data.requests import select_samples
from oblivion.data.templates import templates
from oblivion.errors import ConfigError, InputError, IntegrityError
from oblivion.learners import learner_of, models_of
from oblivion.ledger.register import EXCLUSIONS, absences
from oblivion.metrics.engine.layout import MANIFEST, read_reference
from oblivion.metrics.engine.one_pass import Evaluation, evaluate_model, to_open_unlearning
from oblivion.metrics.engine.suite import FileRows, Groups, RunRows, Suite
from oblivion.metrics.suites import entries_of, make_suite
from oblivion.models.adapter_folder import CONFIG, StoredAdapter, read_adapter_folder
from oblivion.models.loading import load_base, locate
from oblivion.models.resident import ResidentModel, load_resident
from oblivion.parameters import ParameterError, build, check_count
from oblivion.provenance import code_fingerprint, packages_of
from oblivion.run.records import METRICS, RunRecord, read_run_record
from oblivion.run_format import open_run
from oblivion.tasks import tasks
from oblivion.tasks.causal_lm import CausalLM
from oblivion.tasks.task import Task
from oblivion.types import Adapter, ForgetRequest
from oblivion.untrusted import read_json

_WRITTEN = "the file that the run wrote: restore it"
_PINNED = "give its commit with --revision"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is evaluated: a base model, and its adapter and the run that it comes from, where there are any."""

    name: str
    model: ModelConfig
    adapter: StoredAdapter | None = None
    parameters: Adapter | None = None
    """The parameters of a run whose task is no language model: they take the place of an adapter."""
    run: RunConfig | None = None
    folder: Path = Path()
    """The directory of that run."""
    request: ForgetRequest | None = None
    """What the model of a run was asked to forget; None for what the run's own scenario asks."""


def _forgotten(folder: Path) -> set[str]:
    """Return the clients that a run has forgotten whole; there are none where it came without its keys."""
    path = folder / "keys" / EXCLUSIONS
    listed = read_json(path, "the list that the run wrote: restore keys/ from its backup") if path.exists() else []
    entries = absences(listed if isinstance(listed, list) else [listed])
    return {absence.client for absence in entries if absence.samples is None}


def _read_run(folder: Path) -> RunConfig:
    config, forgotten = open_run(folder), _forgotten(folder)
    return for_source(config, forgotten) if forgotten else config


def _record(folder: Path) -> RunRecord:
    return read_run_record(folder) if (folder / METRICS).exists() else RunRecord()


def _read_request(folder: Path, model: str) -> ForgetRequest | None:
    """Return the request that a model of a run answers; `model` is ``"<request>/<name>"``."""
    wanted, _, name = model.partition("/")
    if not name:
        return None
    request = _record(folder).request(wanted)
    if request is None:
        raise InputError(f"{folder / METRICS}: has no request {wanted}; expected {_WRITTEN}")
    return ForgetRequest(id=wanted, client_id=request.client, sample_ids=request.sample_ids)


def find_target(target: Any, base: str = "", revision: str = "") -> Target:
    """Recognise a target.

    Parameters
    ----------
    target : str, Path, or a result of a run
        A run directory, a PEFT adapter folder, a model folder, a hub id, or an object with ``directory`` and
        ``adapter_folder``.
    base : str, default ""
        The base model of an adapter folder; by default the one that the adapter names.
    revision : str, default ""
        The pinned revision of a hub id.

    Raises
    ------
    InputError
        If it is none of these, or an adapter's base is not known.
    """
    folder = Path(getattr(target, "adapter_folder", target))
    run_folder = Path(getattr(target, "directory", folder))
    run = _read_run(run_folder) if (run_folder / "config.toml").is_file() else None
    if run is not None and run_folder == folder:
        folder = run_folder / _record(run_folder).head
    if run is not None and run.model.name in tasks.names() and (folder / CONFIG).is_file():
        if base:
            raise ConfigError(
                f"--base {base}: {target} is a run of the model '{run.model.name}', which has no base model"
            )
        kept, asked = models_of(run.model).read_adapter(folder), _request(target, run_folder)
        return Target(name=str(folder), model=run.model, parameters=kept, run=run, folder=run_folder, request=asked)
    if (folder / CONFIG).is_file():
        adapter = read_adapter_folder(folder)
        own = revision or ("" if base else adapter.revision)
        model = run.model if run and not base else ModelConfig(name=base or adapter.base, revision=own)
        if not model.name:
            raise InputError(f"{folder} does not name its base model; give it with --base")
        if run is None or base:
            locate(model, "--base" if base else f"base_model_name_or_path of {folder / CONFIG}", _PINNED)
        request = _request(target, run_folder) if run else None
        return Target(name=str(folder), model=model, adapter=adapter, run=run, folder=run_folder, request=request)
    if run is not None:
        raise InputError(f"{folder} is missing: the learning of {run_folder} did not finish, or it was erased")
    model = ModelConfig(name=str(target), revision=revision)
    try:
        locate(model, "as a model, TARGET", _PINNED)
    except (InputError, ConfigError) as error:
        raise type(error)(f"{target} is neither a run nor an adapter folder; {error}") from None
    return Target(name=str(target), model=model)


def _request(target: Any, run_folder: Path) -> ForgetRequest | None:
    """Return the request that a result of a run answers; None for what is no result of a run."""
    return _read_request(run_folder, str(target.model)) if hasattr(target, "adapter_folder") else None


@contextlib.contextmanager
def _opened(target: Target, template: str = "plain") -> Iterator[tuple[Any, Task]]:
    """Open the plain model with any adapter merged, and its task."""
    if target.run is not None and target.parameters is not None:
        learner = learner_of(target.run)
        learner.write(target.parameters)
        with learner.merged() as model:
            yield model, learner.task
        return
    if target.adapter is None:
        base = load_base(target.model)
        yield base.model, CausalLM(base.tokenizer, base.max_length, build(templates, template, {}, "--template"))
        return
    try:
        resident = load_resident(target.model, target.adapter.settings, template=template)
        resident.write(_without_base_weights(target.adapter.tensors, resident, target.name))
    except (ConfigError, IntegrityError) as error:
        if target.run is not None:
            raise
        raise InputError(f"{target.name} does not fit its base model {target.model.name!r}: {error}") from None
    with resident.merged() as model:
        yield model, resident.task


def _without_base_weights(adapter: Adapter, resident: ResidentModel, name: str) -> Adapter:
    """Return the adapter's own tensors, without the base weights that PEFT writes beside an adapter on the head.

    Raises
    ------
    InputError
        If such a weight is not the base model's own, so that it was trained or resized.
    """
    import torch

    base = {key: tensor for key, tensor in resident.model.state_dict().items() if key not in resident.parameters}
    own = {}
    for key, tensor in adapter.items():
        if key not in base:
            own[key] = tensor
        elif base[key].shape != tensor.shape or not torch.equal(base[key].to("cpu", torch.float32), tensor):
            raise InputError(
                f"{name}: its weights hold {key!r}, which is not what the base model has there; merge the adapter into "
                "its base with PEFT and measure the merged model"
            )
    return own


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """How a target is measured, and its reference in the same way."""

    suite: Suite
    groups: Groups
    template: str
    max_new_tokens: int
    batch_size: int


def _groups(target: Target, suite: Suite, files: FileRows, split: str, limit: int) -> Groups:
    if files != FileRows():
        return {name: rows[:limit] if limit else rows for name, rows in suite.rows(files, split).items()}
    if target.run is None:
        raise InputError(
            f"{target.name} is no run, so it has no rows of its own: give a folder with the suite's files with --data, "
            "or a file with rows with --forget"
        )
    federated = run_data(target.folder, target.run, _forgotten(target.folder))
    forget = target.run.forget
    request = target.request
    if request is None and forget.client in federated.clients:  # who was forgotten may be gone from the source
        samples = select_samples(federated, forget.client, forget.samples)
        request = ForgetRequest(id="evaluate", client_id=forget.client, sample_ids=samples)
    rows = suite.rows(RunRows(data=federated, request=request))
    return {name: evenly(some, limit) for name, some in rows.items()}


def _check_counts(limit: int, max_new_tokens: int, batch_size: int) -> None:
    try:
        check_count("limit", limit, 0)
        check_count("max_new_tokens", max_new_tokens, 1)
        check_count("batch_size", batch_size, 1)
    except ParameterError as error:
        raise ConfigError(str(error)) from None


def evaluate(
    target: Any,
    *,
    suite: str = "",
    parameters: Mapping[str, Any] | None = None,
    data: str = "",
    split: str = "",
    forget: str = "",
    retain: str = "",
    holdout: str = "",
    reference: Any = None,
    base: str = "",
    revision: str = "",
    template: str = "",
    limit: int = 0,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    text: bool = False,
) -> dict[str, Any]:
    """Run a suite on a target.

    Parameters
    ----------
    target : str, Path, or a result of a run
        See `find_target`.
    suite : str, default ""
        A registered suite; by default the run's own, else that of a new run.
    parameters : mapping, optional
        The suite's own parameters; by default those of the run, where it is the run's suite.
    data : str, default ""
        A folder with the suite's files; for a run, its own rows if empty.
    split : str, default ""
        The split of that folder; by default the suite's own choice.
    forget, retain, holdout : str, default ""
        A file with rows of that group, in any layout that is read; in place of the folder's, if both are given.
    reference : str, Path or a result of a run, or a list of these, optional
        A model that never saw the forget rows: the JSON of its evaluation, or the model itself, which is then
        evaluated first. A metric that compares with one model takes the first of several.
    base, revision : str
        See `find_target`.
    template : str, default ""
        A registered template; by default the run's own, else ``plain``.
    limit : int, default 0
        The most rows of each group; 0 takes all.
    max_new_tokens, batch_size : int
        The most tokens of a generation, and the number of rows that are generated together.
    text : bool, default False
        Whether the result holds questions, answers and generations beside the numbers.

    Returns
    -------
    dict
        OpenUnlearning's JSON layout, plus ``manifest``.

    Raises
    ------
    OblivionError
        If something of this is not there, does not fit together, or is out of range.
    """
    _check_counts(limit, max_new_tokens, batch_size)
    if split and not data:
        raise ConfigError(f"--split {split}: it names a part of the folder of --data, and there is none")
    found = find_target(target, base, revision)
    own = found.run.evaluate if found.run else EvaluateConfig()
    name = suite or own.suite
    given = parameters if parameters is not None else own.parameters if name == own.suite else {}
    chosen = make_suite(name, given)
    files = FileRows(folder=data, forget=forget, retain=retain, holdout=holdout)
    split = (split or chosen.default_split) if data else ""
    style = template or (found.run.data.template if found.run else "plain")
    templates.check(style)
    packages = packages_of([*entries_of(name, given), *templates.entries(style)])
    settings = _Settings(
        suite=chosen,
        groups=_groups(found, chosen, files, split, limit),
        template=style,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    same = {"suite": name, "split": split, "template": style}
    others = reference if isinstance(reference, list | tuple) else [reference] if reference else []
    references = [_results(one, found, base, settings, same) for one in others]
    manifest = {
        "target": found.name,
        "model": found.model.name,
        "model_digest": models_of(found.model).digest(found.model),
        "suite": name,
        "data": data or ", ".join(filter(None, (forget, retain, holdout))) or found.name,
        "split": split,
        "template": style,
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "rows": {name: len(rows) for name, rows in settings.groups.items()},
        "versions": {name: version(name) for name in ("oblivion-fl", "torch", "transformers", "peft")},
        "code_fingerprint": code_fingerprint(packages),
        "packages": [asdict(package) for package in packages],
    }
    return to_open_unlearning(_run(found, settings, references), manifest, text=text)


def _results(
    reference: Any, found: Target, base: str, settings: _Settings, same: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return the results of a reference: they are read from a file, or measured now in the same way."""
    if isinstance(reference, str | Path) and Path(reference).is_file():
        known = read_reference(reference, settings.suite)
        _check_same_rows(known, same, str(reference))
        return known
    other = find_target(reference, base, found.model.revision)
    if other.run is None and found.run is not None:
        other = replace(other, run=found.run, folder=found.folder)
    return to_open_unlearning(_run(other, settings, []), {})


def _check_same_rows(reference: Mapping[str, Any], settings: Mapping[str, str], path: str) -> None:
    """Refuse a reference whose manifest says that it was measured in another way, as far as it says so."""
    manifest = reference.get(MANIFEST)
    for key, mine in settings.items():
        theirs = manifest.get(key, mine) if isinstance(manifest, Mapping) else mine
        if theirs != mine:
            raise InputError(
                f"{path}: was measured with {key} {theirs!r:.60}, and this is measured with {mine!r}; "
                "evaluate both on the same rows in the same way"
            )


def _run(target: Target, settings: _Settings, references: list[Mapping[str, Any]]) -> Evaluation:
    import torch

    torch.set_num_threads(target.run.train.threads if target.run else 1)
    with _opened(target, settings.template) as (model, task):
        return evaluate_model(
            model,
            task,
            settings.groups,
            suite=settings.suite,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            references=references,
        )
