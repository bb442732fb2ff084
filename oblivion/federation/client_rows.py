"""Which of a client's rows it trains on, and which it measures: its own, without what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oblivion.data.corpus import FederatedData
from oblivion.data.keyed_ids import keyed_rows
from oblivion.objectives.needs import Role, parse_needs
from oblivion.objectives.terms import Objective
from oblivion.tasks.task import Row, Task
from oblivion.training.batches import Encoded, encode_rows
from oblivion.types import ClientTask, Sample, TrainRequest, VisitRequest


@dataclass(frozen=True, kw_only=True)
class ChosenRows:
    """The rows that a client trains on.

    Attributes
    ----------
    rows : mapping of role to sequence of Row
        The rows by role; those that are learned, too, have the role ``retain``.
    skipped : int
        How many rows are left out because they are too long.
    learning : bool
        Whether the client learns from its rows, and forgets none.
    """

    rows: Mapping[Role, Sequence[Row]]
    skipped: int
    learning: bool


def rows_to_train(
    request: TrainRequest,
    task: ClientTask,
    encoded: Encoded,
    data: FederatedData,
    modality: Task,
    objective: Objective,
) -> ChosenRows:
    """Choose the rows that a client trains on, for one message.

    Parameters
    ----------
    request : TrainRequest
        The message. In a round of learning, a client learns from all its rows that are not excluded.
    task : ClientTask
        The client's part of it: which ids are excluded, and in a visit which are to be forgotten (None for all).
    encoded : Encoded
        The client's rows.
    data : FederatedData
        The data of the host.
    modality : Task
        What encodes samples.
    objective : Objective
        The objective of a visit, which may need alternates or rows to keep.
    """
    own, excluded = encoded.rows, set(task.excluded)
    skipped = sum(1 for sample in encoded.skipped if sample not in excluded)
    if not isinstance(request, VisitRequest) or task.forget == ():
        kept = [row for sample, row in own if sample not in excluded]
        return ChosenRows(rows={"retain": kept}, skipped=skipped, learning=True)
    if task.forget is None:
        forget = [(sample, row) for sample, row in own if sample not in excluded]
        anchor = [row for _, row in encode_rows(modality, request.public).rows]
    else:
        asked = set(task.forget)
        forget = [(sample, row) for sample, row in own if sample in asked]
        same = {row for _, row in forget}  # rows under other ids; nobody unlearns and keeps one row at once
        anchor = [row for sample, row in own if sample not in asked and sample not in excluded and row not in same]
    rows: dict[Role, Sequence[Row]] = {"forget": [row for _, row in forget]}
    if any(need.role == "alternate" for need in parse_needs(objective.needs)):
        rows = _with_alternates(forget, own_rows(task, data), modality)
        skipped += len(forget) - len(rows["forget"])
    if anchor and objective.accepts_retain:
        rows["retain"] = anchor
    return ChosenRows(rows=rows, skipped=skipped, learning=False)


def own_rows(task: ClientTask, data: FederatedData) -> Sequence[Sample]:
    """Return a client's rows with the ids that the message goes by."""
    rows = data.clients[task.client_id]
    return keyed_rows(rows, bytes.fromhex(task.id_key)) if task.id_key else rows


def portions_to_measure(task: ClientTask, data: FederatedData) -> list[tuple[str, list[Sample]]]:
    """Return the rows that a client measures, by a name: in two parts where only some of them are to be forgotten."""
    gone = set(task.excluded)
    rows = [row for row in own_rows(task, data) if row.id not in gone]
    if task.forget is None:
        return [(task.client_id, rows)]
    asked = set(task.forget)
    portions = [
        (f"{task.client_id} (forgotten)", [row for row in rows if row.id in asked]),
        (f"{task.client_id} (kept)", [row for row in rows if row.id not in asked]),
    ]
    return [(name, own) for name, own in portions if own]


def _with_alternates(
    forget: Sequence[tuple[str, Row]], samples: Sequence[Sample], modality: Task
) -> dict[Role, Sequence[Row]]:
    """Return the rows to forget, each with its alternate; a row whose alternate is too long is left out."""
    by_id = {sample.id: sample for sample in samples}
    pairs = [(row, modality.alternate(by_id[name])) for name, row in forget]
    whole = [(row, other) for row, other in pairs if other is not None]
    return {"forget": [row for row, _ in whole], "alternate": [other for _, other in whole]}
