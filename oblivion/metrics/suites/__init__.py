"""Suites of metrics, one per file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from oblivion.errors import InputError, nearest
from oblivion.metrics import metrics
from oblivion.parameters import build
from oblivion.registry import Registry

if TYPE_CHECKING:
    from oblivion.config import EvaluateConfig
    from oblivion.metrics.engine.suite import Suite

METRIC = ("requires", "compute")
"""The attributes that a metric must have."""
MERGEABLE = (*METRIC, "value_range", "over")
"""The attributes that a metric must have for clients to compute it."""

suites = Registry(
    "suite",
    {
        "classes": "oblivion.metrics.suites.classes:Classes",
        "muse": "oblivion.metrics.suites.muse:Muse",
        "rwku": "oblivion.metrics.suites.rwku:Rwku",
        "tofu": "oblivion.metrics.suites.tofu:Tofu",
    },
    needs=("rows", "metrics", "client_metrics", "headline", "columns"),
)


def make_suite(name: str, parameters: Mapping[str, Any] | None = None, key: str = "evaluate.parameters") -> Suite:
    """Make a suite from its name and its parameters.

    Parameters
    ----------
    name : str
        A registered suite.
    parameters : mapping, optional
        Its own keyword arguments.
    key : str
        Where the parameters come from, for messages.

    Raises
    ------
    ConfigError
        If the name or a parameter is unknown, or a value is refused.
    InputError
        If the suite comes from another package and cannot be loaded, or lacks what a suite has.
    """
    suite: Suite = build(suites, name, parameters or {}, key)
    _check(name, suite)
    return suite


def _check(name: str, suite: Suite) -> None:
    """Refuse a suite that does not fit together.

    Its metrics must be metrics, its clients' numbers must be mergeable, and its headline must name what it measures.
    """
    for result, measure in suite.metrics.items():
        lacks = [attribute for attribute in METRIC if not hasattr(measure, attribute)]
        if lacks:
            raise InputError(f"suite '{name}': '{result}' is not a metric: it has no {', no '.join(lacks)}")
    for result, metric in suite.client_metrics.items():
        lacks = [attribute for attribute in MERGEABLE if not hasattr(metric, attribute)]
        if lacks:
            raise InputError(f"suite '{name}': clients cannot measure '{result}': it has no {', no '.join(lacks)}")
    for result, asked in [*suite.metrics.items(), *suite.client_metrics.items()]:
        _check_outputs(f"suite '{name}': '{result}'", asked.requires)
    headline = suite.headline
    named = [number for number in (headline.forget, headline.utility, headline.membership, headline.kept) if number]
    for number, known in [(headline.own, suite.client_metrics), *((number, suite.metrics) for number in named)]:
        if number.metric not in known:
            raise InputError(f"suite '{name}': its headline names '{number.metric}', which it does not measure")


def _check_outputs(what: str, requires: Collection[str]) -> None:
    """Refuse a metric that requires a kind of output that no pass makes: it would be left out without a word."""
    from oblivion.metrics.engine.context import KINDS, REFERENCE

    for needed in sorted(set(requires) - {REFERENCE}):
        group, _, kind = needed.partition(".")
        if not group or kind not in KINDS:
            raise InputError(f"{what} requires '{needed}', which must be '<group>.<kind>'; {nearest(kind, KINDS)}")


def suite_of(settings: EvaluateConfig, where: str = "evaluate") -> Suite:
    """Make the suite that the settings under ``evaluate`` name; raises as `make_suite`."""
    return make_suite(settings.suite, settings.parameters, f"{where}.parameters")


def entries_of(suite: str, parameters: Mapping[str, Any] | None = None) -> list[EntryPoint]:
    """Return the entry points of other packages for a suite and for its metrics; a built-in suite has none."""
    suites.check(suite)
    entries = suites.entries(suite)
    if not entries:
        return []
    made = make_suite(suite, parameters)
    used = {type(metric).__module__ for metric in (*made.metrics.values(), *made.client_metrics.values())}
    return entries + [entry for entry in metrics.outside() if entry.module in used]
