"""Rows of a JSON file, each with the place it came from, so that every later error can name file and line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oblivion.errors import InputError

EXPECTED = "one JSON object per line, or one JSON array of objects"


@dataclass(frozen=True)
class Row:
    """One record: its values, and where it stands (``file:line``)."""

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class RowFile:
    """The records of one file.

    Attributes
    ----------
    name : str
        File name without its folder, or the id of a hub table.
    rows : tuple of Row
        In file order; at least one.
    sha256 : str
        Of the raw bytes.
    """

    name: str
    rows: tuple[Row, ...]
    sha256: str


def read_row_file(path: Path, expected: str = EXPECTED) -> RowFile:
    """Read JSON lines or one JSON array; which of the two is seen from the first character.

    Parameters
    ----------
    path : Path
        UTF-8, with or without a byte order mark.
    expected : str
        What the file should hold, for the message if it is not there.

    Raises
    ------
    InputError
        If the file is missing or empty, or a record is not a JSON object; names file and line.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text; expected {expected}") from None
    rows = _array(path, text) if text.lstrip()[:1] == "[" else _lines(path, text)
    if not rows:
        raise InputError(f"{path}: holds no rows; expected {EXPECTED}")
    return RowFile(path.name, tuple(rows), hashlib.sha256(raw).hexdigest())


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a record is {type(value).__name__}; expected {EXPECTED}")
    return Row(value, where)


def _lines(path: Path, text: str) -> list[Row]:
    rows = []
    # str.splitlines would also cut at U+2028 and others, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON ({_reason(error)}); expected {EXPECTED}") from None
        rows.append(_row(value, f"{path}:{number}"))
    return rows


def _array(path: Path, text: str) -> list[Row]:
    decoder = json.JSONDecoder()
    rows: list[Row] = []
    position = text.index("[") + 1
    line, counted = 1, 0
    while True:
        position = _skip_blank(text, position)
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]" and not rows:
            break
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", line)
            raise InputError(f"{path}:{line}: not JSON ({_reason(error)}); expected {EXPECTED}") from None
        rows.append(_row(value, f"{path}:{line}"))
        position = _skip_blank(text, position)
        if text[position : position + 1] == "]":
            break
        if text[position : position + 1] != ",":
            line += text.count("\n", counted, position)
            raise InputError(f"{path}:{line}: expected ',' or ']' after record {len(rows)} of the array")
        position += 1
    if text[position + 1 :].strip():
        line += text.count("\n", counted, position)
        raise InputError(f"{path}:{line}: there is more text after the array; expected {EXPECTED}")
    return rows


def _reason(error: Exception) -> str:
    # The decoder's own text counts lines from where it started, which is not where the file starts.
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _skip_blank(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position


def text_of(row: Row, column: str, *, required: bool = True) -> str:
    """Return the text in `column`.

    Parameters
    ----------
    row : Row
        The record.
    column : str
        Its key.
    required : bool, default True
        Whether a missing, null or blank value is an error; else it gives "".

    Raises
    ------
    InputError
        Naming file, line and column, if the value is missing or blank, or no text.
    """
    value = row.values.get(column)
    if value is None and not required:
        return ""
    if value is None:
        raise InputError(f"{row.where}: column '{column}' is missing; this row has: {', '.join(sorted(row.values))}")
    if not isinstance(value, str):
        raise InputError(f"{row.where}: column '{column}' is {type(value).__name__}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{row.where}: column '{column}' holds half of a surrogate pair; write the character as UTF-8"
        ) from None
    if required and not value.strip():
        raise InputError(f"{row.where}: column '{column}' is empty; fill it or delete the row")
    return value


def texts_of(row: Row, column: str, *, required: bool = True) -> tuple[str, ...]:
    """Return the list of texts in `column`; one text alone counts as a list of one.

    Raises
    ------
    InputError
        As `text_of`, and if an item of the list is no text or blank.
    """
    value = row.values.get(column)
    if not isinstance(value, list):
        text = text_of(row, column, required=required)
        return (text,) if text.strip() else ()
    if required and not value:
        raise InputError(f"{row.where}: column '{column}' is an empty list; expected at least one text")
    return tuple(text_of(Row({column: item}, row.where), column) for item in value)


def digest_of(files: Iterable[RowFile]) -> str:
    """SHA-256 over the names and raw-byte digests of the files, sorted, so that moving a row is seen."""
    lines = sorted(f"{file.sha256}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_of_texts(digests: Iterable[str]) -> str:
    """SHA-256 over several digests, in their order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
