"""The area under the ROC curve, with its 95 % interval (Hanley and McNeil, 1982, Radiology 143:29-36).

The interval of the difference of two areas on the same rows is that of DeLong et al. (1988, Biometrics 44:837-845).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from oblivion.metrics.engine.averages import Z95

Scores = tuple[Sequence[float], Sequence[float]]
"""The scores of the negatives and of the positives."""


def auc(negatives: Sequence[float], positives: Sequence[float]) -> float:
    """Return the probability that a random positive scores above a random negative; ties count one half.

    Parameters
    ----------
    negatives, positives : sequence of float
        Scores of the two classes; at least one each.

    Returns
    -------
    float
        In [0, 1]; the Mann-Whitney statistic over the number of pairs, counted exactly.
    """
    low = np.sort(np.asarray(negatives, dtype=np.float64))
    high = np.asarray(positives, dtype=np.float64)
    below = int(np.searchsorted(low, high, side="left").sum())
    not_above = int(np.searchsorted(low, high, side="right").sum())
    return (below + not_above) / (2 * len(low) * len(high))


def auc_interval(area: float, negatives: int, positives: int) -> tuple[float, float]:
    """Return the 95 % interval of an AUC by Hanley and McNeil's standard error, cut to [0, 1].

    Parameters
    ----------
    area : float
        The AUC.
    negatives, positives : int
        Rows of the two classes.

    Notes
    -----
    With ``Q1 = A / (2 - A)`` and ``Q2 = 2 A^2 / (1 + A)`` the variance is
    ``(A (1 - A) + (p - 1) (Q1 - A^2) + (n - 1) (Q2 - A^2)) / (n p)``. It is zero at A = 0 and A = 1, where the
    interval says nothing about how few rows there were.
    """
    q1 = area / (2 - area)
    q2 = 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    half = Z95 * float(np.sqrt(max(spread, 0.0) / (negatives * positives)))
    return max(0.0, area - half), min(1.0, area + half)


def difference_half_width(one: Scores, other: Scores) -> float | None:
    """Return half the width of the 95 % interval of the difference of two AUCs that were measured on the same rows.

    Rows that both models find equally hard do not count as noise, so the same scores give 0. None with fewer than two
    rows in a class.
    """
    if min(len(one[0]), len(one[1])) < 2:
        return None
    gaps = [mine - theirs for mine, theirs in zip(_shares(*one), _shares(*other), strict=True)]
    return Z95 * float(np.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps)))


def _shares(negatives: Sequence[float], positives: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each negative's share of positives above it, and each positive's share of negatives below it."""
    low, high = np.sort(np.asarray(negatives, dtype=np.float64)), np.sort(np.asarray(positives, dtype=np.float64))
    under = [np.searchsorted(high, np.asarray(negatives, dtype=np.float64), side=side) for side in ("left", "right")]
    over = [np.searchsorted(low, np.asarray(positives, dtype=np.float64), side=side) for side in ("left", "right")]
    return 1 - (under[0] + under[1]) / (2 * len(high)), (over[0] + over[1]) / (2 * len(low))
