"""Train the clients of a cohort from one global adapter: together where the model allows it, else one by one."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from oblivion.config import PrivacyConfig, TrainConfig
from oblivion.errors import OblivionError
from oblivion.objectives.needs import parse_needs
from oblivion.objectives.terms import Objective
from oblivion.replies import one_line
from oblivion.tasks.task import Learner
from oblivion.training.batches import NO_ROWS
from oblivion.training.dp_sgd import train_client_privately
from oblivion.training.fused import fusible, train_fused
from oblivion.training.local import LocalTask, train_client
from oblivion.types import Adapter, ClientUpdate, RoundInfo


def train_cohort(
    resident: Learner,
    start: Adapter,
    tasks: Sequence[LocalTask],
    objective: Objective,
    settings: TrainConfig,
    info: RoundInfo,
    privacy: PrivacyConfig | None = None,
) -> tuple[list[ClientUpdate], dict[str, str]]:
    """Train every client of a cohort; one that fails does not stop the others, and changes none of their bits.

    With `privacy`, each client hides its samples (`oblivion.training.dp_sgd`), and they are trained one by one. A
    cohort that does not fit into memory is trained by halves; ``metrics["together"]`` of its updates says how many
    clients at most shared a pass. Where clients cannot be trained together, there is no such number.

    Returns
    -------
    updates : list of ClientUpdate
        In the order of `tasks`, without those that failed.
    failures : dict
        Client id to the reason.
    """
    ready = [task for task in tasks if task.leading]
    failures = {task.client_id: NO_ROWS for task in tasks if not task.leading}
    own = any(task.start is not None for task in ready)  # some clients have a reference of their own
    alone = own and any(need.source == "reference" for need in parse_needs(objective.needs))
    visit = (resident, start, objective, settings, info)
    if fusible(resident) is None and not alone and privacy is None:
        updates, failed = _together(ready, visit)
    else:
        updates, failed = _one_by_one(ready, lambda task: _visit_alone(task, visit, privacy))
    return updates, failures | failed


_Visit: TypeAlias = tuple[Learner, Adapter, Objective, TrainConfig, RoundInfo]


def _together(tasks: Sequence[LocalTask], visit: _Visit) -> tuple[list[ClientUpdate], dict[str, str]]:
    """Train all in one pass. If one of them fails, the others are trained anew, as a cohort that never had it."""
    failures: dict[str, str] = {}
    ready, together = list(tasks), len(tasks)
    updates: list[ClientUpdate] = []
    while ready and not updates:
        try:
            updates = _fused(ready, visit, together)
        except Exception as error:
            if _out_of_memory(error) and together > 1:
                together //= 2
                continue
            one_by_one = _one_by_one(ready, lambda task: _fused([task], visit, 1)[0])
            if not one_by_one[1]:  # nobody fails alone, so that it was no single client's fault
                updates, together = one_by_one[0], 1
                continue
            failures |= one_by_one[1]
            ready = [task for task in ready if task.client_id not in failures]
            together = len(ready)
    return [replace(u, metrics={**u.metrics, "together": float(together)}) for u in updates], failures


def _fused(tasks: Sequence[LocalTask], visit: _Visit, together: int) -> list[ClientUpdate]:
    resident, start, objective, settings, info = visit
    return train_fused(resident, start, tasks, objective, settings, info, together)


def _visit_alone(task: LocalTask, visit: _Visit, privacy: PrivacyConfig | None) -> ClientUpdate:
    resident, start, objective, settings, info = visit
    if privacy is None:
        return train_client(resident, start, task, objective, settings, info)
    return train_client_privately(resident, start, task, objective, settings, privacy, info)


def _one_by_one(
    tasks: Sequence[LocalTask], train: Callable[[LocalTask], ClientUpdate]
) -> tuple[list[ClientUpdate], dict[str, str]]:
    updates: list[ClientUpdate] = []
    failures: dict[str, str] = {}
    for task in tasks:
        try:
            updates.append(train(task))
        except Exception as error:
            failures[task.client_id] = reason(error)
    return updates, failures


def reason(error: Exception) -> str:
    """Return a client's failure in one line, as it is reported to the server.

    Only our own errors are repeated, because they hold no content of rows; any other is given by its type and its place
    in the code.
    """
    if isinstance(error, OblivionError):
        return f"{type(error).__name__}: {one_line(str(error))}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{place}"


def _out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
