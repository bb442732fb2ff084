"""Read the rows of a Parquet file through the optional package `pyarrow`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from oblivion.data.rows import Row
from oblivion.errors import InputError
from oblivion.untrusted import shown

MAGIC = b"PAR1"
_MOST, _MOST_ROWS, _BATCH = 2**30, 10**7, 1024
"""The most bytes and rows of an unpacked table, and the number of rows that are unpacked at once."""
_PLACE = 8
"""The bytes that a value takes at least, even one that takes no bit in the file."""


def parquet_rows(path: Path, raw: bytes) -> list[Row]:
    """Read all rows.

    Parameters
    ----------
    path : Path
        The path of the file, for messages.
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
        file = parquet.ParquetFile(io.BytesIO(raw))
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        values = sum(group.column(place).num_values for group in groups for place in range(group.num_columns))
        # This counts values that take no byte, too.
        size = max(_PLACE * values, sum(group.total_byte_size for group in groups))
        if size > _MOST or file.metadata.num_rows > _MOST_ROWS:
            raise InputError(
                f"{path}: unpacks to more than {_MOST >> 30} GiB or {_MOST_ROWS} rows; split it into several files"
            )
        if _size(raw) > _MOST:  # the header need not be true
            raise InputError(f"{path}: unpacks to more than {_MOST >> 30} GiB; split it into several files")
        table = pyarrow.Table.from_batches(file.iter_batches(batch_size=_BATCH), schema=file.schema_arrow)
        names = table.column_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"{path}: has two columns {shown(twice[0])}; rename one")
        for place, field in enumerate(table.schema):
            # These are read as text: 0.1 in fp32 is 0.10000000149011612 as a Python float, and Python's times have
            # no nanoseconds.
            if types.is_float32(field.type) or types.is_temporal(field.type):
                table = table.set_column(place, field.name, table.column(place).cast(pyarrow.string()))
        records = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # its message may quote a cell
        raise InputError(
            f"{path}: not a Parquet file that can be read ({type(error).__name__}); save the table again"
        ) from None
    return [Row(values, f"{path}: row {number}") for number, values in enumerate(records, start=1)]


def _size(raw: bytes) -> int:
    """Count the bytes of a file's values; counting ends once there are more than are read.

    One long text, written once, may be the value of every row. So texts are counted as they lie in the file: each
    once, and a number wherever it stands.
    """
    from pyarrow import parquet

    schema = parquet.ParquetFile(io.BytesIO(raw)).schema
    leaves = [schema.column(place) for place in range(len(schema))]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL"]
    size = 0
    for batch in parquet.ParquetFile(io.BytesIO(raw), read_dictionary=texts).iter_batches():
        size += sum(map(_bytes, batch.columns))
        if size > _MOST:
            break
    return size


def _bytes(array: Any) -> int:
    """Count the bytes of an array's values, with those of the lists and objects in it."""
    from pyarrow import compute, types

    kind, own = array.type, _PLACE * len(array)
    if types.is_dictionary(kind):
        lengths = compute.binary_length(array.dictionary) if _is_text(kind.value_type) else None
        return own + (0 if lengths is None else int(compute.sum(lengths.take(array.indices)).as_py() or 0))
    if types.is_struct(kind):
        return own + sum(map(_bytes, array.flatten()))
    if types.is_map(kind):
        return own + _bytes(array.keys) + _bytes(array.items)
    if types.is_nested(kind) and hasattr(array, "flatten"):
        return own + _bytes(array.flatten())
    return own + int(array.nbytes)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary))
