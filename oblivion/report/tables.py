"""Make the tables: every measure of every model beside the oracle's, every client, and every number there is."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from oblivion.metrics.engine.suite import Column, Suite
from oblivion.report.comparison import (
    Comparison,
    Standing,
    client_measure,
    client_names,
    others_name,
    others_values,
    own_entries,
)
from oblivion.report.formatting import (
    NOT_MEASURED,
    capital,
    count,
    number,
    percent,
    plural,
    power_of_ten,
    scientific,
    signed,
)
from oblivion.report.wording import measured_on, went_past
from oblivion.run.records import Measure


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value, its difference to the oracle, its interval; `level`: it lies inside the oracle's interval.

    `counted` says on how many rows it stands, where that is not the same for all of its line.
    """

    value: str
    difference: str = ""
    interval: str = ""
    level: bool = False
    measured: bool = True
    counted: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: a title and a cell per model; `strong` marks what the request is about, `counted` is for all cells."""

    title: str
    cells: tuple[Cell, ...]
    strong: bool = False
    counted: str = ""


def _line(title: str, cells: Sequence[Cell], over: str, counts: Sequence[float | None], strong: bool = False) -> Row:
    """Make a line that says on how many rows its numbers rest: once if all agree, else in every cell."""
    told = ["" if n is None else plural(int(n), over) for n in counts]
    measured = {said for cell, said in zip(cells, told, strict=True) if cell.measured}
    if len(measured) < 2:
        return Row(title=title, cells=tuple(cells), strong=strong, counted="".join(measured))
    cells = [replace(cell, counted=said) if cell.measured else cell for cell, said in zip(cells, told, strict=True)]
    return Row(title=title, cells=tuple(cells), strong=strong)


OTHERS, COST, GUARANTEE = "(others)", "(cost)", "(guarantee)"


def measures(suite: Suite) -> tuple[Column, ...]:
    """Return the lines of the table: the suite's columns, and those that every removal has."""
    return (
        *suite.columns,
        Column(
            metric=OTHERS,
            title=capital(others_name(suite).removeprefix("the ")),
            meaning="mean over the clients that stay, each counting the same. Not below the oracle.",
            over="client",
        ),
        Column(
            metric=COST,
            title="Cost",
            meaning="client-steps in units of training again without the data, then "
            f"{suite.headline.token}s. Low is good.",
        ),
        Column(
            metric=GUARANTEE,
            title="Guarantee",
            meaning="exact: as if never trained on; certified: a proven bound; approximate: measured only; "
            "none: just no longer used; suppression: hidden, the model still contains it.",
        ),
    )


def _guarantee(standing: Standing) -> str:
    model = standing.model
    return f"{model.guarantee or '–'}{', up to rounding' if model.rounding and model.guarantee == 'exact' else ''}"


def _has_few_rows(column: Column | None, measure: Measure) -> bool:
    """Return whether a number rests on so few rows that it is not shown."""
    return column is not None and measure.n is not None and (measure.detectable or 0) > column.enough


def _interval(measure: Measure) -> str:
    return f"[{number(measure.interval[0])}, {number(measure.interval[1])}]" if measure.interval else ""


def _beside(column: Column, measure: Measure) -> str:
    """Return what stands under a value: its interval, or what a test, which has none, can detect."""
    distance = measure.detectable if column.detects else None
    if distance is None:
        return _interval(measure)
    said = f"{column.detects} up to {number(distance)} may be chance"
    return said if distance < 1 else f"any {column.detects} may be chance"


def _difference(value: float, reference: float, logarithmic: bool) -> str:
    if not logarithmic:
        return signed(value - reference)
    if value <= 0 or reference <= 0:
        return ""
    decades = math.log10(value / reference)
    return "±0" if abs(decades) < 0.05 else f"×\u00a0{power_of_ten(decades)}"


def _measure(standing: Standing, column: Column, comparison: Comparison) -> Measure:
    if column.metric == OTHERS:
        counted = len(others_values(comparison.request, standing.model, comparison.suite))
        return Measure(value=standing.others, n=counted)
    if column.metric == comparison.suite.headline.forget.metric:
        return standing.forget
    return standing.model.central.get(column.metric, Measure())


def cost_share(standing: Standing, token: str = "token") -> str:
    """Return what a model cost as a fraction of retraining: in client-steps, and in tokens where they are reported."""
    cost = standing.model.cost
    if cost.fraction is None:
        return "–"
    tokens = "" if cost.token_fraction is None else f" steps, {number(cost.token_fraction)}\u00a0× {token}s"
    return f"{number(cost.fraction)}\u00a0×{tokens}"


