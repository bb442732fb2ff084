"""Read a file of rows in whatever layout it has: its content chooses the reader, then the end of its name."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Collection
from pathlib import Path

from oblivion.data import csv_rows, parquet_rows
from oblivion.data.columns import USUAL
from oblivion.data.json_rows import SHAPES, json_rows
from oblivion.data.rows import MOST_VALUES, Faults, Row, RowFile
from oblivion.errors import InputError
from oblivion.untrusted import read

EXPECTED = "JSON, CSV, TSV or Parquet"
JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
ENDINGS = (*JSON_ENDINGS, *csv_rows.ENDINGS, ".parquet")
_BEGINS_JSON = re.compile(r"""\s*(\{\s*["}]|\[\s*["{\[\]])""")
"""The beginning of rows as JSON; a table's header may begin with a bracket, too."""
_GZIP = b"\x1f\x8b"
_MOST = 2**30
"""The most bytes of a file, also once it is unpacked: far above any table of texts, far below a machine's memory."""
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; unpack it, or save the sheet as 'CSV UTF-8'",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as 'CSV UTF-8'",
    b"BZh": "packed with bzip2; unpack it, or pack it with gzip",
    b"\xfd7zXZ": "packed with xz; unpack it, or pack it with gzip",
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it, or pack it with gzip",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    _GZIP: "packed twice with gzip; unpack it",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8 (in Excel: 'CSV UTF-8')",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8 (in Excel: 'CSV UTF-8')",
}


def owner_name(name: str) -> str:
    """Return a file's name without the endings that say how it is written: ``alice.v2`` for ``alice.v2.csv.gz``."""
    bare = name[: -len(".gz")] if name.lower().endswith(".gz") else name
    return Path(bare).stem


def is_row_file(path: Path) -> bool:
    """Return whether the name is that of a file of rows; hidden files are none, and a ``.txt`` is likelier a note."""
    return _ending(path) in ENDINGS and _ending(path) != ".txt" and not path.name.startswith(".")


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_row_file(
    path: Path, names: Collection[str] = USUAL, *, expected: str = EXPECTED, faults: Faults | None = None
) -> RowFile:
    """Read the rows of a file: JSON in several shapes, CSV, TSV or Parquet, also packed with gzip.

    Parameters
    ----------
    path : Path
        Text is UTF-8, with or without a byte order mark.
    names : collection of str, optional
        Columns that the data may have; see `json_rows`.
    expected : str
        What the file should be, for the message if it is missing.
    faults : Faults, optional
        Collects what is wrong with single rows; without it, that is raised as well.

    Raises
    ------
    InputError
        If the file is missing, empty, or in no layout that is read; names file and line.
    """
    own = Faults() if faults is None else faults
    before = len(own)
    raw = read_bytes(path, expected)
    rows = (
        parquet_rows.parquet_rows(path, raw)
        if raw.startswith(parquet_rows.MAGIC)
        else _text_rows(path, decode(path, raw), names, own)
    )
    if faults is None:
        own.check()
    if not rows and len(own) == before:
        raise InputError(f"{path}: holds no rows; expected {EXPECTED}")
    return RowFile(path.name, tuple(rows), hashlib.sha256(raw).hexdigest())


def read_bytes(path: Path, expected: str) -> bytes:
    """Return the bytes of the file, which are unpacked where it is packed with gzip.

    Raises
    ------
    InputError
        If it is missing, too large or damaged.
    """
    raw = read(path, expected, most=_MOST)
    if not raw.startswith(_GZIP):
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            unpacked = file.read(_MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is packed with gzip and damaged ({error})") from None
    if len(unpacked) > _MOST:
        raise InputError(f"{path}: unpacks to more than {_MOST >> 30} GiB; expected {expected}")
    return unpacked


def decode(path: Path, raw: bytes, expected: str = EXPECTED) -> str:
    """Return the text of a file.

    Raises
    ------
    InputError
        If it is not UTF-8 text; says what it is, if that can be recognised, and what to do.
    """
    for magic, what in _OTHERS.items():
        if raw.startswith(magic):
            raise InputError(f"{path}: is {what}; expected {expected}")
    if raw[257:262] == b"ustar":
        raise InputError(f"{path}: is a tar archive; unpack it; expected {expected}")
    nul = raw.find(b"\0")
    if nul >= 0:
        line = raw.count(b"\n", 0, nul) + 1
        raise InputError(f"{path}:{line}: holds a NUL byte, so it is not UTF-8 text (UTF-16?); save it as UTF-8")
    try:
        return raw.decode().lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: not UTF-8 text; save it as UTF-8 (in Excel: 'CSV UTF-8'); expected {expected}"
        ) from None


def _text_rows(path: Path, text: str, names: Collection[str], faults: Faults) -> list[Row]:
    if not text.strip():
        return []
    table = _ending(path) in csv_rows.ENDINGS and not _BEGINS_JSON.match(text)
    if sum(map(text.count, ",;\t|\n" if table else "{[,")) > MOST_VALUES:  # this is checked before they take memory
        raise InputError(f"{path}: holds more than {MOST_VALUES} values; split it into several files")
    if table:
        return csv_rows.csv_rows(path, text, faults, tabs=_ending(path) in csv_rows.TABS)
    if _ending(path) not in JSON_ENDINGS and text.lstrip()[0] not in "[{":
        raise InputError(
            f"{path}: is not JSON, and its name does not end in {', '.join(csv_rows.ENDINGS)}; "
            f"expected {EXPECTED} ({SHAPES})"
        )
    return json_rows(path, text, names, faults)
