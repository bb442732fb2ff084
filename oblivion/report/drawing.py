"""Write SVG by hand: escaped elements, axis ticks, markers, and labels that keep apart.

Colours are classes (``k0``, ``k1``, ...), so that the style sheet decides them for light, dark and print;
every model has a shape of its own besides, so that a picture can be read without colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from oblivion.report.comparison import ORIGINAL, is_oracle
from oblivion.report.formatting import shorten

WIDTH = 400.0
"""The width of every picture in user units: about that of a phone, so that text keeps its size there."""
FONT = 12.0
SMALL = 11.0
_GLYPH = 0.56
_SHAPES = ("square", "up", "down", "cross", "hexagon", "plus")
_COLOURS = 6


def tag(name: str, *children: Markup | str, **attributes: str | float) -> Markup:
    """Make one SVG element; ``class_`` is written ``class`` and ``text_anchor`` is written ``text-anchor``."""
    written = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    )
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inside)


def text(x: float, y: float, content: str, *classes: str, anchor: str = "start") -> Markup:
    """Draw one line of text with its baseline at `y`."""
    return tag("text", content, x=x, y=y, text_anchor=anchor, class_=" ".join(classes) or "label")


def line(x1: float, y1: float, x2: float, y2: float, *classes: str) -> Markup:
    """Draw a straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=" ".join(classes))


