"""Branches, contributions and rounds as the content of records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from oblivion.ledger.book import Record
from oblivion.ledger.rounds import Absence, Branch, RoundRecord
from oblivion.types import ClientUpdate, Cost

NAMING: Mapping[str, tuple[str, ...]] = {
    "selection": ("selected", "cohorts", "charged"),
    "cohort": ("refused", "failed"),
    "round": ("selected", "accepted", "refused", "failed"),
    "state": ("gate", "strikes"),
    "charge": ("charged",),
}
"""The kinds of records in which a client that was forgotten must not be named, and the fields that name clients."""


def number(value: float) -> float | None:
    """A number as JSON has it: None where it is not finite."""
    return value if math.isfinite(value) else None


def about(update: ClientUpdate) -> dict[str, Any]:
    """What the record of a contribution says of it."""
    return {
        "num_examples": update.num_examples,
        "steps": update.steps,
        "metrics": {name: number(value) for name, value in update.metrics.items()},
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


def unnamed(kind: str, content: Mapping[str, Any], client: str) -> dict[str, Any]:
    """The content of a record without any mention of one client, whoever wrote it there, nor of a loss it had part in.

    Parameters
    ----------
    kind : str
        One of `NAMING`; of another kind nothing is changed.
    content : mapping
        What the record says.
    client : str
        The client's id.
    """
    left = {**content, **{name: _without(content[name], client) for name in NAMING.get(kind, ()) if name in content}}
    if kind == "round" and client in content.get("selected", ()):
        left |= unnumbered(content)
    return left


def unnumbered(content: Mapping[str, Any]) -> dict[str, Any]:
    """Instead of what a round's record says of losses and tokens, nothing: what erased updates had a part in."""
    return {"loss": None, "scheme_error": 0.0, "cost": {**content["cost"], "tokens": None}}


def _without(value: Any, client: str) -> Any:
    """A list, table or text without a client: entries of that name, rows about it, and its id in quotes."""
    if isinstance(value, Mapping):
        return {name: _without(item, client) for name, item in value.items() if name != client}
    if isinstance(value, list):
        return [_without(item, client) for item in value if item != client and not _row_about(item, client)]
    return value.replace(f"'{client}'", "a client that was forgotten") if isinstance(value, str) else value


def _row_about(item: Any, client: str) -> bool:
    """Whether it is a client with numbers, unlike a cohort, which is a list of clients and keeps its place."""
    return isinstance(item, list) and len(item) > 1 and item[0] == client and not isinstance(item[1], str)
