"""Your own question-answer or instruction data: a file, a folder of them, or a hub data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oblivion.config import DataConfig
from oblivion.data.chats import unfold
from oblivion.data.columns import ANSWERS, QUESTIONS, USUAL, Columns, check_columns, find_columns
from oblivion.data.corpus import Corpus
from oblivion.data.datasets import mapped_columns, with_paths
from oblivion.data.hub import is_hub_id, read_hub_table
from oblivion.data.owners import Owners, printed
from oblivion.data.row_files import is_row_file, owner_name, read_row_file
from oblivion.data.rows import Faults, Row, RowFile, digest_of, text_of, texts_of
from oblivion.errors import ConfigError, InputError
from oblivion.parameters import ParameterError
from oblivion.types import Sample

_OPTIONAL = ("context", "paraphrase", "wrong-answers")


@mapped_columns
@with_paths("holdout")
def load(
    data: DataConfig,
    *,
    clients: int,
    seed: int,
    pattern: str = "",
    holdout: str = "",
    subset: str = "",
    split: str = "train",
    revision: str = "",
) -> Corpus:
    """Load your own questions and answers: JSON, CSV, TSV or Parquet, in a file, a folder, or a hub data set.

    Parameters
    ----------
    data : DataConfig
        `path` is a file, a folder (one file per client, unless ``columns.client`` is set) or a hub id.
        `columns` maps meanings to columns: ``question``, ``answer``, ``context`` (joined to the question on a
        line of its own), ``client``, ``id``, ``label``, ``paraphrase``, ``wrong-answers``,
        ``alternate``.
    clients, seed
        Not used: the data is what it is.
    pattern : str, default ""
        The files of a folder, with wildcards; by default all files of rows.
    holdout : str, default ""
        A file of rows that nobody trains on, looked for here and then in the folder.
    subset, split, revision : str
        The subset, the split and the revision of a hub data set; the split is ``train`` by default.

    Returns
    -------
    Corpus
        Sample ids are those of ``columns.id``, else ``jsonl/<hash>`` over question and answer. `client_id` is
        set where a column or a file names the owner; `names` has the names that are no ids.

    Raises
    ------
    ParameterError
        If `pattern` is no file name.
    ConfigError
        If a column is unknown, or ``data.path`` is empty.
    InputError
        If a file is missing or rows are malformed; names file and line of each.
    """
    if "/" in pattern:
        raise ParameterError(f"pattern = {pattern!r} is not allowed; it must be a file name with wildcards")
    held, faults, owners = _holdout_path(data, holdout), Faults(), Owners()
    hub = {"subset": subset, "split": split, "revision": revision}
    files, one_per_client = _files(data, pattern, held, hub, faults)
    samples = _owned(files, data.columns, owners, one_per_client, faults)
    groups = {}
    if held is not None:
        with faults.collect():
            reserved = _unfolded(read_row_file(held, _names(data.columns), faults=faults), data.columns, faults)
            groups["holdout"] = _reserved(reserved, data.columns, "holdout", samples, faults)
            files = [*files, reserved]
    faults.check()
    return Corpus(samples=samples, groups=groups, digest=digest_of(files), names=owners.names)


def load_rows(path: str, columns: Mapping[str, str], prefix: str) -> tuple[tuple[Sample, ...], str]:
    """Load rows that no client owns, such as the server's public ones.

    Parameters
    ----------
    path : str
        A file or a hub id.
    columns : mapping of str to str
        The column map, as in ``data.columns``; owner, id and label are left aside.
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
    faults = Faults()
    hub = is_hub_id(path)
    file = read_hub_table(path) if hub else read_row_file(Path(path), _names(columns), faults=faults)
    samples = _reserved(_unfolded(file, columns, faults), columns, prefix, (), faults)
    faults.check()
    return samples, digest_of([file])


def _names(columns: Mapping[str, str]) -> tuple[str, ...]:
    return (*USUAL, *columns.values())


def _holdout_path(data: DataConfig, holdout: str) -> Path | None:
    if not holdout:
        return None
    path, inside = Path(holdout), Path(data.path) / holdout
    return inside if not path.exists() and inside.is_file() else path


