"""The model ``linear``: logistic regression on vectors, whose weight and bias are the adapter.

There is no base model. Before any training all parameters are zero, which gives every class the same probability; the
loss is convex, so no symmetry has to be broken.
"""

from __future__ import annotations

import functools
from typing import ClassVar

from oblivion.config import RunConfig
from oblivion.data.federation import resolve
from oblivion.data.vectors import classes_of, features_of
from oblivion.errors import InputError
from oblivion.models.whole import WholeModel, WholeModels
from oblivion.tasks.linear import VectorClasses

NAME = "linear"


class LinearModel(WholeModel):
    """A logistic regression in memory.

    Parameters
    ----------
    features, classes : int
        The length of a vector, and the number of classes.
    """

    def __init__(self, features: int, classes: int) -> None:
        import torch

        sizes = {"features": features, "classes": classes}
        super().__init__(NAME, VectorClasses(features, classes), torch.nn.Linear(features, classes), sizes, features)


class LinearModels(WholeModels):
    """Logistic regressions, of which each is as large as the rows of its run ask for."""

    name: ClassVar[str] = NAME

    def load(self, config: RunConfig) -> LinearModel:
        """Return a model for the rows of a run.

        Raises
        ------
        InputError
            If its first row is no vector with a class.
        """
        first = next(iter(resolve(config).clients.values()))[0]
        try:
            return _loaded(len(features_of(first)), classes_of(first))
        except InputError as error:
            raise InputError(
                f"{error}; model.name = '{NAME}' needs vectors with classes (see `oblivion list datasets`)"
            ) from None


@functools.lru_cache(maxsize=1)
def _loaded(features: int, classes: int) -> LinearModel:
    return LinearModel(features, classes)
