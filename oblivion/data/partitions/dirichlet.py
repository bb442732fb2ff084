"""Deal rows so that clients differ in which labels they have.

Hsu, Qi and Brown (2019), https://arxiv.org/abs/1909.06335, draw each client's mix of labels; here, as in Li
et al. (2022), https://arxiv.org/abs/2102.02079, section IV-B, each label's shares over the clients are
drawn, so that every row is owned exactly once, and the draw is repeated until nobody is left without rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from oblivion.data.ownership import check_enough, labels_of, own
from oblivion.errors import ConfigError
from oblivion.parameters import ParameterError, check_count
from oblivion.seeding import numpy_generator
from oblivion.types import Sample

ATTEMPTS = 100


def partition(
    samples: Sequence[Sample], *, clients: int, seed: int, alpha: float = 0.5, min_samples: int = 1
) -> dict[str, tuple[Sample, ...]]:
    """Share out each label over the clients in proportions drawn from a Dirichlet distribution.

    Parameters
    ----------
    samples : sequence of Sample
        Each with a `path` (its outermost part is the label) or ``extras["label"]``.
    clients : int
        The number of clients.
    seed : int
        The seed of the run.
    alpha : float, default 0.5
        Concentration: small gives each label to few clients, large spreads it evenly.
    min_samples : int, default 1
        Draws that leave a client fewer rows are repeated, up to `ATTEMPTS` times.

    Returns
    -------
    dict of str to tuple of Sample
        ``client-<k>`` to its rows in the order of the data.

    Raises
    ------
    ParameterError
        If a parameter is out of range.
    ConfigError
        If a row has no label, or no draw gave every client its rows.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 1e-6 <= alpha <= 1e6:
        raise ParameterError(f"alpha = {alpha!r} is not allowed; it must be a number from 1e-6 to 1e6")
    check_count("min_samples", min_samples, 1)
    check_enough(samples, clients, "dirichlet", min_samples)
    by_label: dict[str, list[int]] = {}
    for position, label in enumerate(labels_of(samples, "dirichlet")):
        by_label.setdefault(label, []).append(position)
    for attempt in range(ATTEMPTS):
        rows = _draw(list(by_label.values()), clients, seed, alpha, attempt)
        if min(len(positions) for positions in rows) >= min_samples:
            return own(samples, rows)
    raise ConfigError(
        f"data.partition = 'dirichlet': none of {ATTEMPTS} draws with alpha = {alpha} gave all "
        f"{clients} clients at least {min_samples} rows; raise data.partition-parameters.alpha or "
        "lower federation.clients"
    )


def _draw(blocks: list[list[int]], clients: int, seed: int, alpha: float, attempt: int) -> list[list[int]]:
    import numpy as np

    generator = numpy_generator(seed, "partition.dirichlet", attempt)
    rows: list[list[int]] = [[] for _ in range(clients)]
    for block in blocks:
        shuffled = generator.permutation(block).tolist()
        shares = generator.dirichlet(np.full(clients, float(alpha)))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(block)).astype(int).tolist()
        for k, (start, stop) in enumerate(pairwise([0, *cuts, len(block)])):
            rows[k] += shuffled[start:stop]
    return rows
