"""Which registered parts a run is made of, and which other packages bring them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.schemes import schemes
from oblivion.config import RunConfig
from oblivion.data.datasets import datasets
from oblivion.data.partitions import partitions
from oblivion.data.templates import templates
from oblivion.learning import learnings
from oblivion.metrics import metrics
from oblivion.metrics.suites import entries_of, suites
from oblivion.objectives import objectives
from oblivion.provenance import Package, code_fingerprint, packages_of
from oblivion.registry import Registry
from oblivion.removal import removals
from oblivion.tasks import tasks

REGISTRIES = (
    aggregators,
    schemes,
    datasets,
    partitions,
    templates,
    metrics,
    suites,
    objectives,
    removals,
    learnings,
    tasks,
)
"""Every table of parts."""


def parts_of(config: RunConfig) -> list[tuple[str, str, Registry]]:
    """Setting, name and table of every part that a config names."""
    return [
        *([("model.name", config.model.name, tasks)] if config.model.name in tasks.names() else []),
        ("data.name", config.data.name, datasets),
        ("data.partition", config.data.partition, partitions),
        ("data.template", config.data.template, templates),
        ("lora.scheme", config.lora.scheme, schemes),
        ("federation.learning", config.federation.learning, learnings),
        ("federation.aggregator", config.federation.aggregator, aggregators),
        ("evaluate.suite", config.evaluate.suite, suites),
        *(part for name, table in config.forget.methods.items() for part in _parts_of_method(name, table)),
    ]


def _parts_of_method(name: str, settings: Mapping[str, Any]) -> list[tuple[str, str, Registry]]:
    """Return the removal that a table of settings names, and its objective if it names one."""
    key = f"forget.methods.{name}"
    parts = [(f"{key}.method" if "method" in settings else key, str(settings.get("method", name)), removals)]
    if "objective" in settings:
        parts.append((f"{key}.objective", str(settings["objective"]), objectives))
    return parts


def outside_packages(config: RunConfig) -> tuple[Package, ...]:
    """Return the other distributions that a run takes parts from, by its settings and by its suite's metrics.

    Raises
    ------
    OblivionError
        If a part cannot be loaded.
    """
    entries = entries_of(config.evaluate.suite, config.evaluate.parameters)
    for _, name, registry in parts_of(config):
        registry.check(name)
        entries += registry.entries(name)
    return packages_of(entries)


def run_fingerprint(config: RunConfig) -> str:
    """Return the fingerprint of all code that a run is made with."""
    return code_fingerprint(outside_packages(config))
