"""Read a run directory for the report: checked numbers, ids and settings, never the text of a data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oblivion.config import EvaluateConfig
from oblivion.errors import InputError
from oblivion.metrics.engine.suite import Suite
from oblivion.metrics.suites import suite_of
from oblivion.run.records import RunRecord, clean, read_run_record
from oblivion.run_format import check_format
from oblivion.untrusted import parse_json, read, read_json, read_toml
from oblivion.validation import faults

_MOST_EVENTS, _LONGEST_EVENT = 2**30, 2**20
"""The most bytes of all events, and of one; a longer event is not read."""
COUNTED_EVENTS = ("refused", "failed")


@dataclass(frozen=True, kw_only=True)
class Events:
    """What the report tells of ``events.jsonl``.

    Attributes
    ----------
    counts : mapping of str to int
        How often something was refused, and how often something failed.
    warnings : mapping of str to int
        Text of a warning, to how often it came; in order of first appearance.
    unreadable : int
        Lines that are not JSON (a killed run may leave one).
    """

    counts: Mapping[str, int]
    warnings: Mapping[str, int]
    unreadable: int = 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory, with the suite by which it measured.

    `manifest` and `config` are (dotted key, value) rows, None for a missing file.
    """

    name: str
    suite: Suite
    metrics: RunRecord
    manifest: tuple[tuple[str, str], ...] | None
    config: tuple[tuple[str, str], ...] | None
    events: Events | None


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested tables as (dotted key, value as text) rows, in the order of the file."""
    if isinstance(value, Mapping) and value:
        return [
            row for key, inner in value.items() for row in flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return [(clean(prefix), clean(shown))]


def _read_manifest(directory: Path) -> tuple[tuple[str, str], ...] | None:
    path = directory / "manifest.json"
    if not path.exists():
        return None
    remedy = "restore the file that the run wrote"
    manifest = read_json(path, f"what the run wrote; {remedy}")
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: expected an object, found {type(manifest).__name__}; {remedy}")
    unfit = manifest.get("unfit_rows")
    if isinstance(unfit, dict):  # the page gives their number, because there may be thousands of ids
        manifest["unfit_rows"] = {name: len(ids) if isinstance(ids, list) else ids for name, ids in unfit.items()}
    return tuple(flatten(manifest)) if manifest else ()


def _read_config(directory: Path) -> dict[str, Any] | None:
    path = directory / "config.toml"
    return read_toml(path, "what the run wrote; restore the file that the run wrote") if path.exists() else None


def _suite(config: Mapping[str, Any], directory: Path) -> Suite:
    """Make the suite that a run's config names, or that of a new run if there is no config."""
    where = f"{directory / 'config.toml'}: evaluate"
    table = config.get("evaluate", {})
    try:
        settings = EvaluateConfig.model_validate(table)
    except ValidationError as error:
        _, key, value, said = next(faults(EvaluateConfig, error))
        raise InputError(f"{where}.{key} = {value}: {said}; restore the file that the run wrote") from None
    return suite_of(settings, where)


def _read_events(directory: Path) -> Events | None:
    path = directory / "events.jsonl"
    if not path.exists():
        return None
    counts: Counter[str] = Counter(dict.fromkeys(COUNTED_EVENTS, 0))
    warnings: Counter[str] = Counter()
    unreadable = 0
    for line in read(path, "the events that the run wrote: restore the file", most=_MOST_EVENTS).splitlines():
        if not line.strip():
            continue
        try:
            record = parse_json(line[:_LONGEST_EVENT], str(path), "an event")
        except InputError:
            record = None
        if not isinstance(record, dict):
            unreadable += 1
            continue
        # "refused" and "update.refused" are the same kind of event.
        kind = str(record.get("event", "")).rsplit(".", 1)[-1]
        if kind in counts:
            counts[kind] += 1
        elif kind == "warning":
            text = next((record[key] for key in ("message", "text", "note") if record.get(key)), "(no text)")
            warnings[clean(str(text))] += 1
    return Events(counts=dict(counts), warnings=dict(warnings), unreadable=unreadable)


def read_run(directory: Path) -> Run:
    """Read what a run left behind.

    Parameters
    ----------
    directory : Path
        A run directory. ``metrics.json`` must be there; the other files are shown if they are.

    Returns
    -------
    Run
        Everything the report shows, checked.

    Raises
    ------
    InputError
        Naming the file, what is wrong with it, and what to do.
    """
    directory = Path(directory)
    check_format(directory)
    record, config = read_run_record(directory), _read_config(directory)
    return Run(
        name=clean(directory.resolve().name),
        suite=_suite(config or {}, directory),
        metrics=record,
        manifest=_read_manifest(directory),
        config=None if config is None else tuple(flatten(config)) if config else (),
        events=_read_events(directory),
    )
