"""Federated learning and unlearning of language models.

``load_config`` reads a scenario, ``simulate`` runs it, ``open_run`` opens a run on disk, and ``evaluate`` measures a
model, an adapter or a run. ``objectives``, ``aggregators``, ``removals``, ``metrics`` and their like are tables of
named parts (``get(name)`` returns the class). Everything is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # The same names for type checkers and for the API pages, which read the code without running it.
    from oblivion.aggregation.rules import aggregators
    from oblivion.aggregation.schemes import schemes
    from oblivion.config import RunConfig
    from oblivion.data.datasets import datasets
    from oblivion.data.partitions import partitions
    from oblivion.data.templates import templates
    from oblivion.errors import OblivionError
    from oblivion.evaluation import evaluate
    from oblivion.learning import learnings
    from oblivion.metrics import metrics
    from oblivion.metrics.suites import suites
    from oblivion.objectives import objectives
    from oblivion.removal import removals
    from oblivion.run.records import RunRecord
    from oblivion.run.scenarios import load_config
    from oblivion.tasks import tasks
    from oblivion.types import Adapter, ClientUpdate, ForgetRequest, GlobalState, RoundInfo, Sample
    from simulations.simulate import RunResult, open_run, resume, simulate

_LAZY = {
    "aggregators": "oblivion.aggregation.rules",
    "schemes": "oblivion.aggregation.schemes",
    "RunConfig": "oblivion.config",
    "datasets": "oblivion.data.datasets",
    "partitions": "oblivion.data.partitions",
    "templates": "oblivion.data.templates",
    "OblivionError": "oblivion.errors",
    "learnings": "oblivion.learning",
    "metrics": "oblivion.metrics",
    "suites": "oblivion.metrics.suites",
    "tasks": "oblivion.tasks",
    "objectives": "oblivion.objectives",
    "removals": "oblivion.removal",
    "RunRecord": "oblivion.run.records",
    "load_config": "oblivion.run.scenarios",
    "evaluate": "oblivion.evaluation",
    "Adapter": "oblivion.types",
    "ClientUpdate": "oblivion.types",
    "ForgetRequest": "oblivion.types",
    "GlobalState": "oblivion.types",
    "RoundInfo": "oblivion.types",
    "Sample": "oblivion.types",
    "RunResult": "simulations.simulate",
    "open_run": "simulations.simulate",
    "resume": "simulations.simulate",
    "simulate": "simulations.simulate",
}

__all__ = [
    "Adapter",
    "ClientUpdate",
    "ForgetRequest",
    "GlobalState",
    "OblivionError",
    "RoundInfo",
    "RunConfig",
    "RunRecord",
    "RunResult",
    "Sample",
    "aggregators",
    "datasets",
    "evaluate",
    "learnings",
    "load_config",
    "metrics",
    "objectives",
    "open_run",
    "partitions",
    "removals",
    "resume",
    "schemes",
    "simulate",
    "suites",
    "tasks",
    "templates",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _LAZY:
        raise AttributeError(f"module 'oblivion' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
