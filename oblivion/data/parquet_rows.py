"""Rows of a Parquet file, read through the optional package `pyarrow`."""

from __future__ import annotations

import io
from pathlib import Path

from oblivion.data.rows import Row
from oblivion.errors import InputError

MAGIC = b"PAR1"


def parquet_rows(path: Path, raw: bytes) -> list[Row]:
    """Read all rows.

    Parameters
    ----------
    path : Path
        For messages.
    raw : bytes
        The whole file.

    Raises
    ------
    InputError
        If `pyarrow` is not installed, the file is damaged, or a column's name stands twice.
    """
    try:
        import pyarrow
        from pyarrow import parquet, types
    except ImportError:
        raise InputError(
            f"{path}: is a Parquet file; to read it, install the optional package: pip install 'oblivion-fl[parquet]'"
        ) from None
    try:
        table = parquet.read_table(io.BytesIO(raw))
        names = table.column_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"{path}: has two columns '{twice[0]}'; rename one")
        for place, field in enumerate(table.schema):
            # As text: 0.1 is 0.10000000149011612 in double precision, and Python's times have no nanoseconds.
            if types.is_float32(field.type) or types.is_temporal(field.type):
                table = table.set_column(place, field.name, table.column(place).cast(pyarrow.string()))
        records = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a Parquet file that can be read ({' '.join(str(error).split())[:200]})"
        ) from None
    return [Row(values, f"{path}: row {number}") for number, values in enumerate(records, start=1)]
