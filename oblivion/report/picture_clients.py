"""Draw the clients: how much is known of the one who asked, and what the others lost."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from oblivion.report.comparison import Comparison, Standing, client_measure, client_names, own_entries
from oblivion.report.drawing import WIDTH, Mark, Scale, line, marks, picture, tag, text, tick_label, ticks
from oblivion.report.formatting import capital, number, plural, shorten

MOST = 25
"""The most clients that fit a page; of more, the picture keeps those that changed most."""
_LEFT, _RIGHT = 14.0, WIDTH - 14.0
_BOLD = 7.3
"""The width of a bold letter."""
_MOST_WITH_ORACLE = 40
"""The most bold letters beside which the words "oracle 0.12" still have room."""
_LANE, _WIDE_LANE = 11.0, 17.0


@dataclass(frozen=True)
class _Row:
    client: str
    title: str
    first: bool
    values: dict[str, float | None]
    reference: float | None


def shown_clients(comparison: Comparison) -> list[str]:
    """Return the clients in the picture: first the one who asked, then the others; of many, those that changed most.

    Parameters
    ----------
    comparison : Comparison
        The request's models.

    Returns
    -------
    list of str
        At most `MOST` others besides the entries of who asked.
    """
    names = client_names(comparison.request)
    own = [name for name in names if name in own_entries(comparison.request)]
    others = [name for name in names if name not in own]
    if len(others) <= MOST:
        return own + others
    reference, suite = comparison.oracle or comparison.original, comparison.suite

    def change(name: str) -> float:
        base = client_measure(reference.model, name, suite).value if reference else None
        values = [client_measure(standing.model, name, suite).value for standing in comparison.methods]
        return max((abs(value - base) for value in values if value is not None and base is not None), default=0.0)

    most = set(sorted(others, key=lambda name: (-change(name), name))[:MOST])
    return own + [name for name in others if name in most]


def _title(name: str, comparison: Comparison) -> str:
    request = comparison.request
    measures = [client_measure(model, name, comparison.suite) for model in request.models.values()]
    counts = {int(measure.n) for measure in measures if measure.value is not None and measure.n is not None}
    rows = f", {plural(counts.pop(), 'row')}" if len(counts) == 1 else ""
    if name == request.client:
        title = f"{shorten(name, 24)}{rows}"
        asked = f"{title}: asked to be forgotten"
        return asked if len(asked) <= _MOST_WITH_ORACLE else title
    return f"{shorten(name, 40)}{rows}"


def _lane(x: Scale, y: float, row: _Row, standing: Standing, look: Mark) -> Markup:
    value = row.values[standing.key]
    name = shorten(standing.label, 28)
    if value is None:
        return text(x.start + 4, y + 4, f"{name}: not measured", "small") if row.first else Markup("")
    drawn = Markup("")
    if row.reference is not None:
        drawn += line(x(row.reference), y, x(value), y, "stem", look.colour)
    drawn += look.draw(x(value), y, 4.5 if row.first else 3.8, f"{standing.label}: {number(value)}")
    if row.first:
        said = f"{name} {number(value)}"
        # The words stand outside the stem where there is room, so that they cross neither it nor the oracle's line.
        ends = (x(value), x(row.reference if row.reference is not None else value))
        right = max(ends) + 9 + len(said) * 6.2 <= WIDTH
        left = min(ends) - 9 - len(said) * 6.2 >= 0
        if right or not left:
            drawn += text(min(max(ends) + 9, WIDTH - len(said) * 6.2), y + 4, said, "small")
        else:
            drawn += text(min(ends) - 9, y + 4, said, "small", anchor="end")
    return drawn


def _legend(shown: list[Standing], looks: dict[str, Mark], with_oracle: bool) -> tuple[list[Markup], float]:
    parts, x, y = [], _LEFT + 5, 14.0
    entries = [(standing.label, looks[standing.key]) for standing in shown]
    for label, look in entries:
        label = shorten(label, 30)
        width = len(label) * 6.7 + 24
        if x + width > _RIGHT and x > _LEFT + 5:
            x, y = _LEFT + 5, y + 18
        parts += [look.draw(x, y - 4), text(x + 9, y, label)]
        x += width
    if with_oracle:
        if x + 150 > _RIGHT:
            x, y = _LEFT + 5, y + 18
        parts += [line(x, y - 10, x, y + 2, "reference"), text(x + 9, y, "oracle (never saw it)")]
    return parts, y + 12


def _rows(comparison: Comparison, shown: list[Standing]) -> list[_Row]:
    request, oracle, suite = comparison.request, comparison.oracle, comparison.suite
    rows = []
    for name in shown_clients(comparison):
        values = {standing.key: client_measure(standing.model, name, suite).value for standing in shown}
        reference = client_measure(oracle.model, name, suite).value if oracle else None
        if reference is not None or any(value is not None for value in values.values()):
            first = name in own_entries(request)[:2]
            rows.append(_Row(name, _title(name, comparison), first, values, reference))
    return rows


def _heading(x: Scale, y: float, bottom: float, row: _Row) -> list[Markup]:
    parts = [text(_LEFT, y + 16, row.title, "label", *(("strong",) if row.first else ()))]
    if row.reference is None:
        return parts
    at = x(row.reference)
    parts.append(line(at, y + 21, at, bottom - 1, "reference"))
    if row.first:
        said = f"oracle {number(row.reference)}"
        end = _LEFT + len(row.title) * _BOLD
        left = max(at - len(said) * 3.1, end + 8)
        parts.append(text(min(left, _RIGHT - len(said) * 6.2), y + 17, said, "small"))
    return parts


def _axis(x: Scale, top: float, bottom: float, noun: str, answers: str) -> tuple[list[Markup], list[Markup]]:
    anchors = ("start", *["middle"] * (len(x.marks) - 2), "end")
    grid = [line(x(value), top, x(value), bottom, "grid") for value in x.marks]
    words = [
        text(x(value), bottom + 14, tick_label(value), "small", anchor=anchor)
        for value, anchor in zip(x.marks, anchors, strict=True)
    ]
    said = f"{noun} of the client’s own {answers}"
    return grid, [*words, text(WIDTH / 2, bottom + 31, said, "small", anchor="middle")]


def _told(rows: list[_Row], shown: list[Standing]) -> str:
    return "; ".join(
        f"{row.client}: "
        + ", ".join(f"{standing.label} {number(row.values[standing.key])}" for standing in shown)
        + ("" if row.reference is None else f", oracle {number(row.reference)}")
        for row in rows
    )


def clients_picture(comparison: Comparison, key: str) -> Markup | None:
    """Draw every client's own number under every model, as a distance from the oracle's.

    Parameters
    ----------
    comparison : Comparison
        The request's models.
    key : str
        A key that is unique on the page.

    Returns
    -------
    Markup or None
        None where no client was measured.
    """
    shown = [standing for standing in comparison.standings if standing not in comparison.oracles[:1]]
    rows = _rows(comparison, shown)
    if not rows:
        return None
    measured = [value for row in rows for value in (*row.values.values(), row.reference) if value is not None]
    x = Scale(tuple(ticks(0.0, max(measured))), _LEFT, _RIGHT)
    looks = marks([standing.key for standing in comparison.standings])
    legend, y = _legend(shown, looks, comparison.oracle is not None)
    top, bands, body = y, [], []
    for row in rows:
        lane = _WIDE_LANE if row.first else _LANE
        bottom = y + 22 + lane * len(shown) + 4
        if row.first:
            bands.append(tag("rect", x=0.0, y=y + 2, width=WIDTH, height=bottom - y, rx=6.0, class_="band"))
        body += _heading(x, y, bottom, row)
        for index, standing in enumerate(shown):
            body.append(_lane(x, y + 22 + lane * (index + 0.5), row, standing, looks[standing.key]))
        y = bottom + 3
    noun, answers = comparison.suite.headline.own.noun, comparison.suite.headline.answers
    grid, words = _axis(x, top + 2, y, noun, answers)
    title = f"{capital(noun)} of each client’s own {answers}, {comparison.request.client} first"
    return picture(key, y + 38, title, _told(rows, shown), [*bands, *grid, *legend, *body, *words])
