"""Make ids of a client's own rows that say nothing without a key: HMAC-SHA-256 of the plain id.

A plain id is a hash of the row's content, or what the data calls the row; whoever guesses the content can check the
guess. So a run writes, sends and signs only keyed ids. The keys of a simulation's clients lie in a folder apart from
the run's other keys; a client's is destroyed when the client is forgotten. Rows of benchmarks, which everybody has,
keep their ids.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.datasets import is_benchmark
from oblivion.data.federation import check_client, resolve
from oblivion.errors import IntegrityError
from oblivion.files import erase
from oblivion.types import Sample, check_client_id

FOLDER = "client-keys"
_KEY_BYTES = 32
_DIGITS = 32


def keyed_id(key: bytes, plain: str) -> str:
    """Return ``row/`` and 32 hex digits of HMAC-SHA-256 of the plain id."""
    return f"row/{hmac.digest(key, plain.encode(errors='surrogatepass'), hashlib.sha256).hex()[:_DIGITS]}"


def keyed_rows(rows: Iterable[Sample], key: bytes) -> tuple[Sample, ...]:
    """Return the rows of a client, in their order, with keyed ids; equal ids stay equal."""
    return tuple(replace(row, id=keyed_id(key, row.id)) for row in rows)


def new_keys(config: RunConfig, clients: Iterable[str]) -> dict[str, bytes]:
    """Make a key for each client; there are none where the rows are a benchmark's."""
    if is_benchmark(config.data.name):
        return {}
    return {client: secrets.token_bytes(_KEY_BYTES) for client in clients}


def key_files(keys: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of a run directory that hold the keys, by name."""
    return {_name(client): key for client, key in keys.items()}


def _name(client: str) -> str:
    return f"{FOLDER}/{check_client_id(client)}.key"


def read_key(root: Path, client: str) -> bytes:
    """Read the key of a client of a run.

    Raises
    ------
    IntegrityError
        If it is not there: other ids would name nothing that the run knows.
    """
    path = root / _name(client)
    try:
        key = b""
        if path.is_file():
            with path.open("rb") as file:
                key = file.read(_KEY_BYTES + 1)
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}; make it readable") from None
    if len(key) != _KEY_BYTES:
        what = f"is not a key of {_KEY_BYTES} bytes" if path.exists() else "is missing"
        raise IntegrityError(f"{path} {what}: the ids of {client}'s rows are made with it; restore it from its backup")
    return key


def destroy_key(root: Path, client: str) -> None:
    """Overwrite and remove the key of a client that was forgotten; nothing happens if there is none."""
    erase(root / _name(client))


def run_data(root: Path, config: RunConfig, forgotten: Collection[str] = ()) -> FederatedData:
    """Return the data of a run, with keyed ids where the rows are its clients' own.

    Parameters
    ----------
    root : Path
        The run directory.
    config : RunConfig
        The config of the run.
    forgotten : collection of str, optional
        Clients that the run has forgotten: their keys are gone, and their rows keep plain ids, which go nowhere.

    Raises
    ------
    OblivionError
        As `resolve` and `read_key`.
    """
    data = resolve(config, forgotten)
    if is_benchmark(config.data.name):
        return data
    return keyed_data(data, {client: read_key(root, client) for client in data.clients if client not in forgotten})


def keyed_data(data: FederatedData, keys: Mapping[str, bytes]) -> FederatedData:
    """Return the same data with keyed ids for clients that have a key; rows that nobody owns are numbered."""
    if not keys:
        return data
    plain = {client: {row.id: keyed_id(key, row.id) for row in data.clients[client]} for client, key in keys.items()}
    clients = {
        client: tuple(replace(row, id=plain[client][row.id]) for row in rows) if client in plain else rows
        for client, rows in data.clients.items()
    }
    groups = {name: _keyed_group(name, rows, plain) for name, rows in data.groups.items()}
    public = _keyed_group("public", data.public, {})
    return replace(data, clients=clients, groups=groups, public=public, keys=dict(keys), plain_ids=plain)


def _keyed_group(name: str, rows: Sequence[Sample], plain: Mapping[str, Mapping[str, str]]) -> tuple[Sample, ...]:
    """Return a group of the server's rows: a client's rows have the client's ids, and the others are numbered."""

    def keyed(row: Sample, number: int) -> Sample:
        known, source = plain.get(row.client_id, {}), row.extras.get("source", "")
        extras = {**row.extras, "source": known[source]} if source in known else row.extras
        return replace(row, id=known.get(row.id, f"{name}/{number}"), extras=extras)

    return tuple(keyed(row, number) for number, row in enumerate(rows, start=1))


def row_ids(root: Path, config: RunConfig, client: str) -> list[dict[str, str | int]]:
    """Return ``row`` (counted from 1), ``plain`` and ``keyed`` id of each row of a client, for who has the data."""
    data = resolve(config)
    rows = data.clients[check_client(data, client)]
    own = rows if is_benchmark(config.data.name) else keyed_rows(rows, read_key(root, client))
    return [
        {"row": number, "plain": row.id, "keyed": keyed.id}
        for number, (row, keyed) in enumerate(zip(rows, own, strict=True), start=1)
    ]
