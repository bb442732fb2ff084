"""Deal rows so that each client has a few labels only.

McMahan et al. (2017), Communication-Efficient Learning of Deep Networks from Decentralized Data,
https://arxiv.org/abs/1602.05629, section 3 (the pathological non-IID split).
"""

from __future__ import annotations

from collections.abc import Sequence

from oblivion.data.ownership import check_enough, labels_of, own
from oblivion.parameters import check_count
from oblivion.seeding import numpy_generator
from oblivion.types import Sample


def partition(
    samples: Sequence[Sample], *, clients: int, seed: int, per_client: int = 2
) -> dict[str, tuple[Sample, ...]]:
    """Sort the rows by label, cut them into shards, and deal a few shards to each client.

    Parameters
    ----------
    samples : sequence of Sample
        Each with a `path` (its outermost part is the label) or ``extras["label"]``.
    clients : int
        The number of clients.
    seed : int
        The seed of the run.
    per_client : int, default 2
        Shards per client; there are ``clients * per_client`` shards, whose sizes differ by one at most.

    Returns
    -------
    dict of str to tuple of Sample
        ``client-<k>`` to its rows in the order of the data.

    Raises
    ------
    ParameterError
        If `per_client` is out of range.
    ConfigError
        If a row has no label, or there are fewer rows than shards.
    """
    import numpy as np

    check_count("per_client", per_client, 1)
    check_enough(samples, clients, "shards", per_client)
    labels = labels_of(samples, "shards")
    order = sorted(range(len(samples)), key=lambda position: labels[position])
    shards = [shard.tolist() for shard in np.array_split(np.array(order), clients * per_client)]
    deal = numpy_generator(seed, "partition.shards").permutation(len(shards)).tolist()
    return own(
        samples,
        [[i for shard in deal[k::clients] for i in shards[shard]] for k in range(clients)],
    )
