"""``metrics.json``: the numbers of a run, by request and model, and the history of its rounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ValidationError

from oblivion.config import RunConfig
from oblivion.errors import InputError
from oblivion.ledger.requests import ID
from oblivion.ledger.store import StoredLedger
from oblivion.outside import shown
from oblivion.validation import faults
from server.events import round_entry
from server.run_directory import RunDirectory
from server.spending import privacy_values


def _request_id(text: str) -> str:
    """A request's id: files are looked for, and erased, by it."""
    if not ID.fullmatch(text):
        raise ValueError("is no id of a request (req- and 12 hex digits)")
    return text


class _Model(BaseModel):
    adapter: str | None
    central: dict[str, Any]
    clients: dict[str, Any] = {}
    cost: dict[str, Any] = {}


class _Request(BaseModel):
    id: Annotated[str, AfterValidator(_request_id)]
    client: str
    models: dict[str, _Model]


class _Round(BaseModel):
    branch: str
    round: int


class _Metrics(BaseModel):
    """What the program relies on when it goes on with a run, which anybody may have edited."""

    requests: list[_Request]
    history: list[_Round]
    learned: _Model | None = None


def read_metrics(run: RunDirectory) -> dict[str, Any]:
    """What ``metrics.json`` says; empty numbers where there is none yet.

    Raises
    ------
    InputError
        If it is not what a run writes.
    """
    empty = {"scenario": run.root.name, "requests": [], "history": []}
    metrics: dict[str, Any] = run.read_json("metrics.json", empty)
    try:
        _Metrics.model_validate(metrics)
    except ValidationError as error:
        _, where, value, said = next(faults(_Metrics, error))
        raise InputError(
            f"{run.root / 'metrics.json'}: {shown(where)[1:-1]} = {value}: {said}; restore the file that the run wrote"
        ) from None
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
