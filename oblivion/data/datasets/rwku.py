"""RWKU: questions about 200 real people (Jin et al., 2024, https://arxiv.org/abs/2406.10890).

The files are those of the hub data set ``jinzhuoran/RWKU``, one JSON line a row, in one folder. Three levels of
questions are about the person who is to be forgotten: filling a blank, answering, and answering what attacks the model
(role play, reversed questions, other languages, ...). Two levels are about neighbours, that is, people and works beside
that person.

RWKU itself teaches nothing, because language models know these people. A federation has to learn them first: its
clients hold the questions of levels 1 and 2, whole people each. Those of level 3 ask for the same knowledge and are
never taught.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from oblivion.config import DataConfig
from oblivion.data.corpus import Corpus
from oblivion.data.datasets import benchmark
from oblivion.data.row_files import read_row_file
from oblivion.data.rows import Row, RowFile, digest_of, text_of
from oblivion.errors import ConfigError
from oblivion.parameters import ParameterError, check_count
from oblivion.types import Sample

TAUGHT = ("forget_level1", "forget_level2")
"""The files whose rows clients own."""
ASKED = ("forget_level3", "neighbor_level1", "neighbor_level2")
"""The files whose rows nobody owns."""
BLANK = "Please complete the blank in the following question.\nQuestion: {}"
BRIEF = "Please briefly answer the following question.\nQuestion: {}"
IN_CONTEXT = "Please briefly answer the following question.\n{}"
"""How RWKU's own code asks: at level 1, and at the others, where a question with examples brings its own words."""


@benchmark
def load(data: DataConfig, *, clients: int, seed: int, people: int = 0) -> Corpus:
    """Load RWKU's questions about real people from its own files in a folder.

    Parameters
    ----------
    data : DataConfig
        `path` is the folder with ``forget_level1.jsonl`` and the other four files.
    clients, seed
        Not used: the data is what it is.
    people : int, default 0
        How many of the people are taken, in the order of the file; 0 for all.

    Returns
    -------
    Corpus
        Samples ``rwku/<file>/<row>`` with `path` = ``(person,)``. The groups are ``forget_level3``,
        ``neighbor_level1`` and ``neighbor_level2``; a neighbour's row that is word for word a row of somebody's
        training data is left out.

    Raises
    ------
    ConfigError
        If ``data.path`` is empty.
    ParameterError
        If `people` is out of range, or above the number of people in the files.
    InputError
        If a file is missing or malformed.
    """
    if not data.path:
        raise ConfigError("data.path is empty; data.name = 'rwku' needs the folder with forget_level1.jsonl and others")
    check_count("people", people, 0)
    files = _read(data.path)
    names = list(dict.fromkeys(text_of(row, "subject") for row in files[TAUGHT[0]].rows))
    if people > len(names):
        raise ParameterError(f"people = {people} is not allowed; the files are about {len(names)} people")
    chosen = set(names[:people] if people else names)
    rows = {
        name: tuple(s for s in (_sample(name, n, row) for n, row in enumerate(file.rows)) if s.path[0] in chosen)
        for name, file in files.items()
    }
    order = {name: place for place, name in enumerate(names)}
    samples = sorted((s for name in TAUGHT for s in rows[name]), key=lambda s: order.get(s.path[0], len(order)))
    taught = {(sample.prompt, sample.answer) for sample in samples}
    groups = {name: tuple(s for s in rows[name] if (s.prompt, s.answer) not in taught) for name in ASKED}
    return Corpus(samples=tuple(samples), groups=groups, digest=digest_of(files.values()))


def evaluation_groups(folder: str | Path) -> dict[str, tuple[Sample, ...]]:
    """Read all rows of the five files; each file is a group.

    Raises
    ------
    InputError
        If a file is missing or malformed.
    """
    return {name: tuple(_sample(name, n, row) for n, row in enumerate(f.rows)) for name, f in _read(folder).items()}


def _read(folder: str | Path) -> Mapping[str, RowFile]:
    expected = "RWKU's file '{}' in the folder that is named"
    return {
        name: read_row_file(Path(folder) / f"{name}.jsonl", expected=expected.format(f"{name}.jsonl"))
        for name in (*TAUGHT, *ASKED)
    }


def _sample(file: str, number: int, row: Row) -> Sample:
    kind = text_of(row, "type", required=False)
    asked = BLANK if file.endswith("level1") else IN_CONTEXT if kind == "incontext learning" else BRIEF
    return Sample(
        id=f"rwku/{file}/{number}",
        prompt=asked.format(text_of(row, "query")),
        answer=text_of(row, "answer"),
        path=(text_of(row, "subject"),),
        extras={"level": file},
    )
