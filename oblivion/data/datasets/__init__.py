"""Data sets, one per file."""

from collections.abc import Callable
from typing import Any, TypeVar

from oblivion.registry import Registry

T = TypeVar("T", bound=Callable[..., Any])
_PATHS = "path_parameters"
_BENCHMARK = "benchmark"
_MAPPED = "mapped_columns"


datasets = Registry(
    "dataset",
    {
        "authors": "oblivion.data.datasets.authors:load",
        "gaussian": "oblivion.data.datasets.gaussian:load",
        "jsonl": "oblivion.data.datasets.jsonl:load",
        "muse": "oblivion.data.datasets.muse:load",
        "rwku": "oblivion.data.datasets.rwku:load",
        "sklearn": "oblivion.data.datasets.sklearn_sets:load",
        "tofu": "oblivion.data.datasets.tofu:load",
        "vectors": "oblivion.data.datasets.vectors:load",
    },
)


def with_paths(*parameters: str) -> Callable[[T], T]:
    """Declare which of ``data.parameters`` hold paths for the data set that the decorated function loads.

    A run then stores them as absolute paths, so that they are found from any folder. ``data.path`` always is one.
    """

    def declare(loader: T) -> T:
        setattr(loader, _PATHS, parameters)
        return loader

    return declare


def benchmark(loader: T) -> T:
    """Declare that everybody has the rows that the decorated function loads, so that their ids need no key."""
    setattr(loader, _BENCHMARK, True)
    return loader


def is_benchmark(name: str) -> bool:
    """Return whether the data set of this name declares that everybody has its rows."""
    return bool(getattr(datasets.get(name), _BENCHMARK, False))


def mapped_columns(loader: T) -> T:
    """Declare that ``data.columns`` names the columns of questions and answers, also of those in ``data.public``."""
    setattr(loader, _MAPPED, True)
    return loader


def has_mapped_columns(name: str) -> bool:
    """Return whether the data set of this name declares that ``data.columns`` holds for any file of questions."""
    return bool(getattr(datasets.get(name), _MAPPED, False))


def path_parameters(loader: Callable[..., Any]) -> tuple[str, ...]:
    """Return which of ``data.parameters`` hold paths, as `with_paths` declared them."""
    declared: tuple[str, ...] = getattr(loader, _PATHS, ())
    return declared
