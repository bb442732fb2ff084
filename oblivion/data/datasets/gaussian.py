"""Generated classification: every class is a Gaussian cloud, and every client sees the clouds from its own place.

A row of class c at client k is ``m_c + shift * s_k + z``, where ``m_c``, ``s_k`` and ``z`` are standard normal; ``m_c``
is scaled by `distance`. The rows of a client do not depend on how many other clients there are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oblivion.config import DataConfig
from oblivion.data.corpus import Corpus
from oblivion.data.datasets import benchmark
from oblivion.data.vectors import MOST_CLASSES, MOST_FEATURES, digest_of_vectors, vector_sample
from oblivion.parameters import check_at_least_zero, check_count
from oblivion.seeding import numpy_generator
from oblivion.types import Sample

_PUBLIC = 60
_DIGITS = 6
_SPREAD = 0.4


@benchmark
def load(
    data: DataConfig,
    *,
    clients: int,
    seed: int,
    features: int = 8,
    classes: int = 3,
    rows_per_client: int = 40,
    holdout_per_client: int = 10,
    distance: float = 1.0,
    shift: float = 0.5,
) -> Corpus:
    """Generate vectors with classes.

    Parameters
    ----------
    data : DataConfig
        Not used: the rows are generated.
    clients : int
        The number of clients; they differ in size and in place.
    seed : int
        The seed, which decides all rows.
    features : int, default 8
        The length of a vector.
    classes : int, default 3
        The number of classes, at least 2.
    rows_per_client : int, default 40
        The mean number of a client's rows; a client's size is drawn within 40 % of it.
    holdout_per_client : int, default 10
        Rows from every client's place that nobody trains on.
    distance : float, default 1.0
        How far the classes lie apart, in units of their own deviation.
    shift : float, default 0.5
        How far the clients lie apart.

    Returns
    -------
    Corpus
        Samples ``gaussian/<client>/<row>``, each with its `client_id`; the group ``holdout``; 60 public rows from no
        client's place.

    Raises
    ------
    ParameterError
        If a parameter is out of range.
    """
    check_count("features", features, 1, MOST_FEATURES)
    check_count("classes", classes, 2, MOST_CLASSES)
    check_count("rows_per_client", rows_per_client, 1)
    check_count("holdout_per_client", holdout_per_client, 0)
    check_at_least_zero("distance", distance)
    check_at_least_zero("shift", shift)
    means = distance * numpy_generator(seed, "gaussian.means").standard_normal((classes, features))
    samples: list[Sample] = []
    holdout: list[Sample] = []
    for client in (f"client-{number}" for number in range(clients)):
        generator = numpy_generator(seed, "gaussian.rows", client=client)
        place = shift * generator.standard_normal(features)
        least, most = (round(rows_per_client * factor) for factor in (1 - _SPREAD, 1 + _SPREAD))
        count = int(generator.integers(max(1, least), most + 1))
        samples += _rows(generator, means, place, count, f"gaussian/{client}", client)
        holdout += _rows(generator, means, place, holdout_per_client, f"gaussian/holdout/{client}")
    generator = numpy_generator(seed, "gaussian.public")
    public = _rows(generator, means, np.zeros(features), _PUBLIC, "gaussian/public")
    groups = {"holdout": tuple(holdout)} if holdout else {}
    return Corpus(
        samples=tuple(samples),
        groups=groups,
        public=tuple(public),
        digest=digest_of_vectors((samples, holdout, public)),
    )


def _rows(
    generator: np.random.Generator,
    means: NDArray[np.float64],
    place: NDArray[np.float64],
    count: int,
    prefix: str,
    client: str = "",
) -> list[Sample]:
    classes, features = means.shape
    labels = generator.integers(classes, size=count)
    vectors = np.round(means[labels] + place + generator.standard_normal((count, features)), _DIGITS)
    return [
        vector_sample(vector, int(label), classes, id=f"{prefix}/{number}", client=client)
        for number, (vector, label) in enumerate(zip(vectors, labels, strict=True))
    ]
