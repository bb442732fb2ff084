"""Suites of metrics, one per file."""

from importlib.metadata import EntryPoint

from oblivion.metrics import metrics
from oblivion.registry import Registry

suites = Registry("suite", {"tofu": "oblivion.metrics.suites.tofu:tofu"})


def entries_of(suite: str) -> list[EntryPoint]:
    """The entry points of other packages for a suite and for its metrics; none for a suite that is built in."""
    suites.check(suite)
    entries = suites.entries(suite)
    if not entries:
        return []
    used = {type(metric).__module__ for metric in suites.get(suite)().values()}
    return entries + [entry for entry in metrics.outside() if entry.module in used]
