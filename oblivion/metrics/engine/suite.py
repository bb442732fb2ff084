"""A suite chooses rows and metrics, and says how its numbers are presented to readers."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.data.corpus import FederatedData
from oblivion.data.datasets.jsonl import load_rows
from oblivion.data.groups import central_groups
from oblivion.errors import ConfigError
from oblivion.metrics.engine.context import MergeableMetric, Metric
from oblivion.replies import Bound
from oblivion.types import ForgetRequest, Sample

Groups = Mapping[str, Sequence[Sample]]
"""The rows of each group by its name."""

OWN = "own"
"""The group of a client's own rows, on which the metrics in `Suite.client_metrics` are computed."""


@dataclass(frozen=True, kw_only=True)
class RunRows:
    """The rows of a federation, the clients' and the server's, and the request that says what is to be forgotten."""

    data: FederatedData
    request: ForgetRequest | None = None


@dataclass(frozen=True, kw_only=True)
class FileRows:
    """Files with rows: a folder with the suite's own files, or one file for each of three groups.

    Attributes
    ----------
    folder : str
        The folder, or a hub id; empty where there is none.
    forget, retain, holdout : str
        A file with questions and answers in any layout that `data.name = "jsonl"` reads; empty for none. It stands in
        place of the folder's group of that name.
    """

    folder: str = ""
    forget: str = ""
    retain: str = ""
    holdout: str = ""

    def groups(self) -> dict[str, tuple[Sample, ...]]:
        """Read the single files, by group.

        Raises
        ------
        ConfigError, InputError
            If a file cannot be read; see `oblivion.data.datasets.jsonl.load_rows`.
        """
        files = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout}
        return {group: load_rows(path, {}, group)[0] for group, path in files.items() if path}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A line of the report's table.

    Attributes
    ----------
    metric : str
        The metric's name among the suite's results.
    title, meaning : str
        What readers call it, and what is good.
    logarithmic : bool
        Whether only its order of magnitude says something; differences are then powers of ten.
    relative : bool
        Whether it compares with a model that never saw the data, and so says nothing of that model itself.
    over : str
        What the number of rows beside it counts.
    detects : str
        Name of the statistic whose smallest detectable value stands beside the number (``extra["detectable"]``).
    enough : float
        Where so many rows detect nothing below this, the number is not shown.
    """

    metric: str
    title: str
    meaning: str
    logarithmic: bool = False
    relative: bool = False
    over: str = "row"
    detects: str = ""
    enough: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number of the headline.

    Attributes
    ----------
    metric : str
        Its name: among the suite's results, or for a client's own rows in `Suite.client_metrics`.
    noun : str
        What a sentence calls it, such as "probability".
    higher_remembers : bool
        Whether a model that remembers the forgotten rows has a higher number than one that never saw them. Of utility,
        higher is always better.
    of_rows : bool
        Whether it is measured on the rows of the request themselves, and not on other questions about them.
    """

    metric: str
    noun: str
    higher_remembers: bool = True
    of_rows: bool = True


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The numbers from which the first sentences and the pictures of a report are made.

    Attributes
    ----------
    forget : Number
        How much of the forgotten rows a model knows, between 0 and 1; compared with the oracle's.
    own : Number
        What a client measures on its own rows, between 0 and 1. It says how well a client is served, and stands in for
        `forget` where that was not measured.
    utility : Number or None
        What the model is still good for.
    membership : Number or None
        The AUC with which an attacker tells the forgotten rows from rows that were never seen; 0.5 is guessing.
    kept : Number or None
        How much of the rows that stay a model knows.
    overdone, overdone_short : str
        What a model does that passed the oracle in `forget`: a predicate for a sentence, and one for a picture.
    shared : str
        Name of the result on rows that others hold, too; empty where the suite has none.
    model, question, answered, answers, token : str
        What sentences call the model, a row, what the model did with rows, what belongs to a row, and what losses and
        costs count.
    """

    forget: Number
    own: Number
    utility: Number | None = None
    membership: Number | None = None
    kept: Number | None = None
    overdone: str = "finds the answers less likely"
    overdone_short: str = "finds them too unlikely"
    shared: str = ""
    model: str = "a language model"
    question: str = "question"
    answered: str = "answered"
    answers: str = "answers"
    token: str = "token"


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the rows of a group are asked, where the run's template and length are not right.

    Attributes
    ----------
    template : str
        A registered template; empty for the run's.
    max_new_tokens : int
        The most tokens that are generated, if the run's limit is not lower; 0 for the run's.
    stops : tuple of str
        A generated text ends before the first of these.
    cut : bool
        Whether the true answer is cut to as many tokens as may be generated, before the two are compared.
    """

    template: str = ""
    max_new_tokens: int = 0
    stops: tuple[str, ...] = ()
    cut: bool = False


