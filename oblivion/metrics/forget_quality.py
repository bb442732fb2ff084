"""Forget quality (Maini et al., 2024, TOFU): how well a model passes for one that never saw the forget rows.

The p-value of the two-sample Kolmogorov-Smirnov test between the truth ratios R on the forget rows of this model
and of one that never saw them. It depends on the number of rows (40 can hardly reject, 400 give 1e-20), so the KS
statistic stands beside it: the largest distance between the two distributions, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oblivion.errors import InputError
from oblivion.metrics.context import REFERENCE, EvaluationContext
from oblivion.metrics.truth_ratio import TruthRatio
from oblivion.types import MetricResult

RATIOS = TruthRatio("forget", "closer_to_1_better")
NAMES = ("forget_TR__closer_to_1_better", "forget_truth_ratio")
"""Where a reference keeps its R per row: our name, and open-unlearning's."""


def ks_test(ratios: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """Two-sample Kolmogorov-Smirnov test.

    Returns
    -------
    tuple of float
        p-value (exact for small samples, as SciPy decides) and statistic.

    Raises
    ------
    InputError
        If one of the two samples is empty.
    """
    if not len(ratios) or not len(reference):
        raise InputError(
            f"forget quality compares truth ratios of two models; there are {len(ratios)} of this model "
            f"and {len(reference)} of the reference"
        )
    from scipy.stats import ks_2samp

    outcome = ks_2samp(ratios, reference)
    return float(outcome.pvalue), float(outcome.statistic)


def _compare(context: EvaluationContext) -> tuple[float, float, int]:
    mine, theirs = context.result(RATIOS).per_example, context.reference_result(*NAMES).per_example
    if mine.keys() != theirs.keys():
        raise InputError(
            f"the reference was evaluated on {len(theirs)} forget rows and this model on {len(mine)}, or on other "
            "ones; evaluate both on the same data, with the same --split, --limit and template"
        )
    try:
        reference = [float(row["score"]) for row in theirs.values()]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"the reference's {NAMES[0]} has a row without a number called 'score'") from None
    p, statistic = ks_test([row["score"] for row in mine.values()], reference)
    return p, statistic, len(mine)


@dataclass(frozen=True)
class ForgetQuality:
    """p-value of the KS test between this model's truth ratios and the reference's; 1 is ideal."""

    @property
    def requires(self) -> frozenset[str]:
        """Truth ratios of the forget rows, and the reference's."""
        return RATIOS.requires | {REFERENCE}

    def compute(self, context: EvaluationContext) -> MetricResult:
        """The p-value."""
        p, _, n = _compare(context)
        return MetricResult(value=p, n=n)


@dataclass(frozen=True)
class KSStatistic:
    """Largest distance between the distributions of truth ratios, this model's and the reference's; 0 is ideal."""

    @property
    def requires(self) -> frozenset[str]:
        """Truth ratios of the forget rows, and the reference's."""
        return RATIOS.requires | {REFERENCE}

    def compute(self, context: EvaluationContext) -> MetricResult:
        """The statistic."""
        _, statistic, n = _compare(context)
        return MetricResult(value=statistic, n=n)
