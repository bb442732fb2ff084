"""Read tables of the Hugging Face hub through the optional `datasets` package."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from oblivion.data.row_files import ENDINGS
from oblivion.data.rows import Row, RowFile
from oblivion.errors import InputError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(path: str) -> bool:
    """Return whether `path` reads as ``owner/name`` and nothing of that name is on the disk."""
    return bool(_HUB_ID.fullmatch(path)) and not path.endswith((*ENDINGS, ".gz")) and not Path(path).exists()


def read_hub_table(repository: str, subset: str = "", split: str = "train", revision: str = "") -> RowFile:
    """Load one table of a hub data set. Only data files are read; the code in a repository is never run.

    Parameters
    ----------
    repository : str
        ``owner/name``.
    subset : str
        The hub's configuration name; "" for the only one.
    split : str
        The split, such as ``train``.
    revision : str
        Commit, tag or branch; "" for the newest (pin it where a result must be repeatable).

    Raises
    ------
    InputError
        If `datasets` is not installed, or the table cannot be loaded.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            f"data.path = '{repository}' is no file or folder here; to load it as a hub data set, "
            "install the optional package: pip install 'oblivion-fl[datasets]'"
        ) from None
    name = f"{repository}/{subset or 'default'}/{split}"
    try:
        table = load_dataset(
            repository, subset or None, split=split, revision=revision or None, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InputError(f"hub data set {name}: cannot be loaded: {error}") from None
    rows = tuple(Row(dict(values), f"{name}:{number}") for number, values in enumerate(table, start=1))
    if not rows:
        raise InputError(f"hub data set {name}: holds no rows")
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps(row.values, sort_keys=True, default=str).encode() + b"\n")
    return RowFile(name, rows, content.hexdigest())