class Suite(abc.ABC):
    """A set of metrics that are computed together, in one pass over the rows that the suite chooses.

    A suite is a frozen dataclass of its parameters.

    Attributes
    ----------
    headline : Headline
        Which of its numbers say forgetting, membership and utility.
    columns : tuple of Column
        The report's table.
    sections : mapping of str to sequence of str
        How ``oblivion evaluate`` prints its results: a title, and the names of the results below it. Results that stand
        in none are printed last.
    formats : mapping of str to Format
        Group of rows to how they are asked, for those that are not asked as the run says.
    aliases : mapping of str to str
        Name that files of others have for a result, to the suite's own name.
    brief : mapping of str to str
        What a table over several runs says of each model: a label, and the result that it stands for.
    default_split : str
        Which split of the suite's own folder is taken where none is named.
    """

    headline: ClassVar[Headline]
    columns: ClassVar[tuple[Column, ...]]
    sections: ClassVar[Mapping[str, Sequence[str]]] = {}
    formats: ClassVar[Mapping[str, Format]] = {}
    aliases: ClassVar[Mapping[str, str]] = {}
    brief: ClassVar[Mapping[str, str]] = {}
    default_split: ClassVar[str] = ""

    @property
    @abc.abstractmethod
    def metrics(self) -> Mapping[str, Metric]:
        """Return what the server measures: the name of each result, and the metric that gives it."""

    @property
    @abc.abstractmethod
    def client_metrics(self) -> Mapping[str, MergeableMetric]:
        """Return what every client measures on its own rows (group `OWN`); only sums and weights leave it."""

    def rows(self, source: RunRows | FileRows, split: str = "") -> Groups:
        """Choose the rows to be evaluated, by group.

        Parameters
        ----------
        source : RunRows or FileRows
            A federation, or files.
        split : str, default ""
            Which of the splits in the suite's own folder; empty for its default.

        Raises
        ------
        ConfigError
            If the split is unknown, or the suite has no files of its own.
        InputError
            If a file is missing or malformed.
        """
        if isinstance(source, RunRows):
            return self.of_run(source.data, source.request)
        single = source.groups()
        return {**self.of_folder(source.folder, split or self.default_split), **single} if source.folder else single

    def of_run(self, data: FederatedData, request: ForgetRequest | None) -> Groups:
        """Choose the rows of a federation; by default those of `oblivion.data.groups.central_groups`."""
        return central_groups(data, request)

    def of_folder(self, folder: str, split: str) -> Groups:
        """Read the suite's own files; a suite that has some overrides this."""
        raise ConfigError(
            f"--data {folder}: this suite has no files of its own; give a file with rows with --forget, and others "
            "with --retain and --holdout"
        )

    @property
    def relative(self) -> frozenset[str]:
        """Return the names of the results that compare with the oracle, and say nothing of the oracle itself."""
        return frozenset(column.metric for column in self.columns if column.relative)

    def column(self, metric: str) -> Column | None:
        """Return the column of a result; None if the report's table has none."""
        return next((column for column in self.columns if column.metric == metric), None)

    def client_bounds(self) -> dict[str, Bound]:
        """Return the bounds of a client's numbers, by name."""
        return {name: Bound(metric.value_range[1], metric.over) for name, metric in self.client_metrics.items()}
