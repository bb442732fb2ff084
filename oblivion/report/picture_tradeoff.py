"""Draw the trade-off: the distance of the forgetting to the oracle, against what the model is still good for."""

from __future__ import annotations

from markupsafe import Markup

from oblivion.report.comparison import Comparison
from oblivion.report.drawing import WIDTH, Labels, Scale, left_margin, line, marks, picture, text, tick_label, ticks
from oblivion.report.formatting import number, signed

HEIGHT = 330.0
_RIGHT, _TOP, _BOTTOM = WIDTH - 12.0, 26.0, HEIGHT - 56.0


def _frame(x: Scale, y: Scale, comparison: Comparison) -> list[Markup]:
    left = x.start
    parts = [line(x(value), _TOP, x(value), _BOTTOM, "grid") for value in x.marks]
    parts += [line(left, y(value), _RIGHT, y(value), "grid") for value in y.marks]
    parts += [text(x(value), _BOTTOM + 15, tick_label(value), "small", anchor="middle") for value in x.marks]
    parts += [text(left - 6, y(value) + 4, tick_label(value), "small", anchor="end") for value in y.marks]
    said = f"forget {comparison.number.noun} minus the oracle’s (0 = never saw it)"
    parts.append(text((left + _RIGHT) / 2, _BOTTOM + 32, said, "small", anchor="middle"))
    low, high = comparison.suite.headline.overdone_short, "still remembers"
    if not comparison.number.higher_remembers:
        low, high = high, low
    parts.append(text(left, _BOTTOM + 49, f"← {low}", "small"))
    parts.append(text(_RIGHT, _BOTTOM + 49, f"{high} →", "small", anchor="end"))
    parts.append(text(4, 12, f"↑ {comparison.utility_name}", "small"))
    return parts


def tradeoff_picture(comparison: Comparison, key: str) -> Markup | None:
    """Draw each model as a point: its signed distance to the oracle across, its utility up.

    Parameters
    ----------
    comparison : Comparison
        The request's models.
    key : str
        A key that is unique on the page.

    Returns
    -------
    Markup or None
        None where no model has both numbers (without an oracle there is no distance).
    """
    points = [
        (standing, standing.distance, standing.utility)
        for standing in comparison.standings
        if standing.distance is not None and standing.utility is not None
    ]
    if not points:
        return None
    across = [distance for _, distance, _ in points]
    y = Scale(tuple(ticks(0.0, max(useful for _, _, useful in points) or 1.0)), _BOTTOM, _TOP)
    left = left_margin(y.marks)
    x = Scale(tuple(ticks(min(*across, -0.05), max(*across, 0.05))), left, _RIGHT)
    looks = marks([standing.key for standing in comparison.standings])
    labels = Labels(frame=(left + 2, _TOP - 10, WIDTH - 2, _BOTTOM - 1))
    parts = _frame(x, y, comparison)
    parts.append(line(x(0.0), _TOP, x(0.0), _BOTTOM, "reference"))
    goal = comparison.oracle.utility if comparison.oracle else None
    if goal is not None:
        labels.taken.append((left, y(goal) - 1, _RIGHT, y(goal) + 1))
        parts.append(line(left, y(goal), _RIGHT, y(goal), "reference", "dashed"))
    for _, distance, useful in points:
        labels.avoid(x(distance), y(useful), 6.5)
    words, dots = [], []
    for standing, distance, useful in points:
        strong = () if standing in comparison.methods else ("strong",)
        words.append(labels.place(x(distance), y(useful), standing.label, *strong))
        hint = f"{standing.label}: distance {signed(distance)}, {comparison.utility_name} {number(useful)}"
        # The oracle is a large open diamond, inside which a method that reached it can be seen.
        size = 8.0 if standing in comparison.oracles else 5.5
        dots.append(looks[standing.key].draw(x(distance), y(useful), size, hint))
    told = "; ".join(
        f"{standing.label}: {signed(distance)} off the oracle, {comparison.utility_name} {number(useful)}"
        for standing, distance, useful in points
    )
    title = f"Forgetting against {comparison.utility_name}"
    return picture(key, HEIGHT, title, told, [*parts, *words, *dots])
