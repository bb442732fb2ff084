"""The classification data sets that scikit-learn ships, which need no download.

Of every ten rows, the server has two for evaluation (``holdout``), and one is public. Features are scaled by the mean
and the deviation of the held-out rows alone, so that no client's row enters another's. A row that is a copy of an
earlier one is left out.
"""

from __future__ import annotations

import numpy as np

from oblivion.config import DataConfig
from oblivion.data.corpus import Corpus
from oblivion.data.datasets import benchmark
from oblivion.data.vectors import digest_of_vectors, vector_sample, without_copies
from oblivion.parameters import check_choice
from oblivion.types import Sample

SETS = ("breast_cancer", "digits", "iris", "wine")
_PARTS = ("holdout", "samples", "samples", "samples", "public", "holdout", *["samples"] * 4)
"""The part that each row of ten rows goes to."""


@benchmark
def load(data: DataConfig, *, clients: int, seed: int, set: str = "breast_cancer") -> Corpus:
    """Load vectors with classes from one of the data sets that scikit-learn ships.

    Parameters
    ----------
    data : DataConfig
        Not used.
    clients, seed
        Not used: nothing is drawn.
    set : str, default "breast_cancer"
        ``breast_cancer``, ``digits``, ``iris`` or ``wine``.

    Returns
    -------
    Corpus
        Samples ``sklearn/<set>/<row>`` with the class as their natural owner: ``data.partition`` has to be ``"iid"``,
        ``"dirichlet"`` or ``"shards"`` for other clients. The group ``holdout``, and public rows.

    Raises
    ------
    ParameterError
        If there is no such set.
    """
    import sklearn.datasets

    check_choice("set", set, SETS)
    vectors, labels = getattr(sklearn.datasets, f"load_{set}")(return_X_y=True)
    parts = np.array([_PARTS[number % len(_PARTS)] for number in range(len(labels))])
    held = vectors[parts == "holdout"]
    deviations = held.std(axis=0)
    scaled = np.round((vectors - held.mean(axis=0)) / np.where(deviations > 0, deviations, 1.0), 6)
    classes = int(labels.max()) + 1
    groups: dict[str, list[Sample]] = {"holdout": [], "public": [], "samples": []}
    for number, (vector, label, part) in enumerate(zip(scaled, labels, parts, strict=True)):
        name = f"sklearn/{set}/{number}"
        groups[part].append(vector_sample(vector, int(label), classes, id=name, path=(f"class-{label}",)))
    holdout = tuple(without_copies(groups["holdout"]))
    public = tuple(without_copies(groups["public"], holdout))
    samples = tuple(without_copies(groups["samples"], (*holdout, *public)))
    digest = digest_of_vectors((samples, holdout, public))
    return Corpus(samples=samples, groups={"holdout": holdout}, public=public, digest=digest)
