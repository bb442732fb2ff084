"""Your own question-answer or instruction data: a JSON file, a folder of them, or a hub data set."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oblivion.config import DataConfig
from oblivion.data.columns import Columns, find_columns
from oblivion.data.corpus import Corpus
from oblivion.data.hub import is_hub_id, read_hub_table
from oblivion.data.json_rows import Row, RowFile, digest_of, read_row_file, text_of, texts_of
from oblivion.errors import ConfigError, InputError, nearest
from oblivion.types import CLIENT_ID, Sample

PARAMETERS = ("holdout", "pattern", "revision", "split", "subset")
_NO_OWNER = ("client", "id", "label")


def load(data: DataConfig, *, clients: int, seed: int) -> Corpus:
    """Your own questions and answers: JSON lines or arrays, one file, a folder, or a hub data set.

    Parameters
    ----------
    data : DataConfig
        `path` is a file, a folder (one file per client, unless ``columns.client`` is set) or a hub id.
        `columns` maps meanings to columns: ``question``, ``answer``, ``context`` (joined to the question on a
        line of its own), ``client``, ``id``, ``label``, ``paraphrase``, ``wrong-answers``. In `parameters`:
        ``pattern`` (of the files in a folder, default ``*.json*``), ``holdout`` (a file of rows that nobody
        trains on, looked for here and then in the folder), and for a hub data set ``subset``, ``split``
        (default ``train``) and ``revision``.
    clients, seed
        Not used: the data is what it is.

    Returns
    -------
    Corpus
        Sample ids are those of ``columns.id``, else ``jsonl/<hash>`` over question and answer. `client_id` is
        set where a column or a file names the owner.

    Raises
    ------
    ConfigError
        If a parameter or column is unknown.
    InputError
        If a file is missing or a row malformed; names file and line.
    """
    for name in data.parameters:
        if name not in PARAMETERS:
            raise ConfigError(f"data.parameters: 'jsonl' has no parameter '{name}'; {nearest(name, PARAMETERS)}")
    holdout = _holdout_path(data)
    files, one_per_client = _files(data, holdout)
    columns = find_columns(data.columns, files[0].rows[0])
    samples = _Owners().samples(files, columns, one_per_client=one_per_client)
    groups = {}
    if holdout is not None:
        reserved = read_row_file(holdout)
        groups["holdout"] = _reserved(reserved, data.columns, "holdout", samples)
        files = [*files, reserved]
    return Corpus(samples=samples, groups=groups, digest=digest_of(files))


def load_rows(path: str, columns: Mapping[str, str], prefix: str) -> tuple[tuple[Sample, ...], str]:
    """Rows that no client owns, such as the server's public ones.

    Parameters
    ----------
    path : str
        A file or a hub id.
    columns : mapping of str to str
        As ``data.columns``; owner, id and label are left aside.
    prefix : str
        Sample ids are ``<prefix>/<hash>``.

    Returns
    -------
    tuple of (tuple of Sample, str)
        The rows, and the SHA-256 digest of their content.

    Raises
    ------
    ConfigError, InputError
        As `load`.
    """
    file = read_hub_table(path) if is_hub_id(path) else read_row_file(Path(path))
    return _reserved(file, columns, prefix, ()), digest_of([file])


def _holdout_path(data: DataConfig) -> Path | None:
    value = data.parameters.get("holdout", "")
    if not isinstance(value, str):
        raise ConfigError(f"data.parameters.holdout = {value!r}: expected the path of a file")
    if not value:
        return None
    path = Path(value)
    inside = Path(data.path) / value
    return inside if not path.exists() and inside.is_file() else path


def _files(data: DataConfig, holdout: Path | None) -> tuple[list[RowFile], bool]:
    """Read the files, sorted by name, and say whether each is one client's."""
    if not data.path:
        raise ConfigError("data.path is empty; data.name = 'jsonl' needs a file, a folder or a hub id")
    if is_hub_id(data.path):
        parameters = {
            key: str(data.parameters[key]) for key in ("subset", "split", "revision") if key in data.parameters
        }
        return [read_hub_table(data.path, **parameters)], False
    path = Path(data.path)
    if not path.is_dir():
        return [read_row_file(path)], False
    pattern = data.parameters.get("pattern", "*.json*")
    if not isinstance(pattern, str) or not pattern or "/" in pattern:
        raise ConfigError(f"data.parameters.pattern = {pattern!r}: expected a file name with wildcards")
    reserved = holdout.resolve() if holdout else None
    paths = [p for p in sorted(path.glob(pattern)) if p.is_file() and p.resolve() != reserved]
    if not paths:
        raise InputError(f"{path}: no file matches data.parameters.pattern = '{pattern}'; expected one per client")
    return [read_row_file(p) for p in paths], not data.columns.get("client")


