"""Read the rows of a table in text: CSV with commas or semicolons, and TSV."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from oblivion.data.rows import LONGEST, Faults, Row
from oblivion.data.rows import named as column_shown
from oblivion.errors import InputError, plural

TABS = (".tsv", ".tab")
ENDINGS = (".csv", *TABS, ".txt")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_HEADER = 2**20
"""The number of characters in which the header is looked for."""
_NOTE = re.compile(r"sep=(.)\r?\n")
"""A first line that Excel reads and writes."""


def csv_rows(path: Path, text: str, faults: Faults, *, tabs: bool = False) -> list[Row]:
    """Read a table whose first line names the columns.

    Parameters
    ----------
    path : Path
        The path of the file, for messages.
    text : str
        The whole file. A text with the delimiter, a quote or a line break in it stands in double quotes.
    faults : Faults
        Collects what is wrong with single rows.
    tabs : bool, default False
        Whether tabs in the header count before any other delimiter.

    Raises
    ------
    InputError
        If there is no header with at least two columns, or a name stands in it twice.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a text may be long
    note = _NOTE.match(text)
    delimiter = note[1] if note else _delimiter(text, tabs)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[Row] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return rows
        except csv.Error as error:
            with faults.collect():
                raise InputError(
                    f"{path}:{line}: the row that begins here is not CSV with {_name(delimiter)} ({error}); a text "
                    "with quotes in it must stand in double quotes, with its own quotes doubled"
                ) from None
            return rows
        if sum(map(len, cells)) > LONGEST:
            raise InputError(f"{path}:{line}: a row of more than {LONGEST >> 20} million characters is not read")
        if not any(cell.strip() for cell in cells) or (note and line == 1):
            continue
        if not header:
            header = _header(path, line, cells)
            continue
        with faults.collect():
            rows.append(_row(f"{path}:{line}", header, cells, delimiter))


def _name(delimiter: str) -> str:
    return _DELIMITERS.get(delimiter, "another delimiter")


def _delimiter(text: str, tabs: bool) -> str:
    """Return the delimiter that makes the most columns of the header."""
    columns = {delimiter: _columns(text[:_HEADER], delimiter) for delimiter in _DELIMITERS}
    if tabs and columns["\t"] > 1:
        return "\t"
    return max(columns, key=lambda delimiter: columns[delimiter])


def _columns(text: str, delimiter: str) -> int:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return len(next((cells for cells in reader if any(cells)), ()))
    except csv.Error:
        return 0


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    while not header[-1]:  # some programs end lines with delimiters
        header.pop()
    named = [name for name in header if name]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise InputError(f"{path}:{line}: the header names the column {column_shown(twice[0])} twice; rename one")
    if len(named) < 2:
        raise InputError(
            f"{path}:{line}: the first line is no header with several columns; expected their names, with commas, "
            "semicolons or tabs between them"
        )
    return header


def _row(where: str, header: list[str], cells: list[str], delimiter: str) -> Row:
    if not any(cell.strip() for cell in cells[len(header) :]):
        cells = cells[: len(header)]
    if len(cells) != len(header):
        raise InputError(
            f"{where}: has {plural(len(cells), 'cell')} and the header {len(header)} (with {_name(delimiter)}); "
            "put a text that holds the delimiter or a line break in double quotes"
        )
    for place, (name, cell) in enumerate(zip(header, cells, strict=True), start=1):
        if cell.strip() and not name and place > 1:  # the first such column is the index that pandas writes
            raise InputError(f"{where}: has a text in column {place}, which the header does not name")
    return Row({name: cell for name, cell in zip(header, cells, strict=True) if name}, where)