def _files(
    data: DataConfig, pattern: str, holdout: Path | None, hub: Mapping[str, str], faults: Faults
) -> tuple[list[RowFile], bool]:
    """Read the files, sorted by name, and say whether each is one client's."""
    if not data.path:
        raise ConfigError("data.path is empty; data.name = 'jsonl' needs a file, a folder or a hub id")
    if is_hub_id(data.path):
        return [_unfolded(read_hub_table(data.path, **hub), data.columns, faults)], False
    path = Path(data.path)
    whole_folder = path.is_dir()
    files = []
    for one in _paths(path, data, pattern, holdout) if whole_folder else [path]:
        with faults.collect():
            files.append(_unfolded(read_row_file(one, _names(data.columns), faults=faults), data.columns, faults))
    return files, whole_folder and not data.columns.get("client")


def _paths(folder: Path, data: DataConfig, pattern: str, holdout: Path | None) -> list[Path]:
    reserved = {Path(path).resolve() for path in (holdout, data.public) if path}
    # A pipe or a device is refused when it is read.
    found = [p for p in sorted(folder.glob(pattern or "*")) if not p.is_dir()]
    paths = [p for p in found if (pattern or is_row_file(p)) and p.resolve() not in reserved]
    if not paths:
        what = f"no file matches data.parameters.pattern = '{pattern}'" if pattern else "no JSON, CSV, TSV or Parquet"
        raise InputError(f"{folder}: {what}; expected one file per client")
    return paths


def _unfolded(file: RowFile, columns: Mapping[str, str], faults: Faults) -> RowFile:
    """Return the file with the questions and answers of its conversations as columns."""
    if columns.get("question") or columns.get("answer"):
        return file
    rows = []
    for row in file.rows:
        with faults.collect():
            rows.append(unfold(row, QUESTIONS, ANSWERS))
    return replace(file, rows=tuple(rows))


def _owned(
    files: Sequence[RowFile], columns: Mapping[str, str], owners: Owners, one_per_client: bool, faults: Faults
) -> tuple[Sample, ...]:
    """Return the samples of all files, with their owners where the data names them."""
    files = [file for file in files if file.rows]
    if not files:
        faults.check()
    try:
        named = check_columns(columns, files)
        found = [find_columns(named, file) for file in files]
    except ConfigError:
        faults.check()  # a broken row is the likelier reason
        raise
    samples = []
    for file, meant in zip(files, found, strict=True):
        owner = ""
        if one_per_client:
            with faults.collect():
                owner = owners.of_file(owner_name(file.name), file.name)
        for row in file.rows:
            with faults.collect():
                client = owners.of_row(row, meant.client) if meant.client else owner
                sample_id = owners.sample_id(row, meant.id) if meant.id else ""
                samples.append(_sample(row, meant, "jsonl", client, sample_id))
    return tuple(samples)


def _extra(row: Row, name: str, column: str) -> str:
    if name == "label":  # labels are printed in lists
        return printed(row, column)
    return text_of(row, column, required=False).strip()


def _sample(row: Row, columns: Columns, prefix: str, client: str, sample_id: str) -> Sample:
    prompt, answer = text_of(row, columns.question), text_of(row, columns.answer)
    context = _context(row, columns.contexts)
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
        extras={name: _extra(row, name, column) for name, column in columns.extras() if column},
    )


def _context(row: Row, columns: Sequence[str]) -> str:
    """Return the text in the one of `columns` that the row has."""
    filled = {name: text for name in columns if (text := text_of(row, name, required=False)).strip()}
    if len(filled) > 1:
        raise InputError(
            f"{row.where}: has both {' and '.join(filled)}; set data.columns.context to the one that is meant"
        )
    return next(iter(filled.values()), "")


def _reserved(
    file: RowFile, columns: Mapping[str, str], prefix: str, training: Sequence[Sample], faults: Faults
) -> tuple[Sample, ...]:
    """Return rows without owners, none of which may be among `training`."""
    if not file.rows:
        return ()
    named = check_columns({key: columns[key] for key in ("question", "answer") if key in columns}, [file])
    optional = {key.replace("_", "-"): column for key, column in columns.items()}
    found = find_columns({**{key: optional[key] for key in _OPTIONAL if key in optional}, **named}, file)
    trained = {(sample.prompt, sample.answer) for sample in training}
    samples = []
    for row in file.rows:
        with faults.collect():
            sample = _sample(row, found, prefix, "", "")
            if (sample.prompt, sample.answer) in trained:
                raise InputError(
                    f"{row.where}: this row is also among the training rows; take it out of one of the files"
                )
            samples.append(sample)
    return tuple(samples)
