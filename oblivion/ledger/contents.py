"""Branches, contributions and rounds as the content of records."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from oblivion.ledger.book import Record
from oblivion.ledger.rounds import Absence, Branch, RoundRecord
from oblivion.types import ClientUpdate, Cost


def number(value: float) -> float | None:
    """A number as JSON has it: None where it is not finite."""
    return value if math.isfinite(value) else None


def about(update: ClientUpdate) -> dict[str, Any]:
    """What the record of a contribution says of it."""
    return {
        "num_examples": update.num_examples,
        "steps": update.steps,
        "metrics": {name: number(value) for name, value in update.metrics.items()},
        "extras": sorted(update.extras),
        "fingerprint": update.fingerprint,
        "norms": dict(update.norms),
    }


def branch_of(record: Record) -> Branch:
    """Read back a branch."""
    absent = tuple(
        Absence(client=a["client"], samples=None if a["samples"] is None else tuple(a["samples"]))
        for a in record.content["absent"]
    )
    return Branch(**{**record.content, "absent": absent})


def round_content(record: RoundRecord) -> dict[str, Any]:
    """A round record as the content of its `Record`."""
    content = asdict(record)
    del content["branch"], content["round"]
    return {**content, "loss": number(record.loss), "scheme_error": number(record.scheme_error)}


def round_record(record: Record, branch: str) -> RoundRecord:
    """Read back what `round_content` wrote."""
    said = dict(record.content)
    said["selected"], said["accepted"] = tuple(said["selected"]), tuple(said["accepted"])
    for name in ("loss", "scheme_error"):
        said[name] = math.nan if said.get(name, 0.0) is None else said.get(name, 0.0)
    return RoundRecord(**{**said, "branch": branch, "round": record.round, "cost": Cost(**said["cost"])})
