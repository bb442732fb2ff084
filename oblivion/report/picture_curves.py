"""Draw the learning curves: the mean loss of every round, with one line per branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from oblivion.report.comparison import ORACLE, ORIGINAL, is_oracle
from oblivion.report.drawing import WIDTH, Mark, Scale, left_margin, line, marks, picture, tag, text, tick_label, ticks
from oblivion.report.formatting import number, shorten
from oblivion.run.records import RoundEntry, RunRecord

PLOT = 210.0
DASHES = 5
_EDGE, _RIGHT, _TOP = 40.0, WIDTH - 12.0, 26.0


@dataclass(frozen=True)
class Branch:
    """A line of rounds.

    Attributes
    ----------
    name : str
        As the run wrote it, such as ``main`` or ``req-1f/local``.
    rounds : tuple of RoundEntry
        In the order of the file.
    """

    name: str
    rounds: tuple[RoundEntry, ...]

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Return (round, loss) where a loss was measured."""
        return [(entry.round, entry.loss) for entry in self.rounds if entry.loss is not None]

    def total(self, what: str) -> float | None:
        """Return the sum over the rounds of ``refused``, ``failed`` or ``seconds``; None where nothing was recorded."""
        values = [value for entry in self.rounds if (value := getattr(entry, what)) is not None]
        return sum(values) if values else None


def branches(metrics: RunRecord) -> list[Branch]:
    """Return the run's branches in order of first appearance."""
    grouped: dict[str, list[RoundEntry]] = {}
    for entry in metrics.history:
        grouped.setdefault(entry.branch, []).append(entry)
    return [Branch(name, tuple(rounds)) for name, rounds in grouped.items()]


def _looks(metrics: RunRecord, shown: Sequence[Branch]) -> dict[str, Mark]:
    # The branch of a removal, "<request id>/<method>", looks like its model in the other pictures.
    known: dict[str, Mark] = {}
    for request in metrics.requests:
        for key, look in marks(list(request.models)).items():
            known[f"{request.id}/{key}"] = look
    # The first of the other branches is where learning began, and "oracle" and ".../oracle" are oracles.
    rest = [branch.name for branch in shown if branch.name not in known]
    keys = {name: name.rsplit("/", 1)[-1] for name in rest}
    oracles = {name for name in rest if is_oracle(keys[name])}
    others = [name for name in rest if name not in oracles]
    looks = marks([ORIGINAL, *others[1:]])
    for name in rest:
        known[name] = marks([ORACLE])[ORACLE] if name in oracles else looks[ORIGINAL if name == others[0] else name]
    return known


def _curve(branch: Branch, index: int, look: Mark, x: Scale, y: Scale) -> list[Markup]:
    points = [(x(float(number_)), y(loss)) for number_, loss in branch.losses]
    path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
    parts = [tag("path", d=path, class_=f"curve {look.colour} dash{index % DASHES}")] if len(points) > 1 else []
    # Markers on the first, the last and every few points tell the lines apart without colour.
    step = max(1, len(points) // 5)
    chosen = sorted({*range(0, len(points), step), len(points) - 1})
    rounds = branch.losses
    parts += [
        look.draw(points[at][0], points[at][1], 3.5, f"{branch.name}, round {rounds[at][0]}: {number(rounds[at][1])}")
        for at in chosen
    ]
    return parts


def _legend(shown: Sequence[Branch], looks: dict[str, Mark], top: float) -> list[Markup]:
    parts = []
    for index, branch in enumerate(shown):
        y = top + 17 * index
        look = looks[branch.name]
        parts.append(line(_EDGE, y, _EDGE + 30, y, "curve", look.colour, f"dash{index % DASHES}"))
        parts.append(look.draw(_EDGE + 15, y, 3.5))
        first, last = branch.losses[0][1], branch.losses[-1][1]
        change = f"{number(first)} → {number(last)}" if len(branch.losses) > 1 else number(last)
        parts.append(text(_EDGE + 38, y + 4, f"{shorten(branch.name, 32)}: {change}", "label"))
    return parts


def _arrivals(metrics: RunRecord, x: Scale, first: int, last: int) -> list[Markup]:
    joined: dict[int, list[str]] = {}
    for request in metrics.requests:
        if request.t_u is not None and first <= request.t_u <= last:
            joined.setdefault(request.t_u, []).append(request.client)
    parts = []
    for index, (at, clients) in enumerate(sorted(joined.items())):
        said = f"{shorten(', '.join(dict.fromkeys(clients)), 24)} first selected"
        right = x(float(at)) < WIDTH / 2
        parts.append(line(x(float(at)), _TOP, x(float(at)), _TOP + PLOT, "reference", "dashed"))
        side, anchor = (5, "start") if right else (-5, "end")
        parts.append(text(x(float(at)) + side, _TOP + 10 + 14 * (index % 4), said, "small", anchor=anchor))
    return parts


def curves_picture(metrics: RunRecord, key: str, token: str = "token") -> Markup | None:
    """Draw the mean training loss by round for every branch, and when each client who asked came in.

    Parameters
    ----------
    metrics : RunRecord
        The record of one run.
    key : str
        A key that is unique on the page.
    token : str, default "token"
        What the mean is over, in the words of the run's suite.

    Returns
    -------
    Markup or None
        None where no loss was recorded.
    """
    shown = [branch for branch in branches(metrics) if branch.losses]
    if not shown:
        return None
    rounds = [number_ for branch in shown for number_, _ in branch.losses]
    losses = [loss for branch in shown for _, loss in branch.losses]
    last = max(max(rounds), min(rounds) + 1)
    step = max(1, -(-(last - min(rounds)) // 8))
    y = Scale(tuple(ticks(min(0.0, min(losses)), max(losses) or 1.0)), _TOP + PLOT, _TOP)
    left = left_margin(y.marks)
    x = Scale((float(min(rounds)), float(last)), left + 8, _RIGHT - 8)
    parts = [line(left, y(value), _RIGHT, y(value), "grid") for value in y.marks]
    parts += [text(left - 6, y(value) + 4, tick_label(value), "small", anchor="end") for value in y.marks]
    for at in range(min(rounds), last + 1, step):
        parts.append(text(x(float(at)), _TOP + PLOT + 16, str(at), "small", anchor="middle"))
    parts.append(text((left + _RIGHT) / 2, _TOP + PLOT + 32, "round", "small", anchor="middle"))
    parts.append(text(4, 12, f"↑ mean loss (nats per {token})", "small"))
    parts += _arrivals(metrics, x, min(rounds), last)
    looks = _looks(metrics, shown)
    curves = [part for i, branch in enumerate(shown) for part in _curve(branch, i, looks[branch.name], x, y)]
    top = _TOP + PLOT + 52
    told = "; ".join(
        f"{branch.name}: {number(branch.losses[0][1])} in round {branch.losses[0][0]}, "
        f"{number(branch.losses[-1][1])} in round {branch.losses[-1][0]}"
        for branch in shown
    )
    height = top + 17 * len(shown) - 4
    return picture(key, height, "Mean loss by round", told, [*parts, *curves, *_legend(shown, looks, top)])
