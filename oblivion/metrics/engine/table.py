"""Print the result of an evaluation as lines of text, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from oblivion.errors import plural
from oblivion.metrics.engine.layout import MANIFEST
from oblivion.metrics.engine.suite import Suite

_OTHERS = "others"
_NAMES = 30
_INTERVALS = 20


def table(result: Mapping[str, Any], suite: Suite) -> str:
    """Return a result as lines of text.

    Parameters
    ----------
    result : mapping
        The result in OpenUnlearning's layout, with its manifest.
    suite : Suite
        The suite with which it was measured.

    Returns
    -------
    str
        What was measured on which rows; then, in groups, a line per metric: value, 95 % interval, number of rows, and
        a note where the value needs one (why there is none, which component makes a utility zero, ...).
    """
    manifest = result.get(MANIFEST, {})
    lines = list(_header(manifest))
    titles = {name: title for title, names in suite.sections.items() for name in names}
    for title in (*suite.sections, _OTHERS):
        entries = {n: entry for n, entry in result.items() if n != MANIFEST and titles.get(n, _OTHERS) == title}
        lines += ["", title] if entries else []
        lines += [_line(name, entry, suite) for name, entry in entries.items()]
    skipped = manifest.get("skipped", [])
    if skipped:
        said = "1 row is" if len(skipped) == 1 else f"{len(skipped)} rows are"
        lines += ["", f"{said} longer than the model's context and left out whole"]
    return "\n".join(lines)


def _header(manifest: Mapping[str, Any]) -> Iterator[str]:
    if "target" in manifest:
        model = manifest.get("model", "")
        yield f"target    {manifest['target']}" + (f" (model {model})" if model not in ("", manifest["target"]) else "")
    if "suite" in manifest:
        yield f"suite     {manifest['suite']}, template {manifest.get('template', '')}"
    if manifest.get("data", manifest.get("target")) != manifest.get("target"):
        yield f"data      {manifest['data']}" + (f", {manifest['split']}" if manifest.get("split") else "")
    if manifest.get("rows"):
        yield "rows      " + ", ".join(f"{name} {count}" for name, count in manifest["rows"].items())
    yield f"  {'metric':<{_NAMES}} {'value':>9}  {'95 % interval':<{_INTERVALS}} rows"


def _line(name: str, entry: Mapping[str, Any], suite: Suite) -> str:
    value = "-" if entry["agg_value"] is None else f"{entry['agg_value']:.3g}"
    interval = "[{:.3g}, {:.3g}]".format(*entry["interval"]) if entry.get("interval") else ""
    rows = str(entry.get("n", ""))
    few = _has_few_rows(name, entry, suite)
    note = "; ".join(_notes(entry, few, suite))
    if few and entry["agg_value"] is not None:
        value = "-"
    return f"  {name:<{_NAMES}} {value:>9}  {interval:<{_INTERVALS}} {rows:<5} {note}".rstrip()


def _has_few_rows(name: str, entry: Mapping[str, Any], suite: Suite) -> bool:
    """Return whether a value rests on so few rows that it is not shown."""
    column = suite.column(name)
    return column is not None and entry.get("detectable", 0) > column.enough


def _notes(entry: Mapping[str, Any], few: bool, suite: Suite) -> Iterator[str]:
    if entry.get("reason"):
        yield entry["reason"]
    elif entry.get("detectable") is not None:
        least, statistic = entry["detectable"], next((c.detects for c in suite.columns if c.detects), "test")
        told = f"a {statistic} statistic up to {least:.2f} may be chance"
        told = told if least < 1 else f"any {statistic} statistic may be chance"
        yield f"not enough rows (n = {entry.get('n')}): {told}" if few else told
    if entry.get("left_out"):
        yield f"{plural(entry['left_out'], 'row')} left out: not defined there"
    zero = [part for part, number in entry.get("components", {}).items() if number == 0]
    if zero and entry["agg_value"] == 0:
        yield f"0 because {', '.join(zero)} {'is' if len(zero) == 1 else 'are'} 0"
