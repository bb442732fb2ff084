"""ROUGE recall of the generated answer (Lin, 2004), as in TOFU: ROUGE-L recall with stemming, from rouge_score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from oblivion.metrics.averages import mean_result
from oblivion.metrics.context import EvaluationContext
from oblivion.types import MetricResult

_FROM = 256
"""Texts from which on a pool is worth its start (about a second)."""


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenize import tokenize

    class Stemmer:
        """Most of the time goes into stems, and texts have few different words."""

        stem = staticmethod(lru_cache(maxsize=1 << 16)(PorterStemmer().stem))

    class Tokenizer:
        """Those of `rouge_score`, with that stemmer."""

        def tokenize(self, text: str) -> list[str]:
            tokens: list[str] = tokenize(text, Stemmer)
            return tokens

    return RougeScorer(["rouge1", "rougeL"], tokenizer=Tokenizer())


def rouge(target: str, generation: str) -> dict[str, float]:
    """ROUGE-1 recall, ROUGE-L F1 and ROUGE-L recall of a generated text against the true one, each in [0, 1]."""
    scores = _scorer().score(target=target, prediction=generation)
    return {
        "rouge1_recall": float(scores["rouge1"].recall),
        "rougeL_f1": float(scores["rougeL"].fmeasure),
        "rougeL_recall": float(scores["rougeL"].recall),
    }


def start_rouge(pairs: Sequence[tuple[str, str]]) -> Callable[[], list[dict[str, float]]]:
    """Begin to score (target, generation) pairs: many in a pool of processes, beside what comes next.

    Returns
    -------
    callable
        Gives the scores, in order; it waits for those that are missing.
    """
    if len(pairs) < _FROM:
        return lambda: [rouge(*pair) for pair in pairs]
    from joblib import Parallel, cpu_count, delayed

    pool = Parallel(n_jobs=max(2, cpu_count() - 1), backend="loky", return_as="generator", pre_dispatch="all")
    return partial(list, pool(delayed(rouge)(*pair) for pair in pairs))


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
        shown = {row.index: row.rouge or rouge(row.target, row.generation or "") for row in rows}
        return mean_result({index: row["rougeL_recall"] for index, row in shown.items()}, shown)
