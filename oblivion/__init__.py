"""Federated learning and unlearning of language models.

``load_config`` reads a scenario; ``objectives``, ``aggregators``, ``removals``, ``metrics`` and their like are tables
of named parts (``get(name)`` returns the class); ``evaluate`` measures a model, an adapter or a run. Everything is
imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # The same names for type checkers and for the API pages, which read the code without running it.
    from oblivion.aggregation.rules import aggregators
    from oblivion.aggregation.schemes import schemes
    from oblivion.config import RunConfig, load_config
    from oblivion.data.datasets import datasets
    from oblivion.data.partitions import partitions
    from oblivion.data.templates import templates
    from oblivion.errors import OblivionError
    from oblivion.metrics import metrics
    from oblivion.objectives import objectives
    from oblivion.removal import removals
    from oblivion.target import evaluate

_LAZY = {
    "RunConfig": "oblivion.config",
    "load_config": "oblivion.config",
    "aggregators": "oblivion.aggregation.rules",
    "schemes": "oblivion.aggregation.schemes",
    "datasets": "oblivion.data.datasets",
    "partitions": "oblivion.data.partitions",
    "templates": "oblivion.data.templates",
    "metrics": "oblivion.metrics",
    "objectives": "oblivion.objectives",
    "removals": "oblivion.removal",
    "evaluate": "oblivion.target",
    "OblivionError": "oblivion.errors",
}

__all__ = [
    "OblivionError",
    "RunConfig",
    "aggregators",
    "datasets",
    "evaluate",
    "load_config",
    "metrics",
    "objectives",
    "partitions",
    "removals",
    "schemes",
    "templates",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _LAZY:
        raise AttributeError(f"module 'oblivion' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