@dataclass
class _Named:
    """A name that was seen, and where first."""

    raw: str
    where: str


class _Owners:
    """Turns rows into samples and sees to it that no two owners and no two rows get one name."""

    def __init__(self) -> None:
        self.slugs: dict[str, _Named] = {}
        self.ids: dict[str, str] = {}

    def samples(self, files: Sequence[RowFile], columns: Columns, *, one_per_client: bool) -> tuple[Sample, ...]:
        samples = []
        for file in files:
            owner = self._slug(Path(file.name).stem, file.name) if one_per_client else ""
            for row in file.rows:
                client = self._slug(_scalar(row, columns.client), row.where) if columns.client else owner
                sample_id = self._id(row, columns.id) if columns.id else ""
                samples.append(_sample(row, columns, "jsonl", client, sample_id))
        return tuple(samples)

    def _slug(self, raw: str, where: str) -> str:
        slug = re.sub(r"[^a-z0-9_-]", "-", raw.lower()).lstrip("-_")
        if not CLIENT_ID.fullmatch(slug):
            raise InputError(
                f"{where}: '{raw}' makes no client id; expected up to 64 characters, beginning with a "
                "letter or digit (a-z, 0-9; other characters become '-')"
            )
        first = self.slugs.setdefault(slug, _Named(raw, where))
        if first.raw != raw:
            raise InputError(
                f"{where}: '{raw}' and '{first.raw}' ({first.where}) both make the client id '{slug}'; rename one"
            )
        return slug

    def _id(self, row: Row, column: str) -> str:
        sample_id = _scalar(row, column)
        if sample_id in self.ids:
            raise InputError(
                f"{row.where}: id '{sample_id}' stands also at {self.ids[sample_id]}; ids must be "
                "unique in the whole data set (leave out data.columns.id to get ids from the content)"
            )
        self.ids[sample_id] = row.where
        return sample_id


def _scalar(row: Row, column: str) -> str:
    """The text or whole number in `column`, without blanks around it."""
    value: Any = row.values.get(column)
    if type(value) is int:
        return str(value)
    text = text_of(row, column).strip()
    if "\n" in text or "\r" in text:
        raise InputError(f"{row.where}: column '{column}' has a line break in {text!r}; expected one line")
    return text


def _sample(row: Row, columns: Columns, prefix: str, client: str, sample_id: str) -> Sample:
    prompt, answer = text_of(row, columns.question), text_of(row, columns.answer)
    context = text_of(row, columns.context, required=False) if columns.context else ""
    if context.strip():
        prompt = f"{prompt}\n{context}"
    content = hashlib.sha256(json.dumps([prompt, answer]).encode()).hexdigest()[:16]
    return Sample(
        id=sample_id or f"{prefix}/{content}",
        client_id=client,
        prompt=prompt,
        answer=answer,
        paraphrase=text_of(row, columns.paraphrase, required=False) if columns.paraphrase else "",
        wrong_answers=texts_of(row, columns.wrong_answers, required=False) if columns.wrong_answers else (),
        extras={"label": _scalar(row, columns.label)} if columns.label else {},
    )


def _reserved(file: RowFile, columns: Mapping[str, str], prefix: str, training: Sequence[Sample]) -> tuple[Sample, ...]:
    """Rows without owners; none of them may be among `training`."""
    kept = {
        key: column
        for key, column in columns.items()
        if key in ("question", "answer") or (key not in _NO_OWNER and column in file.rows[0].values)
    }
    found = find_columns(kept, file.rows[0])
    trained = {(sample.prompt, sample.answer) for sample in training}
    samples = []
    for row in file.rows:
        sample = _sample(row, found, prefix, "", "")
        if (sample.prompt, sample.answer) in trained:
            raise InputError(f"{row.where}: this row is also among the training rows; take it out of one of the files")
        samples.append(sample)
    return tuple(samples)
