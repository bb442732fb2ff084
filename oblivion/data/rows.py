"""The rows of a file, each with its place there, so that every later error can name file and line."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from oblivion.errors import InputError

SHOWN = 20
"""The number of bad rows that a message lists before it counts the rest."""
LONGEST = 2**24
"""The most characters of one record, and of one text: far more than any text that is learned from has."""
MOST_VALUES = 5 * 10**7
"""The most cells of a file: each takes far more memory than the few bytes that it may have there."""
_LONGEST_NAME = 60
_KINDS = {str: "a text", dict: "an object", list: "a list", bool: "true or false", type(None): "null"}


class Number(str):
    """A number of a JSON file, as it is written there."""


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
        The rows, in file order.
    sha256 : str
        The digest of the unpacked bytes.
    """

    name: str
    rows: tuple[Row, ...]
    sha256: str


class Faults:
    """A collection of what is wrong with single rows, so that one message can list all of it."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep an `InputError` of the body instead of ending with it."""
        try:
            yield
        except InputError as error:
            self._lines.append(str(error))

    def check(self) -> None:
        """Raise one `InputError` with everything that was collected, if anything was."""
        if not self._lines:
            return
        more = len(self._lines) - SHOWN
        lines = [*self._lines[:SHOWN], *([f"... and {more} more rows that cannot be used"] if more > 0 else [])]
        raise InputError("\n".join(lines))


def named(column: str) -> str:
    """Write a column's name for a message: short and printable, because it may come from the file."""
    text = "".join(c if c.isprintable() else "?" for c in column[:_LONGEST_NAME])
    return f"'{text}{'...' if len(column) > _LONGEST_NAME else ''}'"


def names_shown(columns: Iterable[str]) -> str:
    """Write the first of some columns' names for a message, sorted."""
    names = sorted(map(str, columns))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(named(name)[1:-1] for name in names[:SHOWN]) + more


def kind_of(value: Any) -> str:
    """Say in words what kind of value this is."""
    if isinstance(value, Number):
        return "a number"
    if isinstance(value, float) and math.isinf(value):
        return "infinity"
    return _KINDS.get(type(value), f"a value of type {type(value).__name__}")


def text_of(row: Row, column: str, *, required: bool = True) -> str:
    """Return the text in `column`; of a number, its digits as they are written.

    Parameters
    ----------
    row : Row
        The record.
    column : str
        The name of the column.
    required : bool, default True
        Whether a missing, null or blank value is an error; else it gives "".

    Raises
    ------
    InputError
        Naming file, line and column, if the value is missing or blank, or no text.
    """
    value = row.values.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):  # tables write "nothing" as NaN
        if not required:
            return ""
        if column in row.values:
            raise InputError(f"{row.where}: column {named(column)} is empty; fill it or delete the row")
        raise InputError(f"{row.where}: column {named(column)} is missing; this row has: {names_shown(row.values)}")
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{row.where}: column {named(column)} is {kind_of(value)}; expected text")
    if len(value) > LONGEST:
        raise InputError(
            f"{row.where}: column {named(column)} has a text of more than {LONGEST >> 20} million characters, which is "
            "not read"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{row.where}: column {named(column)} holds half of a surrogate pair; write the character as UTF-8"
        ) from None
    if required and not value.strip():
        raise InputError(f"{row.where}: column {named(column)} is empty; fill it or delete the row")
    return str(value)


def texts_of(row: Row, column: str, *, required: bool = True) -> tuple[str, ...]:
    """Return the list of texts in `column`; one text alone counts as a list of one.

    A table has no lists, so there a list stands as JSON text (``["one", "two"]``).

    Raises
    ------
    InputError
        As `text_of`, and if an item of the list is no text or blank.
    """
    value = row.values.get(column)
    if not isinstance(value, list):
        text = text_of(row, column, required=required)
        if not text.strip():
            return ()
        value = _written_list(row, column, text.strip())
    if required and not value:
        raise InputError(f"{row.where}: column {named(column)} is an empty list; expected at least one text")
    return tuple(text_of(Row({column: item}, row.where), column) for item in value)


def _written_list(row: Row, column: str, text: str) -> list[Any]:
    if not (text.startswith("[") and text.endswith("]")):
        return [text_of(row, column)]
    try:
        items: list[Any] = json.loads(text, parse_int=Number, parse_float=Number)
    except (ValueError, RecursionError):
        raise InputError(
            f"{row.where}: column {named(column)} looks like a list, but is not JSON; expected "
            '["one text", "another"] with double quotes'
        ) from None
    return items


def digest_of(files: Iterable[RowFile]) -> str:
    """Return SHA-256 over the sorted names and digests of the files, which shows that a row was moved."""
    lines = sorted(f"{file.sha256}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()  # a name may be no UTF-8 text


def digest_of_texts(digests: Iterable[str]) -> str:
    """Return SHA-256 over several digests, in their order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
