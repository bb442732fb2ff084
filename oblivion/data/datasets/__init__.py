"""Data sets, one per file."""

from collections.abc import Callable
from typing import Any, TypeVar

from oblivion.registry import Registry

T = TypeVar("T", bound=Callable[..., Any])
_PATHS = "path_parameters"


datasets = Registry(
    "dataset",
    {
        "authors": "oblivion.data.datasets.authors:load",
        "jsonl": "oblivion.data.datasets.jsonl:load",
        "tofu": "oblivion.data.datasets.tofu:load",
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


def path_parameters(loader: Callable[..., Any]) -> tuple[str, ...]:
    """Which of ``data.parameters`` hold paths, as `with_paths` declared them."""
    declared: tuple[str, ...] = getattr(loader, _PATHS, ())
    return declared
