"""Metrics and membership attacks, one per file; suites compute them together, in the one pass of the engine."""

from oblivion.registry import Registry

metrics = Registry(
    "metric",
    {
        "exact_memorization": "oblivion.metrics.exact_memorization:ExactMemorization",
        "extraction_strength": "oblivion.metrics.extraction_strength:ExtractionStrength",
        "forget_quality": "oblivion.metrics.forget_quality:ForgetQuality",
        "ks_statistic": "oblivion.metrics.forget_quality:KSStatistic",
        "mia_loss": "oblivion.metrics.mia_loss:LossAttack",
        "mia_min_k": "oblivion.metrics.mia_min_k:MinKAttack",
        "mia_min_k_plus_plus": "oblivion.metrics.mia_min_k_plus_plus:MinKPlusPlusAttack",
        "mia_zlib": "oblivion.metrics.mia_zlib:ZlibAttack",
        "model_utility": "oblivion.metrics.model_utility:ModelUtility",
        "normalised_probability": "oblivion.metrics.normalised_probability:NormalisedProbability",
        "privleak": "oblivion.metrics.privleak:PrivLeak",
        "probability": "oblivion.metrics.probability:Probability",
        "rouge": "oblivion.metrics.rouge:Rouge",
        "token_loss": "oblivion.metrics.token_loss:TokenLoss",
        "truth_ratio": "oblivion.metrics.truth_ratio:TruthRatio",
    },
)
get, names, describe = metrics.get, metrics.names, metrics.describe
"""Once it is imported, this package hides the table of the same name at the front door, so it answers as the table."""
