"""Forget quality (Maini et al., 2024, TOFU): how well a model passes for one that never saw the forget rows.

It is the p-value of the two-sample Kolmogorov-Smirnov test between the truth ratios R on the forget rows of this model
and of one that never saw them. It depends on the number of rows (40 can hardly reject, 400 give 1e-20), so the KS
statistic stands beside it: the largest distance between the two distributions, 0 to 1. And with both stands the
distance that so many rows can detect: what must be exceeded for a p-value below 0.05, by the asymptotic
``sqrt(-ln(0.05 / 2) / 2 * (n + m) / (n m))`` for n and m rows (Smirnov, 1948, Ann. Math. Statist. 19:279-281).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.errors import InputError
from oblivion.metrics.engine.context import REFERENCE, SHARE, EvaluationContext, score_of
from oblivion.metrics.truth_ratio import TruthRatio
from oblivion.types import MetricResult

RATIOS = TruthRatio("forget", "closer_to_1_better")
NAMES = ("forget_TR__closer_to_1_better", "forget_truth_ratio")
"""The metric in which a reference keeps its R per row: our name, and open-unlearning's."""


ENOUGH = 0.31
"""If the rows can detect nothing below this distance, the p-value is not shown; TOFU's 40 rows can detect 0.304."""


def ks_test(ratios: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """Compute the two-sample Kolmogorov-Smirnov test.

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


def detectable(rows: int, others: int) -> float:
    """Return the KS statistic that two samples of these sizes must exceed to differ at 5 %; above 1 nothing can."""
    return math.sqrt(-math.log(0.05 / 2) / 2 * (rows + others) / (rows * others))


@dataclass(frozen=True)
class _KSTest(abc.ABC):
    """The test between this model's truth ratios and the reference's; subclasses choose its value."""

    value_range: ClassVar[tuple[float, float]] = SHARE

    @staticmethod
    @abc.abstractmethod
    def choose(p: float, statistic: float) -> float:
        """Return the number that is the value."""

    @property
    def requires(self) -> frozenset[str]:
        """Ask for the truth ratios of the forget rows, and for the reference's."""
        return RATIOS.requires | {REFERENCE}

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Return the number, with the statistic that so many rows can detect; fewer than two rows have no value."""
        result, reference = context.result(RATIOS), context.reference_result(*NAMES)
        asked = {str(row.index) for row in context.select("forget", RATIOS.right, "wrong")}
        left_out = reference.extra.get("left_out", 0)
        if not reference.per_example.keys() <= asked or len(reference.per_example) + left_out != len(asked):
            raise InputError(
                f"the reference was evaluated on {len(reference.per_example) + left_out} forget rows and this model on "
                f"{len(asked)}, or on other ones; evaluate both on the same data, with the same --split, --limit and "
                "template"
            )
        mine = [row["score"] for row in result.per_example.values()]
        theirs = [score_of(row, f"{NAMES[0]}, row {index},") for index, row in reference.per_example.items()]
        extra = {"detectable": detectable(len(mine), len(theirs))} if mine and theirs else {}
        fewest = min(len(mine), len(theirs))
        if fewest < 2:
            reason = result.reason or f"{'one row' if fewest else 'no row'} is no distribution that could be compared"
            return MetricResult(value=None, n=len(mine), reason=reason, extra=extra)
        return MetricResult(value=self.choose(*ks_test(mine, theirs)), n=len(mine), extra=extra)


class ForgetQuality(_KSTest):
    """p-value of the KS test between this model's truth ratios and the reference's; 1 is ideal."""

    @staticmethod
    def choose(p: float, statistic: float) -> float:
        """Return the p-value of the test."""
        return p


class KSStatistic(_KSTest):
    """Largest distance between the distributions of truth ratios, this model's and the reference's; 0 is ideal."""

    @staticmethod
    def choose(p: float, statistic: float) -> float:
        """Return the statistic of the test."""
        return statistic
