"""Give rows to the owners that the data itself has."""

from __future__ import annotations

from collections.abc import Sequence

from oblivion.data.ownership import own
from oblivion.errors import ConfigError
from oblivion.types import Sample


def partition(samples: Sequence[Sample], *, clients: int, seed: int) -> dict[str, tuple[Sample, ...]]:
    """Take the owners that the data names, or deal whole groups (authors, speakers) in contiguous blocks.

    Parameters
    ----------
    samples : sequence of Sample
        All with a `client_id`, which is then the owner; or all with a `path`, whose outermost part is a
        group. Groups are taken in the order they first appear and are never split; the first clients get one
        more where the number does not divide.
    clients : int
        How many clients; for named owners it must be their number.
    seed : int
        Not used: nothing is drawn.

    Returns
    -------
    dict of str to tuple of Sample
        Client id to its rows in the order of the data.

    Raises
    ------
    ConfigError
        If the rows have no owners, or `clients` does not fit them.
    """
    if samples and all(sample.client_id for sample in samples):
        return _named(samples, clients)
    if not samples or not all(sample.path for sample in samples):
        raise ConfigError(
            "data.partition = 'natural': the rows do not all say who owns them; set "
            "data.columns.client to the column that does, or data.partition to 'iid', 'dirichlet' or 'shards'"
        )
    groups: dict[str, list[int]] = {}
    for position, sample in enumerate(samples):
        groups.setdefault(sample.path[0], []).append(position)
    if clients > len(groups):
        raise ConfigError(
            f"federation.clients = {clients}, but the data has {len(groups)} owners to share out; set "
            f"federation.clients to {len(groups)} or less, or data.partition to 'iid'"
        )
    blocks = list(groups.values())
    size, extra = divmod(len(blocks), clients)
    rows: list[list[int]] = []
    start = 0
    for k in range(clients):
        stop = start + size + (k < extra)
        rows.append([position for block in blocks[start:stop] for position in block])
        start = stop
    return own(samples, rows)


def _named(samples: Sequence[Sample], clients: int) -> dict[str, tuple[Sample, ...]]:
    owners: dict[str, list[Sample]] = {}
    for sample in samples:
        owners.setdefault(sample.client_id, []).append(sample)
    if len(owners) != clients:
        raise ConfigError(
            f"federation.clients = {clients}, but the data names {len(owners)} owners; set "
            f"federation.clients = {len(owners)}, or data.partition to 'iid', 'dirichlet' or 'shards' "
            "to deal the rows anew"
        )
    return {owner: tuple(rows) for owner, rows in owners.items()}
