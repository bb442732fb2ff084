"""Draw the costs: what each model took, as a share of training again without the data."""

from __future__ import annotations

from markupsafe import Markup

from oblivion.report.comparison import Comparison, Standing
from oblivion.report.drawing import WIDTH, Scale, line, marks, picture, tag, text, tick_label, ticks
from oblivion.report.formatting import count, megabytes, number, shorten

_LEFT, _RIGHT = 14.0, WIDTH - 14.0
_ROW = 52.0


def cost_line(standing: Standing, token: str = "token") -> str:
    """Return client-steps, tokens and traffic of a model in one line; what was not recorded is left out."""
    cost = standing.model.cost
    parts = [
        (cost.client_steps, f"{count(cost.client_steps)} client-step{'' if cost.client_steps == 1 else 's'}"),
        (cost.tokens, f"{count(cost.tokens)} {token}s"),
        (cost.bytes_up, f"{megabytes(cost.bytes_up)} up"),
        (cost.bytes_down, f"{megabytes(cost.bytes_down)} down"),
    ]
    return ", ".join(said for value, said in parts if value is not None)


def costs_picture(comparison: Comparison, key: str) -> Markup | None:
    """Draw one bar per model: client-steps as a share of retraining.

    Parameters
    ----------
    comparison : Comparison
        The request's models.
    key : str
        A key that is unique on the page.

    Returns
    -------
    Markup or None
        None where no cost was recorded.
    """
    token = comparison.suite.headline.token
    shown = [standing for standing in comparison.standings if cost_line(standing) or standing.model.cost.fraction]
    if not shown:
        return None
    top = max([1.0, *(standing.model.cost.fraction or 0.0 for standing in shown)])
    x = Scale(tuple(ticks(0.0, top)), _LEFT, _RIGHT)
    looks = marks([standing.key for standing in comparison.standings])
    y, body, told = 8.0, [], []
    for standing in shown:
        fraction, facts = standing.model.cost.fraction, cost_line(standing, token)
        share = "" if fraction is None else f": {number(fraction)} × retraining"
        if fraction is not None and standing.model.cost.token_fraction is not None:
            share = f": {number(fraction)} × ({token}s: {number(standing.model.cost.token_fraction)} ×)"
        said = f"{shorten(standing.label, 30)}{share}"
        body.append(looks[standing.key].draw(_LEFT + 5, y + 7, 4.5))
        body.append(text(_LEFT + 16, y + 11, said, "label", "strong"))
        if fraction is None:
            body.append(text(_LEFT, y + 26, facts, "small"))
            y += _ROW - 14
        else:
            width = max(x(max(fraction, 0.0)) - _LEFT, 1.5)
            colour = looks[standing.key].colour
            body.append(tag("rect", x=_LEFT, y=y + 17, width=width, height=9.0, class_=f"bar {colour}"))
            body.append(text(_LEFT, y + 39, facts or "not recorded", "small"))
            y += _ROW
        told.append(f"{said}; {facts}")
    axis = [line(x(value), 4, x(value), y, "grid") for value in x.marks]
    anchors = ("start", *["middle"] * (len(x.marks) - 2), "end")
    words = [
        text(x(value), y + 14, tick_label(value), "small", anchor=anchor)
        for value, anchor in zip(x.marks, anchors, strict=True)
    ]
    words.append(text(WIDTH / 2, y + 31, "client-steps, 1 = retraining without the data", "small", anchor="middle"))
    goal = line(x(1.0), 4, x(1.0), y, "reference", "dashed")
    return picture(key, y + 38, "Cost of each model", "; ".join(told), [*axis, goal, *body, *words])
