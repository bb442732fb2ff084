"""Write numbers as readers see them: short, with a real minus sign, and honest about what was not measured."""

from __future__ import annotations

import math

NOT_MEASURED = "not measured"
_SUPERSCRIPT = str.maketrans("-.0123456789", "⁻·⁰¹²³⁴⁵⁶⁷⁸⁹")
_WORDS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


def power_of_ten(exponent: float) -> str:
    """Write ``10⁻⁷``, and ``10⁻⁶·⁴`` for a whole number of tenths."""
    shown = f"{exponent:.1f}".removesuffix(".0")
    return f"10{shown.translate(_SUPERSCRIPT)}"


def scientific(value: float | None) -> str:
    """Write a positive number as ``4.2·10⁻⁷``; 0 and numbers from 0.01 to 1000 stay plain."""
    if value is None:
        return NOT_MEASURED
    if value == 0 or 0.01 <= abs(value) < 1000:
        return number(value)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}·{power_of_ten(int(exponent))}".replace("-", "−")


def number(value: float | None) -> str:
    """Write two decimals where that says something, more for small numbers, fewer for large ones.

    >>> number(0.712), number(0.0312), number(0.02), number(-98.27), number(None)
    ('0.71', '0.031', '0.02', '−98.3', 'not measured')
    """
    if value is None:
        return NOT_MEASURED
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-4:
        return scientific(value)
    # There are decimals for two significant digits, and at least two decimals below 10.
    decimals = 0 if size >= 100 else 1 if size >= 10 else max(2, 1 - math.floor(math.log10(size)))
    shown = f"{value:.{decimals}f}"
    while decimals > 2 and shown.endswith("0"):
        decimals, shown = decimals - 1, shown[:-1]
    return shown.replace("-", "−")


def signed(value: float) -> str:
    """Write a difference with its sign: ``+0.03``, ``−0.12``; what would round to ``0.00`` is ``±0``."""
    if abs(value) < 5e-4:
        return "±0"
    return number(value) if value < 0 else f"+{number(value)}"


def percent(share: float) -> str:
    """Write a share as a whole percentage, with a space that does not break: ``95 %``."""
    return f"{share * 100:.0f}\u00a0%".replace("-", "−")


def count(value: float | None) -> str:
    """Write a whole number: thousands apart up to a million, then ``1.2 M``, ``3.4 G``."""
    if value is None:
        return NOT_MEASURED
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.1f}\u00a0{unit}"
    return f"{value:,.0f}".replace(",", "\u202f")


def megabytes(value: float | None) -> str:
    """Write bytes as megabytes (1 MB = 10**6 bytes)."""
    if value is None:
        return NOT_MEASURED
    size = value / 1e6
    return f"{size:.0f}\u00a0MB" if size >= 100 else f"{size:.2g}\u00a0MB"


def in_words(value: int) -> str:
    """Write small counts as words, others as digits."""
    return _WORDS[value] if 0 <= value < len(_WORDS) else str(value)


def plural(value: int, noun: str) -> str:
    """Write a count with its noun: ``1 client``, ``8 clients``."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def capital(text: str) -> str:
    """Return the text with its first letter as a capital, and the others as they are."""
    return text[:1].upper() + text[1:]


def shorten(text: str, length: int) -> str:
    """Cut `text` to at most `length` characters, with an ellipsis where something is missing."""
    return text if len(text) <= length else text[: length - 1] + "…"
