"""Deal rows so that every client draws from the same distribution."""

from __future__ import annotations

from collections.abc import Sequence

from oblivion.data.ownership import check_enough, own
from oblivion.seeding import numpy_generator
from oblivion.types import Sample


def partition(samples: Sequence[Sample], *, clients: int, seed: int) -> dict[str, tuple[Sample, ...]]:
    """Shuffle the rows and cut them into parts of equal size (McMahan et al., 2017, section 3).

    Parameters
    ----------
    samples : sequence of Sample
        Owners that they name are replaced.
    clients : int
        The number of parts; their sizes differ by one at most.
    seed : int
        The seed of the run.

    Returns
    -------
    dict of str to tuple of Sample
        ``client-<k>`` to its rows in the order of the data.

    Raises
    ------
    ConfigError
        If there are fewer rows than clients.
    """
    import numpy as np

    check_enough(samples, clients, "iid")
    order = numpy_generator(seed, "partition.iid").permutation(len(samples))
    return own(samples, [part.tolist() for part in np.array_split(order, clients)])
