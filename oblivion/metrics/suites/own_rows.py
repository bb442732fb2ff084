"""The numbers that clients measure on their own rows in most suites: how well the model knows the answers."""

from collections.abc import Mapping

from oblivion.metrics.engine.context import MergeableMetric
from oblivion.metrics.engine.suite import OWN, Number
from oblivion.metrics.exact_memorization import ExactMemorization
from oblivion.metrics.extraction_strength import ExtractionStrength
from oblivion.metrics.probability import Probability
from oblivion.metrics.token_loss import TokenLoss

OWN_ROWS: Mapping[str, MergeableMetric] = {
    "loss": TokenLoss(OWN),
    "probability": Probability(OWN),
    "exact_memorization": ExactMemorization(OWN),
    "extraction_strength": ExtractionStrength(OWN),
}

OWN_PROBABILITY = Number(metric="probability", noun="probability")
"""The number among them that a report shows for every client."""
