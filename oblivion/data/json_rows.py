"""Read the rows of a JSON text: an object per line, an array of them, an array in an object, or a table by column."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from oblivion.data.chats import is_chat
from oblivion.data.rows import LONGEST, SHOWN, Faults, Number, Row, kind_of, named, names_shown
from oblivion.errors import InputError

SHAPES = (
    'one JSON object per line, an array of objects, an array in an object ({"data": [...]}), or one array or table of '
    'values per column ({"question": [...], "answer": [...]})'
)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        # The key is not named: in a table by index it may be a person's name.
        raise ValueError("an object has one key twice")
    return values


_MARK = "\ufeff"
"""A byte order mark, which also stands inside a file that was put together from others."""
# Numbers are kept as they are written: as an answer, 3.50 is not 3.5.
_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, object_pairs_hook=_object)


def json_rows(path: Path, text: str, names: Collection[str], faults: Faults) -> list[Row]:
    """Read the rows of a JSON text; its layout is recognised by its content.

    Parameters
    ----------
    path : Path
        The path of the file, for messages.
    text : str
        The whole file.
    names : collection of str
        Columns that the data may have: they distinguish a record from an object that holds records.
    faults : Faults
        Collects what is wrong with single lines.

    Raises
    ------
    InputError
        If the text as a whole is none of the layouts.
    """
    if text.lstrip()[:1] == "[":
        return _array(path, text, text.index("["), faults, whole=True)
    try:
        document = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        if _by_line(text):
            return _lines(path, text, faults)
        line, expected = getattr(error, "lineno", 1), SHAPES
        if not text.lstrip().startswith("{"):
            expected += ", or a table of text with a name that ends in .csv or .tsv"
        raise InputError(f"{path}:{line}: not JSON ({_reason(error)}); expected {expected}") from None
    return _document(path, text, document, names, faults)


def _by_line(text: str) -> bool:
    """Return whether the first or second line is an object of its own (one of the two may be broken)."""
    return any(_is_object(line) for line in [line for line in text.split("\n", 64) if line.strip()][:2])


def _is_object(line: str) -> bool:
    try:
        return isinstance(_DECODER.decode(line.lstrip(_MARK)), dict)
    except (ValueError, RecursionError):
        return False


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a record is {kind_of(value)}, not an object")
    return Row(value, where)


def _check_length(path: Path, number: int, text: str) -> None:
    if len(text) > LONGEST:
        raise InputError(f"{path}:{number}: a record of more than {LONGEST >> 20} million characters is not read")


def _lines(path: Path, text: str, faults: Faults) -> list[Row]:
    rows = []
    # str.splitlines would also cut at U+2028 and others, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        with faults.collect():
            _check_length(path, number, line)
            try:
                value = _DECODER.decode(line.lstrip(_MARK))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number}: not JSON ({_reason(error)}); expected {SHAPES}") from None
            rows.append(_row(value, f"{path}:{number}"))
    return rows


def _array(path: Path, text: str, start: int, faults: Faults, whole: bool) -> list[Row]:
    """Return the objects of the array that begins at `start`; with `whole`, nothing may come after it."""
    rows: list[Row] = []
    count, position = 0, start + 1
    line, counted = 1, 0
    while True:
        position = _skip_blank(text, position)
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]" and not count:
            break
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", line)
            raise InputError(f"{path}:{line}: not JSON ({_reason(error)}); expected {SHAPES}") from None
        count += 1
        with faults.collect():
            rows.append(_row(value, f"{path}:{line}"))
        position = _skip_blank(text, position)
        if text[position : position + 1] == "]":
            break
        if text[position : position + 1] != ",":
            line += text.count("\n", counted, position)
            raise InputError(f"{path}:{line}: expected ',' or ']' after record {count} of the array")
        position += 1
    if whole and text[position + 1 :].strip():
        line += text.count("\n", counted, position)
        raise InputError(f"{path}:{line}: there is more text after the array; expected {SHAPES}")
    return rows


def _document(path: Path, text: str, document: Any, names: Collection[str], faults: Faults) -> list[Row]:
    """Return the rows of one JSON value, which is a record or holds records."""
    line = text.count("\n", 0, len(text) - len(text.lstrip())) + 1
    record = _row(document, f"{path}:{line}")
    values, known = list(record.values.values()), bool(record.values.keys() & set(names))
    if values and all(isinstance(value, dict) for value in values):
        return _table(path, document, known, names)
    if known and all(isinstance(value, list) for value in values) and not any(map(is_chat, values)):
        return _by_column(path, document)
    tables = [key for key, value in document.items() if _holds_objects(value)]
    if not known and len(tables) == 1:
        return _array(path, text, _position_of(text, tables[0]), faults, whole=False)
    if known or not any(isinstance(value, (dict, list)) for value in values):
        _check_length(path, line, text)
        return [record]
    raise InputError(f"{path}: {_unknown(document, tables)}; expected {SHAPES}")


def _unknown(document: dict[str, Any], tables: list[str]) -> str:
    if tables:
        return f"holds more than one table ({names_shown(tables)}); keep one in a file"
    keys = names_shown(document)
    return f"is JSON, one object with the keys {keys}, in which no rows are found (name its columns in data.columns)"


def _holds_objects(value: Any) -> bool:
    filled = isinstance(value, list) and bool(value)
    return filled and all(isinstance(item, dict) for item in value) and not is_chat(value)


def _position_of(text: str, key: str) -> int:
    """Return where the value of `key` begins in the text of a valid object."""
    position = _skip_blank(text, text.index("{") + 1)
    while True:
        name, position = _DECODER.raw_decode(text, position)
        position = _skip_blank(text, _skip_blank(text, position) + 1)
        if name == key:
            return position
        _, position = _DECODER.raw_decode(text, position)
        position = _skip_blank(text, _skip_blank(text, position) + 1)


def _by_column(path: Path, document: dict[str, list[Any]]) -> list[Row]:
    lengths = {key: len(values) for key, values in document.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{named(key)[1:-1]} {length}" for key, length in list(lengths.items())[:SHOWN])
        raise InputError(f"{path}: its columns have different numbers of values ({said}); expected one per row in each")
    records = zip(*document.values(), strict=True)
    return [
        Row(dict(zip(document, values, strict=True)), f"{path}: row {number}")
        for number, values in enumerate(records, start=1)
    ]


def _table(path: Path, document: dict[str, dict[str, Any]], known: bool, names: Collection[str]) -> list[Row]:
    """Return the rows of values by column and index, as ``DataFrame.to_json`` writes them, or of rows by index."""
    inner = list(dict.fromkeys(key for values in document.values() for key in values))
    if not known and set(inner) & set(names):
        return [Row(values, f"{path}: row {number}") for number, values in enumerate(document.values(), start=1)]
    if not known:
        raise InputError(f"{path}: {_unknown(document, [])}; expected {SHAPES}")
    return [
        Row({key: values[index] for key, values in document.items() if index in values}, f"{path}: row {number}")
        for number, index in enumerate(inner, start=1)
    ]


def _reason(error: Exception) -> str:
    # The decoder's own text counts lines from where it started, which is not where the file starts.
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _skip_blank(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position
