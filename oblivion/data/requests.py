"""Find out which of a client's samples a forget request names."""

from __future__ import annotations

import difflib
from pathlib import Path

from oblivion.data.corpus import FederatedData
from oblivion.data.federation import check_client
from oblivion.data.row_files import decode, read_bytes
from oblivion.data.rows import SHOWN
from oblivion.errors import ConfigError, InputError
from oblivion.types import Sample

AUTHORS = "authors:"
_EXPECTED = "a file with one sample id per line"


def select_samples(data: FederatedData, client_id: str, spec: str) -> tuple[str, ...] | None:
    """Resolve ``forget.samples`` (``--samples``) to sample ids.

    Parameters
    ----------
    data : FederatedData
        The resolved federation.
    client_id : str
        The client that asks.
    spec : str
        "" for the whole client; ``authors:<fraction>`` for the last part of the client's authors (the
        outermost part of `path`, in the order of the data, rounded down, at least one and never all); else
        the path of a file with one sample id per line, as it is in the data or keyed.

    Returns
    -------
    tuple of str or None
        Distinct ids in the order of the client's data; None for the whole client.

    Raises
    ------
    ConfigError
        If the client or a sample is unknown, the fraction is not between 0 and 1, or all samples are named.
    InputError
        If the file cannot be read or names nothing.
    """
    check_client(data, client_id)
    rows = data.clients[client_id]
    if not spec:
        return None
    chosen = _authors(rows, client_id, spec) if spec.startswith(AUTHORS) else _listed(data, client_id, spec)
    ids = tuple(dict.fromkeys(row.id for row in rows))
    selected = tuple(sample_id for sample_id in ids if sample_id in chosen)
    if len(selected) == len(ids):
        raise ConfigError(
            f"forget.samples = '{spec}' names all samples of '{client_id}'; leave out --samples "
            "(forget.samples) to forget the whole client"
        )
    return selected


def _authors(rows: tuple[Sample, ...], client_id: str, spec: str) -> set[str]:
    try:
        fraction = float(spec.removeprefix(AUTHORS))
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise ConfigError(f"forget.samples = '{spec}': expected authors:<fraction>, between 0 and 1 ('authors:0.5')")
    if not all(row.path for row in rows):
        raise ConfigError(f"forget.samples = '{spec}': the rows of '{client_id}' have no authors; list ids in a file")
    authors = list(dict.fromkeys(row.path[0] for row in rows))
    if len(authors) == 1:
        raise ConfigError(
            f"forget.samples = '{spec}': '{client_id}' has one author only; leave it out to forget the whole "
            "client, or list ids in a file"
        )
    last = set(authors[-max(1, int(fraction * len(authors))) :])
    return {row.id for row in rows if row.path[0] in last}


def _listed(data: FederatedData, client_id: str, spec: str) -> set[str]:
    path = Path(spec)
    lines = decode(path, read_bytes(path, f"{_EXPECTED}, or authors:<fraction>"), _EXPECTED).split("\n")
    own, keyed = {row.id for row in data.clients[client_id]}, data.plain_ids.get(client_id, {})
    chosen: set[str] = set()
    unknown: list[str] = []
    for number, line in enumerate(lines, start=1):
        sample_id = keyed.get(line.strip(), line.strip())
        if sample_id in own:
            chosen.add(sample_id)
        elif sample_id[:1] in ("[", "{") and not chosen:
            raise InputError(f"{spec}:{number}: is JSON; expected {_EXPECTED}")
        elif sample_id and len(unknown) < SHOWN:
            unknown.append(f"{spec}:{number}: {_unknown(data, client_id, sample_id)}")
        elif sample_id:
            unknown[SHOWN:] = ["... and more"]
    if unknown:
        raise ConfigError("\n".join(unknown))
    if not chosen:
        raise InputError(f"{spec}: names no sample; expected {_EXPECTED}")
    return chosen


def _unknown(data: FederatedData, client_id: str, sample_id: str) -> str:
    for other, rows in data.clients.items():
        if sample_id in data.plain_ids.get(other, ()) or any(row.id == sample_id for row in rows):
            return f"sample '{sample_id}' belongs to '{other}', not to '{client_id}'"
    own = sorted(data.plain_ids.get(client_id, ()) or {row.id for row in data.clients[client_id]})
    close = difflib.get_close_matches(sample_id, own, n=1, cutoff=0)
    found = f"'{client_id}' has no sample '{sample_id}'; the nearest of its {len(own)} is '{close[0]}'"
    return f"{found}; a line holds one id and nothing else" if "\t" in sample_id else found
