"""The suite of MUSE (Shi et al., 2024): what a model knows of texts, what it recites, and whether it shows them.

- KnowMem: the mean ROUGE-L F1 of greedy answers of up to 32 tokens to questions about the texts, after some examples.
  An answer ends before a blank line and before the next question.
- VerbMem: the mean ROUGE-L F1 of a greedy continuation of up to 128 tokens with as many tokens of the true one.
- PrivLeak: the membership AUC of the 40 % least likely tokens of a text, against that of a model that never saw it.

As in MUSE's own code, words are not stemmed. Deviations: a prompt ends in "Answer:" without a space, which belongs to
the answer; the true continuation is cut to 128 tokens of its own, where that code counts its first special token among
them; a text that is longer than the context is left out; and PrivLeak has no value without a reference, where others
take an AUC of 0.5. Names are open-unlearning's. MUSE's other two criteria, larger requests and many requests, compare
several runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.data.corpus import FederatedData
from oblivion.data.datasets.muse import evaluation_groups
from oblivion.errors import ConfigError
from oblivion.metrics.engine.context import MergeableMetric, Metric
from oblivion.metrics.engine.suite import Column, Format, Groups, Headline, Number, Suite
from oblivion.metrics.exact_memorization import ExactMemorization
from oblivion.metrics.extraction_strength import ExtractionStrength
from oblivion.metrics.mia_min_k import MinKAttack
from oblivion.metrics.privleak import PrivLeak
from oblivion.metrics.rouge import Rouge
from oblivion.metrics.suites.own_rows import OWN_PROBABILITY, OWN_ROWS
from oblivion.types import ForgetRequest

GROUPS = ("knowmem_forget", "knowmem_retain", "verbmem", "forget", "holdout")
_QUESTION = Format(template="verbatim", max_new_tokens=32, stops=("\n\n", "\nQuestion", "Question:"))
_METRICS: Mapping[str, Metric] = {
    "forget_knowmem_ROUGE": Rouge("knowmem_forget", "rougeL_f1", stemmed=False),
    "retain_knowmem_ROUGE": Rouge("knowmem_retain", "rougeL_f1", stemmed=False),
    "forget_verbmem_ROUGE": Rouge("verbmem", "rougeL_f1", stemmed=False),
    "exact_memorization": ExactMemorization("verbmem"),
    "extraction_strength": ExtractionStrength("verbmem"),
    "mia_min_k": MinKAttack(),
    "privleak": PrivLeak(chance=None),
}


@dataclass(frozen=True)
class Muse(Suite):
    """MUSE's knowledge memorisation, verbatim memorisation and privacy leakage."""

    headline: ClassVar[Headline] = Headline(
        forget=Number(metric="forget_knowmem_ROUGE", noun="KnowMem", of_rows=False),
        own=OWN_PROBABILITY,
        utility=Number(metric="retain_knowmem_ROUGE", noun="KnowMem of what stays"),
        membership=Number(metric="mia_min_k", noun="membership AUC"),
        overdone="answers worse",
        overdone_short="knows too little of them",
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            metric="forget_knowmem_ROUGE",
            title="KnowMem",
            meaning="how well the model answers questions about the forgotten texts. "
            "As close to the oracle as possible.",
        ),
        Column(
            metric="forget_verbmem_ROUGE",
            title="VerbMem",
            meaning="how much of a forgotten text it recites after its beginning. As close to the oracle as possible.",
        ),
        Column(
            metric="privleak",
            title="PrivLeak",
            meaning="the membership attack, in percent off the oracle. 0 is ideal; negative: it remembers, "
            "positive: it overdid the forgetting.",
            relative=True,
        ),
        Column(
            metric="mia_min_k",
            title="Membership AUC (min-k)",
            meaning="how well an attacker tells forgotten texts from texts never seen; 0.5 is guessing. "
            "As close to the oracle as possible.",
        ),
        Column(
            metric="retain_knowmem_ROUGE",
            title="KnowMem of what stays",
            meaning="how well the model answers questions about the texts that nobody withdrew. Not below the oracle.",
        ),
    )
    sections: ClassVar[Mapping[str, Sequence[str]]] = {
        "the texts to be forgotten": [name for name in _METRICS if name.startswith(("forget", "ex"))],
        "the texts that stay": ("retain_knowmem_ROUGE",),
        "whether forgotten texts can be told apart from texts never seen": ("mia_min_k", "privleak"),
    }
    formats: ClassVar[Mapping[str, Format]] = {
        "knowmem_forget": _QUESTION,
        "knowmem_retain": _QUESTION,
        "verbmem": Format(template="verbatim", max_new_tokens=128, cut=True),
        "forget": Format(template="verbatim"),
        "holdout": Format(template="verbatim"),
    }
    default_split: ClassVar[str] = "news"

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Return KnowMem, VerbMem, memorisation of continuations, the membership attack and PrivLeak."""
        return _METRICS

    @property
    def client_metrics(self) -> Mapping[str, MergeableMetric]:
        """Return what the model knows of the own rows of a client, without generation."""
        return OWN_ROWS

    def of_run(self, data: FederatedData, request: ForgetRequest | None) -> Groups:
        """Choose MUSE's own rows; those about texts that nobody asks to forget are left out.

        Raises
        ------
        ConfigError
            If the rows are not MUSE's.
        """
        groups = {name: rows for name, rows in data.groups.items() if name in GROUPS}
        if not groups.keys() & {"knowmem_forget", "verbmem", "forget"}:
            raise ConfigError("evaluate.suite = 'muse' needs MUSE's own rows: set data.name = 'muse'")
        asked = {"", request.client_id} if request else None
        chosen = {name: [r for r in rows if asked is None or r.client_id in asked] for name, rows in groups.items()}
        return {name: tuple(rows) for name, rows in chosen.items() if rows}

    def of_folder(self, folder: str, split: str) -> Groups:
        """Read the files of a corpus; `split` is ``news`` or ``books``."""
        return evaluation_groups(folder, split)
