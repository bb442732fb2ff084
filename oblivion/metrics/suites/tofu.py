"""The suite of TOFU (Maini et al., 2024) with open-unlearning's memorisation and privacy metrics, under its names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from oblivion.metrics.engine.context import Metric
from oblivion.metrics.exact_memorization import ExactMemorization
from oblivion.metrics.extraction_strength import ExtractionStrength
from oblivion.metrics.forget_quality import ForgetQuality, KSStatistic
from oblivion.metrics.mia_loss import LossAttack
from oblivion.metrics.mia_min_k import MinKAttack
from oblivion.metrics.mia_min_k_plus_plus import MinKPlusPlusAttack
from oblivion.metrics.mia_zlib import ZlibAttack
from oblivion.metrics.model_utility import ModelUtility
from oblivion.metrics.normalised_probability import NormalisedProbability
from oblivion.metrics.privleak import PrivLeak
from oblivion.metrics.probability import Probability
from oblivion.metrics.rouge import Rouge
from oblivion.metrics.truth_ratio import Aggregation, TruthRatio

_RIGHT: dict[str, Literal["paraphrase", "answer"]] = {
    "forget": "paraphrase",
    "retain": "paraphrase",
    "ra": "answer",
    "wf": "answer",
}


def tofu() -> Mapping[str, Metric]:
    """TOFU's metrics, memorisation and membership attacks, from one pass over the model's outputs."""
    suite: dict[str, Metric] = {}
    for group, right in _RIGHT.items():
        suite[f"{group}_Q_A_Prob"] = Probability(group)
        if right == "paraphrase":
            suite[f"{group}_Q_A_PARA_Prob"] = Probability(group, "paraphrase")
        suite[f"{group}_Q_A_PERT_Prob"] = Probability(group, "wrong")
        if right == "answer":
            suite[f"{group}_Q_A_Prob_normalised"] = NormalisedProbability(group)
        suite[f"{group}_Q_A_ROUGE"] = Rouge(group)
        for aggregation in get_args(Aggregation):
            suite[f"{group}_TR__{aggregation}"] = TruthRatio(group, aggregation, right)
    suite["shared_Q_A_Prob"] = Probability("shared")
    suite["shared_Q_A_ROUGE"] = Rouge("shared")
    suite["exact_memorization"] = ExactMemorization()
    suite["extraction_strength"] = ExtractionStrength()
    suite["mia_loss"] = LossAttack()
    suite["mia_zlib"] = ZlibAttack()
    suite["mia_min_k"] = MinKAttack()
    suite["mia_min_k_plus_plus"] = MinKPlusPlusAttack()
    suite["privleak"] = PrivLeak()
    suite["forget_quality"] = ForgetQuality()
    suite["ks_statistic"] = KSStatistic()
    suite["model_utility"] = ModelUtility()
    return suite
