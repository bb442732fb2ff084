"""Train the clients of a cohort from one global adapter: together where the model allows it, else one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from oblivion.config import PrivacyConfig, TrainConfig
from oblivion.errors import OblivionError
from oblivion.models.resident import ResidentModel
from oblivion.objectives.terms import Objective
from oblivion.training.dp_sgd import train_client_privately
from oblivion.training.fused import fusible, train_fused
from oblivion.training.local import LocalTask, train_client
from oblivion.types import Adapter, ClientUpdate, RoundInfo


def train_cohort(
    resident: ResidentModel,
    start: Adapter,
    tasks: Sequence[LocalTask],
    objective: Objective,
    settings: TrainConfig,
    info: RoundInfo,
    privacy: PrivacyConfig | None = None,
) -> tuple[list[ClientUpdate], dict[str, str]]:
    """Train every client of a cohort; one that fails does not stop the others.

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
    failures = {task.client_id: "no rows to train on" for task in tasks if not task.leading}
    updates: list[ClientUpdate] = []
    alone = "reference" in objective.needs and any(task.start is not None for task in ready)  # each has its own
    together = len(ready) if fusible(resident) is None and not alone and privacy is None else 0
    while together and not updates:
        try:
            updates = train_fused(resident, start, ready, objective, settings, info, together)
        except (OblivionError, RuntimeError, ValueError, MemoryError) as error:
            # Out of memory: fewer at a time. Anything else is one client's: it shall fail alone.
            together = together // 2 if _out_of_memory(error) else 0
    if together:
        updates = [replace(u, metrics={**u.metrics, "together": float(together)}) for u in updates]
    else:
        updates, failed = _one_by_one(resident, start, ready, objective, settings, info, privacy)
        failures |= failed
    return updates, failures


def _one_by_one(
    resident: ResidentModel,
    start: Adapter,
    tasks: Sequence[LocalTask],
    objective: Objective,
    settings: TrainConfig,
    info: RoundInfo,
    privacy: PrivacyConfig | None,
) -> tuple[list[ClientUpdate], dict[str, str]]:
    updates: list[ClientUpdate] = []
    failures: dict[str, str] = {}
    for task in tasks:
        try:
            if privacy is None:
                updates.append(train_client(resident, start, task, objective, settings, info))
            else:
                updates.append(train_client_privately(resident, start, task, objective, settings, privacy, info))
        except (OblivionError, RuntimeError, ValueError) as error:
            reason, _, _ = str(error).strip().partition("\n")
            failures[task.client_id] = f"{type(error).__name__}: {reason}"
    return updates, failures


def _out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
