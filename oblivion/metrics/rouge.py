"""ROUGE recall of the generated answer (Lin, 2004), as in TOFU: ROUGE-L recall with stemming, from rouge_score."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from oblivion.metrics.averages import mean_result
from oblivion.metrics.context import EvaluationContext
from oblivion.types import MetricResult


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def rouge(target: str, generation: str) -> dict[str, float]:
    """ROUGE-1 recall, ROUGE-L F1 and ROUGE-L recall of a generated text against the true one, each in [0, 1]."""
    scores = _scorer().score(target=target, prediction=generation)
    return {
        "rouge1_recall": float(scores["rouge1"].recall),
        "rougeL_f1": float(scores["rougeL"].fmeasure),
        "rougeL_recall": float(scores["rougeL"].recall),
    }


@dataclass(frozen=True)
class Rouge:
    """Mean ROUGE-L recall of greedy generations.

    Parameters
    ----------
    group : str, default "forget"
        Whose rows.
    """

    group: str = "forget"

    @property
    def requires(self) -> frozenset[str]:
        """The generated texts."""
        return frozenset({f"{self.group}.generation"})

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Per row ``rouge1_recall``, ``rougeL_f1`` and ``rougeL_recall``."""
        rows = context.select(self.group, "generation")
        shown = {row.index: rouge(row.target, row.generation or "") for row in rows}
        return mean_result({index: row["rougeL_recall"] for index, row in shown.items()}, shown)