def _cell(standing: Standing, column: Column, comparison: Comparison) -> Cell:
    if column.metric == GUARANTEE:
        return Cell(value=_guarantee(standing))
    if column.metric == COST:
        steps, _, tokens = cost_share(standing, comparison.suite.headline.token).partition(", ")
        return Cell(value=steps, difference=tokens)
    measure = _measure(standing, column, comparison)
    relative = standing is comparison.oracle and column.relative
    if _has_few_rows(column, measure) and not relative:
        return Cell(
            value=f"not enough rows (n = {count(measure.n)})", interval=_beside(column, measure), measured=False
        )
    if measure.value is None:
        if relative or not measure.reason:
            return Cell(value="the reference" if relative else NOT_MEASURED, measured=False)
        return Cell(value="no value", interval=measure.reason, measured=False)
    shown = scientific(measure.value) if column.logarithmic else number(measure.value)
    oracle = comparison.oracle
    if oracle is None or standing is oracle:
        return Cell(value=shown, interval=_beside(column, measure))
    reference = _measure(oracle, column, comparison)
    if reference.value is None:
        return Cell(value=shown, interval=_beside(column, measure))
    inside = reference.interval is not None and reference.interval[0] <= measure.value <= reference.interval[1]
    return Cell(
        value=shown,
        difference=_difference(measure.value, reference.value, column.logarithmic),
        interval=_beside(column, measure),
        level=inside,
    )


def methods_table(comparison: Comparison) -> tuple[Row, ...]:
    """Return one row per measure, with a cell per model (original, oracles, methods), each beside the oracle."""
    return tuple(
        _line(
            column.title,
            [_cell(standing, column, comparison) for standing in comparison.standings],
            column.over,
            [_measure(standing, column, comparison).n for standing in comparison.standings],
            strong=column.metric == comparison.suite.headline.forget.metric,
        )
        for column in measures(comparison.suite)
    )


def clients_table(comparison: Comparison) -> tuple[Row, ...]:
    """Return one row per client: its own number under each model, beside the oracle."""
    rows, oracle, suite = [], comparison.oracle, comparison.suite
    for name in client_names(comparison.request):
        reference = client_measure(oracle.model, name, suite).value if oracle else None
        cells, counts = [], []
        for standing in comparison.standings:
            measured = client_measure(standing.model, name, suite)
            value = measured.value
            counts.append(measured.n)
            if value is None:
                cells.append(Cell(value=NOT_MEASURED, measured=False))
            elif standing is oracle or reference is None:
                cells.append(Cell(value=number(value)))
            else:
                cells.append(Cell(value=number(value), difference=signed(value - reference)))
        rows.append(_line(name, cells, "row", counts, strong=name in own_entries(comparison.request)[:2]))
    return tuple(rows)


def everything_table(comparison: Comparison) -> tuple[Row, ...]:
    """Return one row per central measurement that any model has, under its name in the file."""
    names = sorted({name for standing in comparison.standings for name in standing.model.central})
    rows = []
    for name in names:
        cells, counts, column = [], [], comparison.suite.column(name)
        for standing in comparison.standings:
            measure = standing.model.central.get(name, Measure())
            counts.append(measure.n)
            show = scientific if column is not None and column.logarithmic else number
            few = _has_few_rows(column, measure)
            shown = f"not enough rows (n = {count(measure.n)})" if few else show(measure.value)
            cells.append(Cell(value=shown, measured=measure.value is not None and not few))
        rows.append(_line(name, cells, "row", counts))
    return tuple(rows)


def runs_head(suites: Collection[Suite]) -> tuple[str, ...]:
    """Return the titles of the table over several runs; a number that all runs measure is called by its name."""
    nouns = {suite.headline.forget.noun for suite in suites}
    forget = f"Forget {nouns.pop()}" if len(nouns) == 1 else "Forgetting"
    return (forget, "Off the oracle", "Gap closed", "Utility", "Other clients", "Cost", "Guarantee")


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One method of one request of one run, in the table that compares runs."""

    run: str
    request: str
    about: str
    label: str
    cells: tuple[str, ...]


def runs_table(runs: Sequence[tuple[str, Sequence[Comparison]]]) -> tuple[RunRow, ...]:
    """Return every model of every request of every run: the table in front of a page with several runs."""
    rows = []
    for run, comparisons in runs:
        for comparison in comparisons:
            for standing in comparison.standings:
                method = standing in comparison.methods
                closed = standing.closed if method else None
                off = "–" if standing is comparison.oracle or standing.distance is None else signed(standing.distance)
                note = " (collapsed)" if standing.collapsed else ""
                cells = (
                    number(standing.forget.value),
                    off,
                    went_past(comparison)
                    if method and standing.passed
                    else "–"
                    if closed is None
                    else percent(min(closed, 1.0)),
                    number(standing.utility) + note,
                    number(standing.others),
                    cost_share(standing, comparison.suite.headline.token),
                    _guarantee(standing),
                )
                rows.append(
                    RunRow(
                        run=run,
                        request=comparison.request.id,
                        about=", ".join(filter(None, [comparison.request.client, measured_on(comparison)])),
                        label=standing.label,
                        cells=cells,
                    )
                )
    return tuple(rows)
