"""Evaluate whatever a person points at: a run, an adapter folder, a model folder or a hub id."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from oblivion.config import ModelConfig, RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.datasets.tofu import evaluation_groups
from oblivion.data.federation import for_source
from oblivion.data.groups import central_groups, evenly
from oblivion.data.keyed_ids import run_data
from oblivion.data.requests import select_samples
from oblivion.data.templates import templates
from oblivion.errors import ConfigError, InputError, IntegrityError
from oblivion.ledger.register import EXCLUSIONS, absences
from oblivion.metrics.engine.layout import MANIFEST
from oblivion.metrics.engine.one_pass import evaluate_model, read_reference, to_open_unlearning
from oblivion.metrics.suites import entries_of
from oblivion.models.adapter_folder import CONFIG, StoredAdapter, read_adapter_folder
from oblivion.models.loading import load_base, locate, model_digest
from oblivion.models.resident import ResidentModel, load_resident
from oblivion.outside import read_json
from oblivion.parameters import build
from oblivion.provenance import code_fingerprint, packages_of
from oblivion.run_format import open_run
from oblivion.tasks.causal_lm import CausalLM
from oblivion.types import Adapter, ForgetRequest, Sample

_WRITTEN = "the file that the run wrote: restore it"
_PINNED = "give its commit with --revision"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is evaluated: a base model, an adapter on it if there is one, and the run it comes from if there is one."""

    name: str
    model: ModelConfig
    adapter: StoredAdapter | None = None
    run: RunConfig | None = None
    folder: Path = Path()
    """The directory of that run."""
    request: ForgetRequest | None = None
    """What the model of a run was asked to forget; None for what the run's own scenario asks."""


def _read_run(folder: Path) -> RunConfig:
    config, path = open_run(folder), folder / "keys" / EXCLUSIONS
    if not path.exists():
        return config  # it has forgotten nobody, or came without its keys
    listed = read_json(path, "the list that the run wrote: restore keys/ from its backup")
    forgotten = absences(listed if isinstance(listed, list) else [listed])
    return for_source(config, {absence.client for absence in forgotten if absence.samples is None})


def _head(folder: Path) -> str:
    """Where a run keeps its present adapter: what it learned, or what the last committed removal made."""
    path = folder / "metrics.json"
    metrics = read_json(path, _WRITTEN) if path.exists() else {}
    head = metrics.get("head", "adapters/original") if isinstance(metrics, dict) else None
    if not isinstance(head, str):
        raise InputError(f"{path}: does not say where the run's adapter is; expected {_WRITTEN}")
    return head


def _read_request(folder: Path, model: str) -> ForgetRequest | None:
    """The request that a model of a run answers; `model` is ``"<request>/<name>"``."""
    wanted, _, name = model.partition("/")
    if not name:
        return None
    path = folder / "metrics.json"
    try:
        entries = {entry["id"]: entry for entry in read_json(path, _WRITTEN)["requests"]}
        entry = entries[wanted]
        ids = entry.get("sample_ids")
        return ForgetRequest(id=wanted, client_id=entry["client"], sample_ids=None if ids is None else tuple(ids))
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: does not say what {wanted} asks for; expected {_WRITTEN}") from None


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
        folder = run_folder / _head(run_folder)
    if (folder / CONFIG).is_file():
        adapter = read_adapter_folder(folder)
        own = revision or ("" if base else adapter.revision)
        model = run.model if run and not base else ModelConfig(name=base or adapter.base, revision=own)
        if not model.name:
            raise InputError(f"{folder} does not name its base model; give it with --base")
        if run is None or base:
            locate(model, "--base" if base else f"base_model_name_or_path of {folder / CONFIG}", _PINNED)
        request = _read_request(run_folder, str(target.model)) if run and hasattr(target, "adapter_folder") else None
        return Target(name=str(folder), model=model, adapter=adapter, run=run, folder=run_folder, request=request)
    if run is not None:
        raise InputError(f"{folder} is missing: the learning of {run_folder} did not finish, or it was erased")
    model = ModelConfig(name=str(target), revision=revision)
    try:
        locate(model, "as a model, TARGET", _PINNED)
    except (InputError, ConfigError) as error:
        raise type(error)(f"{target} is neither a run nor an adapter folder; {error}") from None
    return Target(name=str(target), model=model)


