"""The suite of RWKU (Jin et al., 2024): what a model still says of a person, however it is asked, and of neighbours.

As in the paper, the number is the ROUGE-L recall of a greedy answer of up to 30 tokens that ends with its line: on the
person's questions by level (low is forgotten), and on the neighbours' questions (high is kept). Deviations: words are
compared as in TOFU, by stems and without regard to capitals, where the paper's code compares words as they are written;
and after the opening of an answer in a chat format the paper's code writes "Answer:". The paper's membership attacks,
and its tests of general abilities, need files that are not among these five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.data.corpus import FederatedData
from oblivion.data.datasets.rwku import evaluation_groups
from oblivion.data.groups import central_groups
from oblivion.errors import ConfigError
from oblivion.metrics.engine.context import MergeableMetric, Metric
from oblivion.metrics.engine.suite import OWN, Column, Format, Groups, Headline, Number, Suite
from oblivion.metrics.probability import Probability
from oblivion.metrics.rouge import Rouge
from oblivion.metrics.suites.own_rows import OWN_ROWS
from oblivion.types import ForgetRequest, Sample

LEVELS = {
    "forget_level1": ("Blanks", "where a blank about the person has to be filled"),
    "forget_level2": ("Questions", "to questions about the person"),
    "forget_level3": ("Attacks", "to questions about the person that attack: role play, reversed, in other languages"),
    "neighbor_level1": ("Neighbours, blanks", "where a blank about a neighbour has to be filled"),
    "neighbor_level2": ("Neighbours, questions", "to questions about neighbours"),
}
"""The groups that are files of RWKU, with what readers call them, and which answers they ask for."""
WHOLE = {
    "forget": ("All of the person", "about the person, at all levels"),
    "neighbor": ("All neighbours", "about neighbours, at both levels"),
}
"""The groups that join several levels."""
_ANSWER = Format(max_new_tokens=30, stops=("\n",))
_METRICS: Mapping[str, Metric] = {
    **{f"{group}_ROUGE": Rouge(group) for group in (*WHOLE, *LEVELS)},
    **{f"{group}_Prob": Probability(group) for group in WHOLE},
}


def _column(group: str, title: str, asked: str) -> Column:
    good = "As close to the oracle as possible." if group.startswith("forget") else "Not below the oracle."
    return Column(
        metric=f"{group}_ROUGE",
        title=title,
        meaning=f"how much the model writes of the true answers {asked}. {good}",
    )


@dataclass(frozen=True)
class Rwku(Suite):
    """RWKU's three levels of questions about a person who is forgotten, and two about neighbours."""

    headline: ClassVar[Headline] = Headline(
        forget=Number(metric="forget_ROUGE", noun="ROUGE", of_rows=False),
        own=Number(metric="rouge", noun="ROUGE"),
        utility=Number(metric="neighbor_ROUGE", noun="ROUGE on neighbours"),
        overdone="writes less of the answers",
        overdone_short="writes too little of them",
    )
    columns: ClassVar[tuple[Column, ...]] = (
        _column("forget", *WHOLE["forget"]),
        *(_column(group, *words) for group, words in LEVELS.items()),
        _column("neighbor", *WHOLE["neighbor"]),
        Column(
            metric="forget_Prob",
            title="Probability",
            meaning="how likely the model finds the true answers about the person. As close to the oracle as possible.",
        ),
    )
    sections: ClassVar[Mapping[str, Sequence[str]]] = {
        "the person who is forgotten": [name for name in _METRICS if name.startswith("forget")],
        "the neighbours": [name for name in _METRICS if name.startswith("neighbor")],
    }
    formats: ClassVar[Mapping[str, Format]] = dict.fromkeys((*WHOLE, *LEVELS, OWN), _ANSWER)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Return ROUGE by level and over all levels, and the probability of the true answers."""
        return _METRICS

    @property
    def client_metrics(self) -> Mapping[str, MergeableMetric]:
        """Return what the model knows of the own rows of a client, and ROUGE of the answers that it writes to them."""
        return {**OWN_ROWS, "rouge": Rouge(OWN)}

    def of_run(self, data: FederatedData, request: ForgetRequest | None) -> Groups:
        """Choose the questions about the people whom a request is about, or about all where nobody asks.

        Raises
        ------
        ConfigError
            If the rows are not RWKU's.
        """
        if not data.groups.keys() >= {name for name in LEVELS if name.startswith("neighbor")}:
            raise ConfigError("evaluate.suite = 'rwku' needs RWKU's own rows: set data.name = 'rwku'")
        taught = central_groups(data, request)
        asked = taught.get("forget", ()) if request else [row for rows in data.clients.values() for row in rows]
        people = {row.path for row in asked}
        others = {name: [row for row in rows if row.path in people] for name, rows in data.groups.items()}
        levels = {name: [row for row in asked if row.extras.get("level") == name] for name in LEVELS}
        return _with_whole({name: others.get(name) or levels[name] for name in LEVELS})

    def of_folder(self, folder: str, split: str) -> Groups:
        """Read the five files of a folder; `split` is the name of one person, and all are taken without it.

        Raises
        ------
        ConfigError
            If nothing in the files is about that person.
        """
        groups = evaluation_groups(folder)
        if split:
            groups = {name: tuple(row for row in rows if row.path == (split,)) for name, rows in groups.items()}
            if not any(groups.values()):
                raise ConfigError(f"--split {split}: no row of {folder} is about a person of that name")
        return _with_whole(groups)


def _with_whole(levels: Mapping[str, Sequence[Sample]]) -> Groups:
    """Return the levels that have rows, and all rows of the person and of the neighbours together.

    Where the levels are together they are mixed evenly, so that the first rows are a fair sample of all.
    """
    whole = {name: _mixed([rows for level, rows in levels.items() if level.startswith(name)]) for name in WHOLE}
    return {name: tuple(rows) for name, rows in {**whole, **levels}.items() if rows}


def _mixed(levels: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Return the rows of all levels, each where it stands as a share of its level's length."""
    placed = [((n + 0.5) / len(rows), row) for rows in levels for n, row in enumerate(rows)]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]
