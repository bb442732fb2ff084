"""``metrics.json``: the numbers of a run, by request and model, and the history of its rounds."""

from __future__ import annotations

from typing import Any

from oblivion.config import RunConfig
from oblivion.federation.spending import privacy_values
from oblivion.ledger.store import StoredLedger
from oblivion.run.directory import RunDirectory
from oblivion.run.events import round_entry


def read_metrics(run: RunDirectory) -> dict[str, Any]:
    """What ``metrics.json`` says; empty numbers where there is none yet."""
    empty = {"scenario": run.root.name, "requests": [], "history": []}
    metrics: dict[str, Any] = run.read_json("metrics.json", empty)
    return metrics


def write_metrics(
    run: RunDirectory, metrics: dict[str, Any], config: RunConfig, ledger: StoredLedger, head: str
) -> None:
    """Write ``metrics.json``, with the rounds that were committed since."""
    known = {(e["branch"], e["round"]) for e in metrics["history"]}
    for branch in ledger.branches():
        for record in ledger.records(branch.name):
            if record.branch == branch.name and (branch.name, record.round) not in known:
                metrics["history"].append(round_entry(record))
    privacy = privacy_values(config, ledger, head)
    run.write_json("metrics.json", metrics if privacy is None else {**metrics, "privacy": privacy})
