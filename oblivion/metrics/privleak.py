"""PrivLeak (Shi et al., 2024, MUSE): the min-k attack on the model against the one on the reference.

``100 ((1 - AUC) - (1 - AUC_ref)) / (1 - AUC_ref + 1e-10)``. The complements are there because MUSE's own AUC
counts forget rows as positive. 0 is ideal, about -100 a model that was not unlearned, above 0 over-unlearning.
"""

from __future__ import annotations

from dataclasses import dataclass

from oblivion.errors import InputError
from oblivion.metrics.context import DetailedResult, EvaluationContext
from oblivion.metrics.mia_min_k import MinKAttack
from oblivion.types import MetricResult

CHANCE = 0.5
"""AUC of an attack that learns nothing."""

EPSILON = 1e-10


def privleak(auc: float, reference_auc: float) -> float:
    """PrivLeak in percent from two AUCs with forget rows as label 0."""
    return 100 * ((1 - auc) - (1 - reference_auc)) / (1 - reference_auc + EPSILON)


@dataclass(frozen=True)
class PrivLeak:
    """Leakage in percent of the reference's AUC; without a reference, of an attack at chance (`auc_reference` 0.5)."""

    k: float = 0.4

    @property
    def requires(self) -> frozenset[str]:
        """The same as the min-k attack; a reference is used if there is one."""
        return MinKAttack(self.k).requires

    def compute(self, context: EvaluationContext) -> MetricResult:
        """The value with the attack's interval; the reference's AUC is taken as exact and shown beside it."""
        attack = context.result(MinKAttack(self.k))
        reference = CHANCE
        if context.reference is not None:
            given = context.reference_result("mia_min_k").value
            if given is None:
                raise InputError("the reference's mia_min_k has no value; evaluate it with forget and holdout rows")
            reference = given
        assert attack.value is not None and attack.interval is not None
        low, high = attack.interval
        return DetailedResult(
            value=privleak(attack.value, reference),
            n=attack.n,
            interval=(privleak(high, reference), privleak(low, reference)),
            extra={"auc_reference": reference},
        )
