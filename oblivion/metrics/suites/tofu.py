"""The suite of TOFU (Maini et al., 2024) with open-unlearning's memorisation and privacy metrics, under its names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal, get_args

from oblivion.data.datasets.tofu import evaluation_groups
from oblivion.metrics.engine.context import MergeableMetric, Metric
from oblivion.metrics.engine.suite import Column, Groups, Headline, Number, Suite
from oblivion.metrics.exact_memorization import ExactMemorization
from oblivion.metrics.extraction_strength import ExtractionStrength
from oblivion.metrics.forget_quality import ENOUGH, ForgetQuality, KSStatistic
from oblivion.metrics.mia_loss import LossAttack
from oblivion.metrics.mia_min_k import MinKAttack
from oblivion.metrics.mia_min_k_plus_plus import MinKPlusPlusAttack
from oblivion.metrics.mia_zlib import ZlibAttack
from oblivion.metrics.model_utility import ModelUtility
from oblivion.metrics.normalised_probability import NormalisedProbability
from oblivion.metrics.privleak import PrivLeak
from oblivion.metrics.probability import Probability
from oblivion.metrics.rouge import Rouge
from oblivion.metrics.suites.own_rows import OWN_PROBABILITY, OWN_ROWS
from oblivion.metrics.truth_ratio import Aggregation, TruthRatio

_RIGHT: dict[str, Literal["paraphrase", "answer"]] = {
    "forget": "paraphrase",
    "retain": "paraphrase",
    "ra": "answer",
    "wf": "answer",
}
_ATTACKS: dict[str, Metric] = {
    "mia_loss": LossAttack(),
    "mia_zlib": ZlibAttack(),
    "mia_min_k": MinKAttack(),
    "mia_min_k_plus_plus": MinKPlusPlusAttack(),
    "privleak": PrivLeak(),
}
_COLUMNS = (
    Column(
        metric="forget_Q_A_Prob",
        title="Probability",
        meaning="how likely the model finds the forgotten answers. As close to the oracle as possible.",
    ),
    Column(
        metric="forget_Q_A_ROUGE",
        title="ROUGE",
        meaning="how much of the forgotten answer it writes by itself. As close to the oracle as possible.",
    ),
    Column(
        metric="forget_TR__closer_to_1_better",
        title="Truth ratio",
        meaning="whether wrong answers look as likely as the true one (1: they do). "
        "As close to the oracle as possible.",
    ),
    Column(
        metric="forget_quality",
        title="Forget quality",
        meaning="how well the truth ratios agree with the oracle’s (p-value; differences as powers of ten). "
        "High is good, but only where there are enough rows: below stands the largest KS distance that may be chance.",
        logarithmic=True,
        relative=True,
        detects="KS",
        enough=ENOUGH,
    ),
    Column(
        metric="model_utility",
        title="Model utility",
        meaning="what the model is still good for, on data that nobody withdrew. Not below the oracle.",
    ),
    Column(
        metric="extraction_strength",
        title="Extraction strength",
        meaning="how much of a forgotten answer follows from its start. As close to the oracle as possible.",
    ),
    Column(
        metric="mia_min_k",
        title="Membership AUC (min-k)",
        meaning="how well an attacker tells forgotten rows from rows never seen; 0.5 is guessing. "
        "As close to the oracle as possible.",
    ),
    Column(
        metric="privleak",
        title="PrivLeak",
        meaning="the same attack, in percent off the oracle. 0 is ideal; negative: it remembers, "
        "positive: it overdid the forgetting. The interval is that of the difference on the same rows.",
        relative=True,
    ),
)


def _of_group(group: str) -> dict[str, Metric]:
    """Return the metrics on the answers of one group."""
    right = _RIGHT[group]
    found: dict[str, Metric] = {f"{group}_Q_A_Prob": Probability(group)}
    if right == "paraphrase":
        found[f"{group}_Q_A_PARA_Prob"] = Probability(group, "paraphrase")
    found[f"{group}_Q_A_PERT_Prob"] = Probability(group, "wrong")
    if right == "answer":
        found[f"{group}_Q_A_Prob_normalised"] = NormalisedProbability(group)
    found[f"{group}_Q_A_ROUGE"] = Rouge(group)
    for aggregation in get_args(Aggregation):
        found[f"{group}_TR__{aggregation}"] = TruthRatio(group, aggregation, right)
    return found


@cache
def _metrics() -> Mapping[str, Metric]:
    found = {name: metric for group in _RIGHT for name, metric in _of_group(group).items()}
    return {
        **found,
        "shared_Q_A_Prob": Probability("shared"),
        "shared_Q_A_ROUGE": Rouge("shared"),
        "exact_memorization": ExactMemorization(),
        "extraction_strength": ExtractionStrength(),
        **_ATTACKS,
        "forget_quality": ForgetQuality(),
        "ks_statistic": KSStatistic(),
        "model_utility": ModelUtility(),
    }


@dataclass(frozen=True)
class Tofu(Suite):
    """TOFU's metrics, memorisation and membership attacks, from one pass over the model's outputs."""

    headline: ClassVar[Headline] = Headline(
        forget=Number(metric="forget_Q_A_Prob", noun="probability"),
        own=OWN_PROBABILITY,
        utility=Number(metric="model_utility", noun="model utility"),
        membership=Number(metric="mia_min_k", noun="membership AUC"),
        kept=Number(metric="retain_Q_A_Prob", noun="probability of the rows that stay"),
        shared="shared_Q_A_Prob",
    )
    columns: ClassVar[tuple[Column, ...]] = _COLUMNS
    sections: ClassVar[Mapping[str, Sequence[str]]] = {
        "the rows to be forgotten": tuple(_of_group("forget")),
        "rows that others hold, too": ("shared_Q_A_Prob", "shared_Q_A_ROUGE"),
        "the rows that stay": tuple(_of_group("retain")),
        "real authors": tuple(_of_group("ra")),
        "world facts": tuple(_of_group("wf")),
        "how much of the forgotten answers is known by heart": ("exact_memorization", "extraction_strength"),
        "whether forgotten rows can be told apart from rows never seen (1: all of them, 0.5: none)": tuple(_ATTACKS),
        "against a model that never saw the forgotten rows": ("forget_quality", "ks_statistic"),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "forget_truth_ratio": "forget_TR__closer_to_1_better",
        **{f"{group}_Truth_Ratio": f"{group}_TR__true_better" for group in _RIGHT},
    }
    brief: ClassVar[Mapping[str, str]] = {
        "probability of its answers": "forget_Q_A_Prob",
        "extraction strength": "extraction_strength",
        "membership AUC (min-k); 0.5: cannot be told from held-out rows": "mia_min_k",
        "KS statistic of the truth ratios beside the oracle's": "ks_statistic",
    }
    default_split: ClassVar[str] = "forget10"

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Return TOFU's metrics by group of rows, then memorisation, attacks and the comparisons with a reference."""
        return _metrics()

    @property
    def client_metrics(self) -> Mapping[str, MergeableMetric]:
        """Return what the model knows of the own rows of a client, without generation."""
        return OWN_ROWS

    def of_folder(self, folder: str, split: str) -> Groups:
        """Read the groups of a folder with TOFU's own files; `split` names its forget split."""
        return evaluation_groups(folder, split)
