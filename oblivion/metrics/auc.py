"""Area under the ROC curve, with its 95 % interval (Hanley and McNeil, 1982, Radiology 143:29-36)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from oblivion.metrics.averages import Z95


def auc(negatives: Sequence[float], positives: Sequence[float]) -> float:
    """Probability that a random positive scores above a random negative; ties count one half.

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
    """95 % interval of an AUC by Hanley and McNeil's standard error, cut to [0, 1].

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
