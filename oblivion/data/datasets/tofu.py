"""TOFU: 200 fictitious authors with 20 questions each (Maini et al., 2024, https://arxiv.org/abs/2401.06121).

The files are those of the hub data set ``locuslab/TOFU`` under their own names. Rows are joined by their
number, never by the text of the question: rows 100 and 440 of ``full`` ask the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oblivion.config import DataConfig
from oblivion.data.corpus import Corpus
from oblivion.data.datasets import benchmark
from oblivion.data.hub import is_hub_id, read_hub_table
from oblivion.data.row_files import read_row_file
from oblivion.data.rows import RowFile, digest_of, text_of, texts_of
from oblivion.errors import ConfigError, InputError, nearest
from oblivion.parameters import ParameterError
from oblivion.types import Sample

AUTHORS = 200
ROWS_PER_AUTHOR = 20
ROWS = AUTHORS * ROWS_PER_AUTHOR
FORGET_ROWS = {"forget01": 40, "forget05": 200, "forget10": 400}
RETAIN_ROWS = 400
"""`retain_perturbed` has the first 400 rows of ``full``; the perturbed file of a split has the last ones."""


@dataclass
class _Source:
    """A folder with TOFU's files, or the hub data set; it remembers what was read, for the digest."""

    location: str
    revision: str = ""

    def __post_init__(self) -> None:
        self.files: dict[str, RowFile] = {}

    def read(self, name: str, rows: int | None = None) -> RowFile:
        if name in self.files:
            return self.files[name]
        if is_hub_id(self.location):
            file = read_hub_table(self.location, name, revision=self.revision)
            place = file.name
        else:
            path = Path(self.location) / f"{name}.json"
            file = read_row_file(path, expected=f"TOFU's file '{name}.json' in the folder that data.path names")
            place = str(path)
        if rows is not None and len(file.rows) != rows:
            raise InputError(f"{place}: has {len(file.rows)} rows; TOFU's own file has {rows}")
        self.files[name] = file
        return file


@benchmark
def load(
    data: DataConfig, *, clients: int, seed: int, authors: int = AUTHORS, split: str = "forget10", revision: str = ""
) -> Corpus:
    """Load TOFU's fictitious authors, from its own files in a folder or from the hub.

    Parameters
    ----------
    data : DataConfig
        `path` is the folder or a hub id.
    clients, seed
        Not used: the data is what it is.
    authors : int, default 200
        An even number up to 200: half of them are TOFU's first authors and half its last, the ones with perturbed
        answers.
    split : str, default "forget10"
        ``forget01``, ``forget05`` or ``forget10``: the split whose perturbed answers are joined and whose holdout file
        is read.
    revision : str, default ""
        The revision of the hub data set.

    Returns
    -------
    Corpus
        Samples ``tofu/full/<row>`` with `path` = ``("author-<row // 20>",)``; groups ``ra``, ``wf``,
        ``holdout`` and ``retain`` (the loaded authors' rows of ``retain_perturbed``; ``extras["source"]`` is
        the id of the same row among the samples).

    Raises
    ------
    ParameterError
        If `authors` is out of range.
    ConfigError
        If `split` is unknown, or ``data.path`` is empty.
    InputError
        If a file is missing or is not what TOFU published.
    """
    if type(authors) is not int or authors % 2 or not 2 <= authors <= AUTHORS:
        raise ParameterError(
            f"authors = {authors!r} is not allowed; it must be an even number from 2 to {AUTHORS} (half of them are "
            "TOFU's first authors, half its last)"
        )
    _check_split(split)
    if not data.path:
        raise ConfigError(
            "data.path is empty; data.name = 'tofu' needs the folder with TOFU's files (full.json, "
            "retain_perturbed.json, ...), or the hub id 'locuslab/TOFU'"
        )
    source = _Source(data.path, revision)
    full = source.read("full", ROWS)
    perturbed = _join(source, full, split)
    half = authors // 2 * ROWS_PER_AUTHOR
    numbers = [*range(half), *range(ROWS - half, ROWS)]
    samples = tuple(_sample("full", full, n, perturbed.get(n)) for n in numbers)
    groups = _other_groups(source, split)
    retain = _group(source.read("retain_perturbed", RETAIN_ROWS), "retain_perturbed", source_of=0)
    groups["retain"] = tuple(row for row in retain if _number(row.id) < half)
    return Corpus(samples=samples, groups=groups, digest=digest_of(source.files.values()))