@contextlib.contextmanager
def _opened(target: Target, template: str = "plain") -> Iterator[tuple[Any, CausalLM]]:
    """The plain model with any adapter merged, and its task."""
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
    """The adapter's own tensors: beside an adapter on the head or embedding PEFT writes the base model's weight, too.

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


def _run_data(config: RunConfig, folder: Path) -> FederatedData:
    """The data of a run with the ids that its requests go by."""
    path = folder / "keys" / EXCLUSIONS
    listed = read_json(path, "the list that the run wrote: restore keys/ from its backup") if path.exists() else []
    listed = listed if isinstance(listed, list) else [listed]
    gone = [absence.client for absence in absences(listed) if absence.samples is None]
    return run_data(folder, config, gone)


def _groups(target: Target, suite: str, data: str, split: str, limit: int) -> dict[str, tuple[Sample, ...]]:
    if data:
        return {name: rows[:limit] if limit else rows for name, rows in evaluation_groups(data, split).items()}
    if target.run is None:
        raise InputError(f"suite '{suite}' needs rows: give a folder with its files with --data")
    federated = _run_data(target.run, target.folder)
    forget = target.run.forget
    request = target.request
    if request is None and forget.client in federated.clients:  # who was forgotten may be gone from the source
        samples = select_samples(federated, forget.client, forget.samples)
        request = ForgetRequest(id="evaluate", client_id=forget.client, sample_ids=samples)
    return {name: evenly(rows, limit) for name, rows in central_groups(federated, request, 0).items()}


def evaluate(
    target: Any,
    *,
    suite: str = "tofu",
    data: str = "",
    split: str = "forget10",
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
    suite : str, default "tofu"
        A registered suite.
    data : str, default ""
        A folder with the suite's files; for a run, its own rows if empty.
    split : str, default "forget10"
        The forget split of that folder.
    reference : str, Path or a result of a run, optional
        The model that never saw the forget rows: the JSON of its evaluation, or the model itself, which is then
        evaluated first.
    base, revision : str
        See `find_target`.
    template : str, default ""
        A registered template; by default the run's own, else ``plain``.
    limit : int, default 0
        At most so many rows of each group; 0 for all.
    max_new_tokens, batch_size : int
        Generation.
    text : bool, default False
        Whether the result holds questions, answers and generations beside the numbers.

    Returns
    -------
    dict
        OpenUnlearning's JSON layout, plus ``manifest``.
    """
    found = find_target(target, base, revision)
    groups = _groups(found, suite, data, split, limit)
    chosen = template or (found.run.data.template if found.run else "plain")
    templates.check(chosen)
    packages = packages_of([*entries_of(suite), *templates.entries(chosen)])
    known = _reference(reference, found, base, groups, chosen, suite, split if data else "", max_new_tokens, batch_size)
    manifest = {
        "target": found.name,
        "model": found.model.name,
        "model_digest": model_digest(found.model),
        "suite": suite,
        "data": data or found.name,
        "split": split if data else "",
        "template": chosen,
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "rows": {name: len(rows) for name, rows in groups.items()},
        "versions": {name: version(name) for name in ("oblivion-fl", "torch", "transformers", "peft")},
        "code_fingerprint": code_fingerprint(packages),
        "packages": [asdict(package) for package in packages],
    }
    return _run(found, groups, chosen, suite, max_new_tokens, batch_size, known, manifest, text)


def _reference(
    reference: Any,
    found: Target,
    base: str,
    groups: Mapping[str, Sequence[Sample]],
    template: str,
    suite: str,
    split: str,
    max_new_tokens: int,
    batch_size: int,
) -> Mapping[str, Any] | None:
    if not reference:
        return None
    if isinstance(reference, str | Path) and Path(reference).is_file():
        known = read_reference(reference)
        _check_same_rows(known, {"suite": suite, "split": split, "template": template}, str(reference))
        return known
    other = find_target(reference, base, found.model.revision)
    if other.run is None and found.run is not None:
        other = replace(other, run=found.run, folder=found.folder)
    return _run(other, groups, template, suite, max_new_tokens, batch_size, None, {}, False)


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


def _run(
    target: Target,
    groups: Mapping[str, Sequence[Sample]],
    template: str,
    suite: str,
    max_new_tokens: int,
    batch_size: int,
    reference: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
    text: bool,
) -> dict[str, Any]:
    import torch

    torch.set_num_threads(target.run.train.threads if target.run else 1)
    with _opened(target, template) as (model, task):
        evaluation = evaluate_model(
            model,
            task,
            groups,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            reference=reference,
            suite=suite,
        )
    return to_open_unlearning(evaluation, manifest, text=text)
