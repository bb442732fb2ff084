"""Which registered parts a run is made of, and which other packages bring them."""

from __future__ import annotations

from oblivion.aggregation import aggregators, schemes
from oblivion.config import RunConfig
from oblivion.data import datasets, partitions, templates
from oblivion.fingerprint import Package, code_fingerprint, packages_of
from oblivion.metrics import entries_of, metrics, suites
from oblivion.models import models
from oblivion.objectives import objectives
from oblivion.registry import Registry
from oblivion.removal import removals

REGISTRIES = (aggregators, schemes, datasets, partitions, templates, metrics, suites, models, objectives, removals)
"""Every table of parts."""


def parts_of(config: RunConfig) -> list[tuple[str, str, Registry]]:
    """Setting, name and table of every part that a config names."""
    return [
        ("data.name", config.data.name, datasets),
        ("data.partition", config.data.partition, partitions),
        ("data.template", config.data.template, templates),
        ("lora.scheme", config.lora.scheme, schemes),
        ("federation.aggregator", config.federation.aggregator, aggregators),
        ("forget.objective", config.forget.objective, objectives),
        ("evaluate.suite", config.evaluate.suite, suites),
        *(("forget.methods", method, removals) for method in config.forget.methods),
    ]


def outside_packages(config: RunConfig) -> tuple[Package, ...]:
    """The other distributions that a run takes parts from: what its settings name, and the metrics of its suite.

    Raises
    ------
    OblivionError
        If a part cannot be loaded.
    """
    entries = entries_of(config.evaluate.suite)
    for _, name, registry in parts_of(config):
        registry.check(name)
        entries += registry.entries(name)
    return packages_of(entries)


def run_fingerprint(config: RunConfig) -> str:
    """The fingerprint of all code that a run is made with."""
    return code_fingerprint(outside_packages(config))
