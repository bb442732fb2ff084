"""Write results in OpenUnlearning's JSON layout, and read them where they serve as a reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oblivion.errors import InputError
from oblivion.metrics.engine.context import ANY, DetailedResult
from oblivion.metrics.engine.suite import Suite
from oblivion.types import MetricResult
from oblivion.untrusted import read_json

MANIFEST = "manifest"
TEXTS = ("input", "ground_truth", "generation")
"""The texts that a row has besides numbers, where texts are asked for."""
_LARGEST_REFERENCE = 2**28
"""The most bytes of a reference: results with their texts are larger than other files."""
_NULL = "the file has no value"
_ROUNDING = 1e-6
_LARGEST = 1e300

Range = tuple[float, float]
"""The least and the largest that a number can be."""


def results_to_json(
    results: Mapping[str, MetricResult], texts: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> dict[str, Any]:
    """Return results as plain JSON values.

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
        membership attack has ``forget``, ``holdout`` and ``auc`` beside ``agg_value``, and where ``agg_value`` is null,
        ``reason`` says why. ``n``, ``interval``, ``reason`` and what else stands beside a value are ours.
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
    if result.value is not None or result.n:
        entry["n"] = result.n
    if result.interval is not None:
        entry["interval"] = list(result.interval)
    if result.reason:
        entry["reason"] = result.reason
    return entry


def from_json(data: Mapping[str, Any], suite: Suite, source: str = "reference") -> dict[str, MetricResult]:
    """Read results in OpenUnlearning's layout, ours or its own.

    Parameters
    ----------
    data : mapping
        Parsed JSON; ``manifest`` and what is not a metric's entry are passed over.
    suite : Suite
        Says what the numbers of its metrics can be; a metric that it does not have may have any finite number.
    source : str
        A name for the data, for messages.

    Returns
    -------
    dict of str to MetricResult
        Values and per-row numbers by metric name.

    Raises
    ------
    InputError
        If there is no metric in it, or an entry is malformed: a number that is not finite or out of its range, or
        other rows than ``n`` says. The message names metric and row.
    """
    results = {
        name: _read_entry(entry, f"{source}: {name}", *_ranges(suite, name))
        for name, entry in data.items()
        if name != MANIFEST and isinstance(entry, Mapping) and "agg_value" in entry
    }
    if not results:
        raise InputError(
            f'{source}: no metric in it; expected {{metric: {{"agg_value": ..., "value_by_index": ...}}}}, '
            "as 'oblivion evaluate --out' writes it"
        )
    return results


def _ranges(suite: Suite, name: str) -> tuple[Range, Mapping[str, Range]]:
    """Return the range of a metric's value, and the ranges of the numbers of its rows."""
    metric = suite.metrics.get(suite.aliases.get(name, name))
    return getattr(metric, "value_range", ANY), getattr(metric, "row_ranges", {})


def _read_entry(entry: Mapping[str, Any], where: str, bounds: Range, in_rows: Mapping[str, Range]) -> MetricResult:
    value, rows, n = entry["agg_value"], entry.get("value_by_index", {}), entry.get("n")
    if value is not None:
        _check_number(value, f"{where}.agg_value", bounds, "a number or null")
    if not isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in rows.values()):
        raise InputError(f"{where}.value_by_index is not an object of objects, one per row")
    for index, row in rows.items():
        for key, number in row.items():
            if key not in TEXTS and number is not None:  # a metric that needs the number refuses null
                _check_row(number, f"{where}.value_by_index.{index}.{key}", in_rows.get(key, ANY))
    if rows and n is not None and n != len(rows):
        raise InputError(f"{where} says n = {n!r} and has {len(rows)} rows; take the file as it was written")
    left_out = entry.get("left_out", 0)
    if isinstance(left_out, bool) or not isinstance(left_out, int) or left_out < 0:
        raise InputError(f"{where}.left_out is {left_out!r}; expected a number of rows")
    parts = {
        name: _read_entry(part, f"{where}.{name}", ANY, {})
        for name, part in entry.items()
        if isinstance(part, Mapping) and "agg_value" in part
    }
    return DetailedResult(
        value=None if value is None else float(value),
        reason=_NULL if value is None else "",
        per_example={str(index): dict(row) for index, row in rows.items()},
        n=len(rows),
        extra={"left_out": left_out} if left_out else {},
        parts=parts,
    )


def _check_row(value: Any, where: str, bounds: Range) -> None:
    for number in value if isinstance(value, list) else [value]:
        _check_number(number, where, bounds, "a number")


def _check_number(value: Any, where: str, bounds: Range, expected: str) -> None:
    low, high = bounds
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} is {value!r:.60}; expected {expected}")
    if not -_LARGEST < value < _LARGEST:  # the comparison is false for NaN, too
        raise InputError(
            f"{where} is {value!r:.60}; expected {expected}, and a finite one; evaluate the reference again"
        )
    if not low - _ROUNDING <= value <= high + _ROUNDING:
        raise InputError(f"{where} is {value!r:.60}; expected {expected} from {low:g} to {high:g}")


def read_reference(path: str | Path, suite: Suite) -> dict[str, Any]:
    """Read and check the JSON of another evaluation.

    Parameters
    ----------
    path : str or Path
        A file that ``oblivion evaluate --out`` or OpenUnlearning wrote.
    suite : Suite
        Says what the numbers of its metrics can be.

    Returns
    -------
    dict
        The parsed JSON, to be given to `evaluate_model` as one of its `references`.

    Raises
    ------
    InputError
        If the file is missing, is not JSON, holds no metric, or one of its numbers cannot be.
    """
    data = read_json(Path(path), "the reference: what 'oblivion evaluate --out' wrote", most=_LARGEST_REFERENCE)
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object with one entry per metric")
    from_json(data, suite, str(path))
    return data
