"""Your own vectors: a table in which one column is the class, and all others are numbers.

Files are JSON, CSV, TSV or Parquet, as `oblivion.data.row_files` reads them. The numbers are taken as they are: scale
them before, with constants that are nobody's in particular.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oblivion.config import DataConfig
from oblivion.data.corpus import Corpus
from oblivion.data.datasets import with_paths
from oblivion.data.owners import Owners
from oblivion.data.row_files import read_row_file
from oblivion.data.rows import Faults, Row, digest_of, named, text_of
from oblivion.data.vectors import LARGEST, MOST_CLASSES, MOST_FEATURES, fault, vector_sample
from oblivion.errors import ConfigError, InputError, nearest
from oblivion.parameters import check_count
from oblivion.types import Sample

_MEANINGS = ("label", "client", "id")


@with_paths("holdout")
def load(data: DataConfig, *, clients: int, seed: int, classes: int = 0, holdout: str = "") -> Corpus:
    """Load a table of vectors.

    Parameters
    ----------
    data : DataConfig
        `path` is the file. `columns` may name the columns ``label`` (default ``label``), ``client`` (the owner) and
        ``id``; every other column is a feature.
    clients, seed
        Not used: nothing is drawn.
    classes : int, default 0
        How many classes there are; 0 for one more than the largest in the files. Set it where the last class may
        leave with a client.
    holdout : str, default ""
        A file with the same columns, whose rows nobody trains on; empty for none.

    Returns
    -------
    Corpus
        Samples with the id in their column, or ``vectors/<hash of the content>``. The group ``holdout`` if there are
        any.

    Raises
    ------
    ConfigError
        If ``data.path`` is empty, or a column is not there.
    ParameterError
        If `classes` is out of range.
    InputError
        If a file is missing or malformed; one line for every bad row, with the file and its place.
    """
    check_count("classes", classes, 0, MOST_CLASSES)
    if not data.path:
        raise ConfigError("data.path is empty; data.name = 'vectors' needs a table with a class and numbers in a row")
    faults = Faults()
    files = [read_row_file(Path(path), faults=faults) for path in (data.path, holdout) if path]
    faults.check()
    columns = _columns(data, files[0].rows[0])
    read = [[_label(row, columns.label, classes, faults) for row in file.rows] for file in files]
    faults.check()
    count = classes or 1 + max(1, *(label for labels in read for label in labels))
    owners = Owners()
    groups = []
    for file, labels, owned in zip(files, read, (True, False), strict=False):
        samples = []
        for row, label in zip(file.rows, labels, strict=True):
            with faults.collect():
                samples.append(_sample(row, label, count, columns, owners if owned else None))
        groups.append(tuple(samples))
    faults.check()
    held = {"holdout": groups[1]} if len(groups) > 1 else {}
    return Corpus(samples=groups[0], groups=held, digest=digest_of(files), names=owners.names)


@dataclass(frozen=True)
class _Columns:
    """Names of the columns; empty for a column that is not there."""

    features: Sequence[str]
    label: str
    client: str
    id: str


def _columns(data: DataConfig, first: Row) -> _Columns:
    for meaning, column in data.columns.items():
        if meaning not in _MEANINGS:
            raise ConfigError(f"data.columns: unknown meaning '{meaning}'; {nearest(meaning, _MEANINGS)}")
        if column and column not in first.values:
            raise ConfigError(f"data.columns.{meaning} = '{column}': {first.where} has no such column")
    label, client, own = (data.columns.get(meaning, "") for meaning in _MEANINGS)
    label = label or "label"
    if label not in first.values:
        raise ConfigError(f"{first.where}: there is no column 'label'; set data.columns.label to that of the class")
    features = [column for column in first.values if column not in (label, client, own)]
    if not 1 <= len(features) <= MOST_FEATURES:
        raise InputError(f"{first.where}: has {len(features)} features; from 1 to {MOST_FEATURES} are accepted")
    return _Columns(features, label, client, own)


def _label(row: Row, column: str, classes: int, faults: Faults) -> int:
    with faults.collect():
        text = text_of(row, column).strip()
        most = classes or MOST_CLASSES
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        if not 0 <= number < most:
            raise InputError(
                f"{row.where}: column {named(column)} holds no class; whole numbers from 0 to {most - 1} are accepted"
            )
        return number
    return 0


def _sample(row: Row, label: int, classes: int, columns: _Columns, owners: Owners | None) -> Sample:
    known = {*columns.features, columns.label, columns.client, columns.id}
    if extra := sorted(row.values.keys() - known):
        raise InputError(f"{row.where}: has another column, {named(extra[0])}, than the first row of the data")
    features = [_number(row, column) for column in columns.features]
    content = hashlib.sha256(repr((features, label)).encode()).hexdigest()[:16]
    sample_id = owners.sample_id(row, columns.id) if owners and columns.id else f"vectors/{content}"
    client = owners.of_row(row, columns.client) if owners and columns.client else ""
    return vector_sample(features, label, classes, id=sample_id, client=client)


def _number(row: Row, column: str) -> float:
    text = text_of(row, column)
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{row.where}: column {named(column)} holds no number, and every feature is one") from None
    if not abs(value) <= LARGEST:
        raise InputError(f"{row.where}: column {named(column)} is {fault(value)}")
    return value
