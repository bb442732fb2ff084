"""How many steps a visit takes, and how DP-SGD draws the samples of a step."""

from __future__ import annotations

WINDOW = 8
"""The number of batches among which rows are sorted by length; see `oblivion.training.batches.epochs`."""


def steps_per_visit(rows: int, batch_size: int, count: int) -> int:
    """Return the number of optimizer steps of `count` passes over `rows` rows."""
    window = batch_size * WINDOW
    full, rest = divmod(rows, window)
    return count * (full * WINDOW + -(-rest // batch_size))


def sampling_rate(samples: int, batch_size: int) -> float:
    """Return the probability with which a step of DP-SGD draws a sample; 1 if one batch can hold all samples."""
    return min(1.0, batch_size / samples)