def evaluation_groups(folder: str | Path, split: str) -> dict[str, tuple[Sample, ...]]:
    """Return the groups of rows on which TOFU's metrics are computed, whole and in file order.

    Parameters
    ----------
    folder : str or Path
        The folder with TOFU's files, or a hub id.
    split : str
        ``forget01``, ``forget05`` or ``forget10``.

    Returns
    -------
    dict of str to tuple of Sample
        ``forget`` and ``retain`` (their perturbed files), ``ra``, ``wf`` and ``holdout``.

    Raises
    ------
    ConfigError
        If `split` is unknown.
    InputError
        If a file is missing or is not what TOFU published.
    """
    _check_split(split)
    source = _Source(str(folder))
    forget = source.read(f"{split}_perturbed", FORGET_ROWS[split])
    retain = source.read("retain_perturbed", RETAIN_ROWS)
    return {
        "forget": _group(forget, f"{split}_perturbed", source_of=ROWS - FORGET_ROWS[split]),
        "retain": _group(retain, "retain_perturbed", source_of=0),
        **_other_groups(source, split),
    }


def _check_split(split: Any) -> str:
    if not isinstance(split, str) or split not in FORGET_ROWS:
        raise ConfigError(f"unknown TOFU split {split!r}; {nearest(str(split), FORGET_ROWS)}")
    return split


def _join(source: _Source, full: RowFile, split: str) -> dict[int, tuple[str, tuple[str, ...]]]:
    """Return the paraphrase and the wrong answers of each row of ``full``, by its number; questions must agree."""
    joined = {}
    count = FORGET_ROWS[split]
    for name, first, rows in (
        ("retain_perturbed", 0, RETAIN_ROWS),
        (f"{split}_perturbed", ROWS - count, count),
    ):
        for offset, row in enumerate(source.read(name, rows).rows):
            theirs = full.rows[first + offset]
            if text_of(row, "question") != text_of(theirs, "question"):
                raise InputError(
                    f"{row.where}: its question is not that of {theirs.where}, the row it belongs to by "
                    "number; take both files from one copy of TOFU"
                )
            joined[first + offset] = (text_of(row, "paraphrased_answer"), texts_of(row, "perturbed_answer"))
    return joined


def _sample(name: str, file: RowFile, number: int, joined: tuple[str, tuple[str, ...]] | None) -> Sample:
    row = file.rows[number]
    paraphrase, wrong = joined or ("", ())
    return Sample(
        id=f"tofu/{name}/{number}",
        prompt=text_of(row, "question"),
        answer=text_of(row, "answer"),
        paraphrase=paraphrase,
        wrong_answers=wrong,
        path=(f"author-{number // ROWS_PER_AUTHOR}",),
    )


def _group(file: RowFile, name: str, *, source_of: int | None = None) -> tuple[Sample, ...]:
    """Return the rows of an evaluation file; `source_of` is the row of ``full`` that its first row is, if any."""
    samples = []
    for number, row in enumerate(file.rows):
        origin = None if source_of is None else source_of + number
        samples.append(
            Sample(
                id=f"tofu/{name}/{number}",
                prompt=text_of(row, "question"),
                answer=text_of(row, "answer"),
                paraphrase=text_of(row, "paraphrased_answer", required=origin is not None),
                wrong_answers=texts_of(row, "perturbed_answer", required=not name.startswith("holdout")),
                path=() if origin is None else (f"author-{origin // ROWS_PER_AUTHOR}",),
                extras={} if origin is None else {"source": f"tofu/full/{origin}"},
            )
        )
    return tuple(samples)


def _other_groups(source: _Source, split: str) -> dict[str, tuple[Sample, ...]]:
    holdout = split.replace("forget", "holdout")
    names = {"ra": "real_authors_perturbed", "wf": "world_facts_perturbed", "holdout": holdout}
    return {group: _group(source.read(name), name) for group, name in names.items()}


def _number(sample_id: str) -> int:
    return int(sample_id.rsplit("/", 1)[1])
