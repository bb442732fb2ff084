"""The result of an evaluation as lines of text, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from oblivion.errors import plural
from oblivion.metrics.engine.layout import MANIFEST
from oblivion.metrics.forget_quality import ENOUGH

_TITLES = {
    "forget": "the rows to be forgotten",
    "shared": "rows that others hold, too",
    "retain": "the rows that stay",
    "ra": "real authors",
    "wf": "world facts",
    "memory": "how much of the forgotten answers is known by heart",
    "membership": "whether forgotten rows can be told apart from rows never seen (1: all of them, 0.5: none)",
    "reference": "against a model that never saw the forgotten rows",
    "other": "others",
}
_GROUPS = {
    "exact_memorization": "memory",
    "extraction_strength": "memory",
    "privleak": "membership",
    "forget_quality": "reference",
    "ks_statistic": "reference",
}
_NAMES = 30
_INTERVALS = 20


def table(result: Mapping[str, Any]) -> str:
    """A result as lines of text.

    Parameters
    ----------
    result : mapping
        In OpenUnlearning's layout, with its manifest.

    Returns
    -------
    str
        What was measured on which rows; then, in groups, a line per metric: value, 95 % interval, number of rows, and
        a note where the value needs one (why there is none, which component makes a utility zero, ...).
    """
    manifest = result.get(MANIFEST, {})
    lines = list(_header(manifest))
    for group, title in _TITLES.items():
        entries = {name: entry for name, entry in result.items() if name != MANIFEST and _group(name) == group}
        lines += ["", title] if entries else []
        lines += [_line(name, entry) for name, entry in entries.items()]
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


def _group(name: str) -> str:
    if name.startswith("mia_"):
        return "membership"
    first = name.split("_")[0]
    answers = first in _TITLES and ("_Q_A_" in name or "_TR__" in name)
    return _GROUPS.get(name, first if answers else "other")


def _line(name: str, entry: Mapping[str, Any]) -> str:
    value = "-" if entry["agg_value"] is None else f"{entry['agg_value']:.3g}"
    interval = "[{:.3g}, {:.3g}]".format(*entry["interval"]) if entry.get("interval") else ""
    rows = str(entry.get("n", ""))
    note = "; ".join(_notes(name, entry))
    if name == "forget_quality" and entry.get("detectable", 0) > ENOUGH and entry["agg_value"] is not None:
        value = "-"
    return f"  {name:<{_NAMES}} {value:>9}  {interval:<{_INTERVALS}} {rows:<5} {note}".rstrip()


def _notes(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    if entry.get("reason"):
        yield entry["reason"]
    elif entry.get("detectable") is not None:
        few = name == "forget_quality" and entry["detectable"] > ENOUGH
        least = entry["detectable"]
        told = f"a KS statistic up to {least:.2f} may be chance" if least < 1 else "any KS statistic may be chance"
        yield f"not enough rows (n = {entry.get('n')}): {told}" if few else told
    if entry.get("left_out"):
        yield f"{plural(entry['left_out'], 'row')} left out: not defined there"
    zero = [part for part, number in entry.get("components", {}).items() if number == 0]
    if zero and entry["agg_value"] == 0:
        yield f"0 because {', '.join(zero)} {'is' if len(zero) == 1 else 'are'} 0"
