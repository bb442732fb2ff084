"""OpenUnlearning's JSON layout: written from results, and read back where results serve as a reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oblivion.errors import InputError
from oblivion.metrics.context import DetailedResult
from oblivion.types import MetricResult

MANIFEST = "manifest"


def to_open_unlearning(
    results: Mapping[str, MetricResult], texts: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> dict[str, Any]:
    """Results as plain JSON values.

    Parameters
    ----------
    results : mapping of str to MetricResult
        Metric name to result.
    texts : mapping
        Metric name to row position to strings that are added to the row.

    Returns
    -------
    dict
        ``{metric: {"agg_value": ..., "value_by_index": {"0": {...}}, "n": ..., "interval": [low, high]}}``; a
        membership attack has ``forget``, ``holdout`` and ``auc`` beside ``agg_value``. ``n`` and ``interval`` are
        ours.
    """
    return {name: _entry(result, texts.get(name, {})) for name, result in results.items()}


def _entry(result: MetricResult, texts: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if isinstance(result, DetailedResult):
        entry.update({name: _entry(part, {}) for name, part in result.parts.items()})
        entry.update(result.extra)
    entry["agg_value"] = result.value
    if result.per_example:
        entry["value_by_index"] = {index: {**row, **texts.get(index, {})} for index, row in result.per_example.items()}
    if result.value is not None:
        entry["n"] = result.n
    if result.interval is not None:
        entry["interval"] = list(result.interval)
    return entry


def from_json(data: Mapping[str, Any], source: str = "reference") -> dict[str, MetricResult]:
    """Read results in OpenUnlearning's layout, ours or its own.

    Parameters
    ----------
    data : mapping
        Parsed JSON; ``manifest`` and what is not a metric's entry are passed over.
    source : str
        What it is, for messages.

    Returns
    -------
    dict of str to MetricResult
        Values and per-row numbers by metric name.

    Raises
    ------
    InputError
        If there is no metric in it, or an entry is malformed.
    """
    results = {}
    for name, entry in data.items():
        if name == MANIFEST or not isinstance(entry, Mapping) or "agg_value" not in entry:
            continue
        value, rows = entry["agg_value"], entry.get("value_by_index", {})
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{source}: {name}.agg_value is {value!r}; expected a number or null")
        if not isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in rows.values()):
            raise InputError(f"{source}: {name}.value_by_index is not an object of objects, one per row")
        results[name] = MetricResult(
            value=None if value is None else float(value),
            per_example={str(index): dict(row) for index, row in rows.items()},
            n=len(rows),
        )
    if not results:
        raise InputError(
            f'{source}: no metric in it; expected {{metric: {{"agg_value": ..., "value_by_index": ...}}}}, '
            "as 'oblivion evaluate --out' writes it"
        )
    return results


def read_reference(path: str | Path) -> dict[str, Any]:
    """Read and check the JSON of another evaluation.

    Parameters
    ----------
    path : str or Path
        A file that ``oblivion evaluate --out`` or OpenUnlearning wrote.

    Returns
    -------
    dict
        The parsed JSON, to be given to `evaluate_model` as its `reference`.

    Raises
    ------
    InputError
        If the file is missing, is not JSON, or holds no metric.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the reference: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object with one entry per metric")
    from_json(data, str(path))
    return data
