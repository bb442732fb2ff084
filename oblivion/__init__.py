"""Federated learning and unlearning of language models.

``load_config`` reads a scenario; ``objectives``, ``aggregators``, ``removals``, ``metrics`` and their like are tables
of named parts (``get(name)`` returns the class); ``evaluate`` measures a model, an adapter or a run. Everything is
imported when it is first used.
"""

from __future__ import annotations

from typing import Any

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

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _LAZY:
        raise AttributeError(f"module 'oblivion' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
