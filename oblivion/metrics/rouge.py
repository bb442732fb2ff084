"""ROUGE of the generated answer (Lin, 2004), from rouge_score: as in TOFU ROUGE-L recall with stemming, by default.

In scripts for which rouge_score has no tokens, see `oblivion.metrics.engine.rouge_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal

from oblivion.metrics.engine.averages import mean_result
from oblivion.metrics.engine.context import SHARE, EvaluationContext, ScoredRow
from oblivion.metrics.engine.rouge_tokens import has_plain_tokens, needs_all_scripts, tokens
from oblivion.types import MetricResult

_FROM = 256
"""The number of texts from which on a pool of processes is worth its start (about a second)."""


class _Tokenizer:
    """Cuts texts into tokens, and keeps the stems, which take most of the time: texts have few different words."""

    def __init__(self, stemmed: bool) -> None:
        from nltk.stem.porter import PorterStemmer

        stem: Callable[[str], str] = lru_cache(maxsize=1 << 16)(PorterStemmer().stem)
        self.stem = stem if stemmed else str
        self.all_scripts = False

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens that `rouge_score` makes, or those of all scripts."""
        from rouge_score.tokenize import tokenize

        return tokens(text, self.stem) if self.all_scripts else list(tokenize(text, self))


@lru_cache(maxsize=2)
def _scorer(stemmed: bool) -> tuple[Any, _Tokenizer]:
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = _Tokenizer(stemmed)
    return RougeScorer(["rouge1", "rougeL"], tokenizer=tokenizer), tokenizer


def rouge(target: str, generation: str, stemmed: bool = True) -> dict[str, float] | None:
    """Return ROUGE-1 recall, ROUGE-L F1 and ROUGE-L recall of a generated text against the true one, each in [0, 1].

    Words are compared by their stems if `stemmed`.

    None if the true text has no token (it is all punctuation), so that nothing can be recalled.
    """
    scorer, tokenizer = _scorer(stemmed)
    tokenizer.all_scripts = needs_all_scripts(target)
    if not (tokenizer.tokenize(target) if tokenizer.all_scripts else has_plain_tokens(target)):
        return None
    scores = scorer.score(target=target, prediction=generation)
    return {
        "rouge1_recall": float(scores["rouge1"].recall),
        "rougeL_f1": float(scores["rougeL"].fmeasure),
        "rougeL_recall": float(scores["rougeL"].recall),
    }


def start_rouge(pairs: Sequence[tuple[str, str]]) -> Callable[[], list[dict[str, float] | None]]:
    """Begin to score (target, generation) pairs; many are scored in a pool of processes while the caller goes on.

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
    """Mean ROUGE of greedy generations.

    Parameters
    ----------
    group : str, default "forget"
        The group of rows.
    measure : str, default "rougeL_recall"
        Which of the numbers that every row has: ``rougeL_recall``, ``rougeL_f1`` or ``rouge1_recall``.
    stemmed : bool, default True
        Whether words are compared by their stems.
    """

    group: str = "forget"
    measure: Literal["rougeL_recall", "rougeL_f1", "rouge1_recall"] = "rougeL_recall"
    stemmed: bool = True
    value_range: ClassVar[tuple[float, float]] = SHARE
    row_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "rouge1_recall": SHARE,
        "rougeL_f1": SHARE,
        "rougeL_recall": SHARE,
    }
    over: ClassVar[Literal["row", "token"]] = "row"

    @property
    def requires(self) -> frozenset[str]:
        """Ask for the generated texts."""
        return frozenset({f"{self.group}.generation"})

    def compute(self, context: EvaluationContext) -> MetricResult:
        """Return the mean; each row has ``rouge1_recall``, ``rougeL_f1`` and ``rougeL_recall``."""
        rows = context.select(self.group, "generation")
        found = {row.index: self._scores(row) for row in rows}
        shown = {index: scores for index, scores in found.items() if scores is not None}
        values = {index: None if scores is None else scores[self.measure] for index, scores in found.items()}
        return mean_result(values, shown, undefined=f"no answer of group '{self.group}' has a word to be recalled")

    def _scores(self, row: ScoredRow) -> Mapping[str, float] | None:
        known: Mapping[str, float] | None = row.outputs.get("rouge") if self.stemmed else None
        return known or rouge(row.target, row.outputs["generation"], self.stemmed)