def picture(key: str, height: float, title: str, description: str, parts: Sequence[Markup]) -> Markup:
    """Make a whole picture that scales with the page and tells screen readers what it shows.

    Parameters
    ----------
    key : str
        A key that is unique on the page, of letters, digits and hyphens.
    height : float
        The height in user units; the width is `WIDTH`.
    title, description : str
        What screen readers say instead of the picture.
    parts : sequence of Markup
        What is drawn, back to front.

    Returns
    -------
    Markup
        An ``<svg>`` element without a name space, as HTML takes it inline.
    """
    return tag(
        "svg",
        tag("title", title, id=f"{key}-title"),
        tag("desc", description, id=f"{key}-desc"),
        *parts,
        viewBox=f"0 0 {WIDTH:.0f} {height:.0f}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers from `low` or below to `high` or above, spaced by 1, 2 or 5 times a power of ten."""
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_label(value: float) -> str:
    """Write a tick without digits that say nothing."""
    return f"{value:.6g}".replace("-", "−")


def left_margin(values: Sequence[float], least: float = 40.0) -> float:
    """Return where a plot begins, so that the numbers along its upright axis have room on its left."""
    return max(least, 12 + max(text_width(tick_label(value), SMALL) for value in values))


@dataclass(frozen=True)
class Scale:
    """A linear map from numbers to user units; `marks` are its ticks and its ends are the outermost two."""

    marks: tuple[float, ...]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return where `value` lies, in user units."""
        low, high = self.marks[0], self.marks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)


@dataclass(frozen=True)
class Mark:
    """How a model looks in every picture: a colour class and a shape."""

    colour: str
    shape: str

    def draw(self, x: float, y: float, size: float = 4.5, name: str = "") -> Markup:
        """Draw the marker at (x, y), `size` units in radius, with `name` as its tooltip."""
        hint = (tag("title", name),) if name else ()
        return tag("path", *hint, d=_outline(self.shape, x, y, size), class_=f"mark {self.colour} {self.shape}")


def _polygon(x: float, y: float, size: float, degrees: Sequence[float]) -> str:
    corners = [
        (x + size * math.cos(math.radians(angle)), y - size * math.sin(math.radians(angle))) for angle in degrees
    ]
    return "M" + "L".join(f"{cx:.1f} {cy:.1f}" for cx, cy in corners) + "Z"


def _outline(shape: str, x: float, y: float, size: float) -> str:
    if shape == "circle":
        half = f"a{size:.1f} {size:.1f} 0 1 0"
        return f"M{x - size:.1f} {y:.1f}{half} {2 * size:.1f} 0{half} {-2 * size:.1f} 0Z"
    if shape == "cross":
        d = size * 0.8
        falling = f"M{x - d:.1f} {y - d:.1f}L{x + d:.1f} {y + d:.1f}"
        return f"{falling}M{x - d:.1f} {y + d:.1f}L{x + d:.1f} {y - d:.1f}"
    if shape == "plus":
        return f"M{x - size:.1f} {y:.1f}H{x + size:.1f}M{x:.1f} {y - size:.1f}V{y + size:.1f}"
    degrees = {
        "diamond": (90, 0, 270, 180),
        "square": (45, 315, 225, 135),
        "up": (90, 330, 210),
        "down": (270, 30, 150),
        "hexagon": (0, 60, 120, 180, 240, 300),
    }[shape]
    return _polygon(x, y, size * 1.2, degrees)


def marks(keys: Sequence[str]) -> dict[str, Mark]:
    """Choose a look for every model: a ring for the original, a diamond for oracles, other shapes for methods."""
    looks: dict[str, Mark] = {}
    methods = 0
    for key in keys:
        if key == ORIGINAL:
            looks[key] = Mark("original", "circle")
        elif is_oracle(key):
            looks[key] = Mark("oracle", "diamond")
        else:
            # On the second pass through the colours, shapes move on by one, so that no two of 36 methods look the same.
            turn, colour = divmod(methods, _COLOURS)
            looks[key] = Mark(f"k{colour}", _SHAPES[(colour + turn) % len(_SHAPES)])
            methods += 1
    return looks


def icon(look: Mark) -> Markup:
    """Draw the marker alone, as small as a letter, for the head of a table; screen readers pass over it."""
    return tag("svg", look.draw(8.0, 8.0, 5.0), viewBox="0 0 16 16", aria_hidden="true")


def text_width(content: str, size: float = FONT) -> float:
    """Estimate how wide `content` is, in user units: the page's font is the reader's, so this errs on wide."""
    return len(content) * size * _GLYPH


@dataclass
class Labels:
    """Places labels beside points so that none covers another label, a point, or leaves the frame.

    Attributes
    ----------
    frame : tuple of float
        Left, top, right, bottom.
    taken : list of tuple of float
        Boxes that are in use already (left, top, right, bottom).
    """

    frame: tuple[float, float, float, float]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def avoid(self, x: float, y: float, radius: float) -> None:
        """Keep labels off the point at (x, y)."""
        self.taken.append((x - radius, y - radius, x + radius, y + radius))

    def _free(self, box: tuple[float, float, float, float]) -> bool:
        left, top, right, bottom = self.frame
        if box[0] < left or box[1] < top or box[2] > right or box[3] > bottom:
            return False
        return all(
            box[2] <= other[0] or box[0] >= other[2] or box[3] <= other[1] or box[1] >= other[3] for other in self.taken
        )

    def place(self, x: float, y: float, content: str, *classes: str) -> Markup:
        """Write `content` near (x, y), joined to the point by a thin line where it had to move away."""
        content = shorten(content, 26)
        width, height = text_width(content), FONT
        frame_left, _, frame_right, _ = self.frame
        for distance in range(0, 160, 7):
            for dx, dy in ((9, 4), (-9 - width, 4), (-width / 2, -9), (-width / 2, 17)):
                shift = -distance if dy < 0 else distance
                for move in (shift, -shift):
                    left = min(max(x + dx, frame_left), frame_right - width)
                    base = y + dy + move
                    box = (left - 2, base - height, left + width + 2, base + 4)
                    if self._free(box):
                        self.taken.append(box)
                        words = text(left, base, content, "label", *classes)
                        if distance < 14:
                            return words
                        edge = left if left > x else left + width if left + width < x else x
                        near = base + 4 if base < y else base - height + 1
                        return line(x, y, edge, near, "leader") + words
        return text(min(x + 9, frame_right - width), y + 4, content, "label", *classes)
