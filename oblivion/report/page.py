"""Build the page: all that a run says about its requests, in one HTML file without network and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from oblivion.config import RunConfig
from oblivion.errors import InputError
from oblivion.files import write_atomically
from oblivion.report.comparison import Comparison, Standing, compare
from oblivion.report.drawing import icon, marks
from oblivion.report.formatting import capital, count, percent, plural, shorten
from oblivion.report.introduction import learned, made_of, opening, opening_of_several
from oblivion.report.picture_clients import clients_picture, shown_clients
from oblivion.report.picture_costs import costs_picture
from oblivion.report.picture_curves import branches, curves_picture
from oblivion.report.picture_tradeoff import tradeoff_picture
from oblivion.report.privacy import privacy_view
from oblivion.report.reading import Run, flatten, read_run
from oblivion.report.tables import (
    clients_table,
    everything_table,
    measures,
    methods_table,
    runs_head,
    runs_table,
)
from oblivion.report.wording import answer, committed, hurt, noise, request_facts, request_title, shared
from oblivion.run.records import ChecklistEntry

MOST_WARNINGS = 30
LONGEST_TITLE = 80
_HERE = Path(__file__).parent


def _checklist(standing: Standing) -> dict[str, Any]:
    items: tuple[ChecklistEntry, ...] = standing.model.checklist
    open_items = sum(1 for item in items if item.status == "not covered")
    summary = f"{plural(len(items), 'item')}, " + (f"{open_items} not covered" if open_items else "all covered")
    return {"label": standing.label, "summary": summary, "entries": items}


def _request_view(comparison: Comparison, anchor: str) -> dict[str, Any]:
    request = comparison.request
    looks = marks([standing.key for standing in comparison.standings])
    clients = clients_table(comparison)
    # The picture names its own rows; the table below has the clients that it leaves out.
    notes: list[Markup | str] = list(hurt(comparison))
    left_out = len(clients) - len(shown_clients(comparison))
    if left_out:
        notes.append(f"{plural(left_out, 'client')} that changed less: only in the table below.")
    return {
        "anchor": anchor,
        "answer": answer(comparison),
        "committed": committed(comparison.request),
        "title": request_title(request),
        "id": request.id,
        "facts": request_facts(comparison),
        "shared": shared(comparison),
        "head": [
            {
                "label": standing.label,
                "reference": standing is comparison.oracle,
                "swatch": icon(looks[standing.key]),
            }
            for standing in comparison.standings
        ],
        "methods": methods_table(comparison),
        "noise": noise(comparison),
        "clients": clients,
        "everything": everything_table(comparison),
        "hurt": notes,
        "checklists": [_checklist(standing) for standing in comparison.methods if standing.model.checklist],
        "noun": comparison.number.noun,
        "own_noun": capital(comparison.suite.headline.own.noun),
        "answers": comparison.suite.headline.answers,
        "overdone": comparison.suite.headline.overdone,
        "overdone_side": "Left" if comparison.number.higher_remembers else "Right",
        "clients_picture": clients_picture(comparison, f"{anchor}-clients"),
        "tradeoff_picture": tradeoff_picture(comparison, f"{anchor}-tradeoff"),
        "costs_picture": costs_picture(comparison, f"{anchor}-costs"),
    }


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _or_dash(value: float | None) -> str:
    return "–" if value is None else count(value)


def _mean_error(errors: Sequence[float | None]) -> str:
    known = [error for error in errors if error is not None]
    return percent(sum(known) / len(known)) if known else "–"


def _settings(run: Run) -> list[tuple[str, str, bool]] | None:
    if run.config is None:
        return None
    defaults = dict(flatten(RunConfig().to_json()))
    return [(key, value, defaults.get(key) != value) for key, value in run.config]


def _run_view(run: Run, comparisons: Sequence[Comparison], name: str, anchor: str) -> dict[str, Any]:
    warnings = list(run.events.warnings.items()) if run.events else []
    return {
        "anchor": anchor,
        "name": name,
        "made_of": made_of(run),
        "learned": learned(run.metrics),
        "privacy": privacy_view(run.metrics.privacy),
        "requests": [
            _request_view(comparison, f"{anchor}-request-{index}")
            for index, comparison in enumerate(comparisons, start=1)
        ],
        "measures": measures(run.suite),
        "curves_picture": curves_picture(run.metrics, f"{anchor}-curves", run.suite.headline.token),
        "branches": [
            {
                "name": branch.name,
                "rounds": f"{branch.rounds[0].round}–{branch.rounds[-1].round}",
                "refused": _or_dash(branch.total("refused")),
                "failed": _or_dash(branch.total("failed")),
                "seconds": _or_dash(branch.total("seconds")),
                "scheme_error": _mean_error([entry.scheme_error for entry in branch.rounds]),
            }
            for branch in branches(run.metrics)
        ],
        "events": run.events,
        "warnings": warnings[:MOST_WARNINGS],
        "more_warnings": max(0, len(warnings) - MOST_WARNINGS),
        "manifest": None if run.manifest is None else [(key, value, False) for key, value in run.manifest],
        "config": _settings(run),
    }


def _names(runs: Sequence[Run]) -> list[str]:
    names = [run.metrics.scenario or run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({run.name})" if name != run.name else name for name, run in zip(names, runs, strict=True)]
    return [
        f"{name}, {names[: index + 1].count(name)}" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def build_report(runs: Sequence[Path]) -> str:
    """Make the report of one or several runs.

    It reads the run directories and nothing else; the same directories give the same page, byte for byte.

    Parameters
    ----------
    runs : sequence of Path
        Run directories, each with ``metrics.json``; ``config.toml``, ``manifest.json`` and ``events.jsonl``
        are shown where they are there.

    Returns
    -------
    str
        A whole HTML document: styles and pictures are inside, there is no script, and a content security
        policy forbids every request. Text from the runs is escaped.

    Raises
    ------
    InputError
        If there is no run, or a file is missing or malformed; the message names the file and what to do.
    """
    if not runs:
        raise InputError("no run directory was given; name at least one, such as runs/demo")
    read = [read_run(Path(path)) for path in runs]
    names = _names(read)
    compared = [[compare(request, run.suite) for request in run.metrics.requests] for run in read]
    if len(read) > 1:
        title = f"{count(len(read))} runs compared: {shorten(', '.join(names), LONGEST_TITLE)}"
    else:
        title = f"{'Forgetting' if compared[0] else 'Learning'} in {names[0]}"
    return _template().render(
        title=title,
        # This is our own file, and the only text that goes into the page unescaped.
        css=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        opening=opening(read[0].metrics, read[0].suite.headline.model)
        if len(read) == 1
        else opening_of_several(list(zip(names, read, strict=True))),
        runs_head=runs_head([run.suite for run in read]),
        runs_rows=runs_table(list(zip(names, compared, strict=True))),
        runs=[
            _run_view(run, comparisons, name, f"run-{index}")
            for index, (run, comparisons, name) in enumerate(zip(read, compared, names, strict=True), start=1)
        ],
    )


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of one or several runs to one HTML file.

    Parameters
    ----------
    runs : sequence of Path
        Run directories, as in `build_report`.
    out : Path
        Where the file goes, whole or not at all; its folder is made if it is not there.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        As in `build_report`.
    OblivionError
        If `out` cannot be written; it is then what it was.
    """
    write_atomically(out, build_report(runs).encode())
    return out
