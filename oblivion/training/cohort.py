"""Train the clients of a cohort from one global adapter.

The clients are trained one after another on the resident model. The interface takes the whole cohort, so that
they can share one forward and backward pass without a change anywhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from oblivion.config import TrainConfig
from oblivion.errors import OblivionError
from oblivion.fingerprint import code_fingerprint
from oblivion.models.resident import ResidentModel
from oblivion.objectives.terms import Objective
from oblivion.training.local import LocalTask, train_client
from oblivion.types import Adapter, ClientUpdate, RoundInfo


def train_cohort(
    resident: ResidentModel,
    start: Adapter,
    tasks: Sequence[LocalTask],
    objective: Objective,
    settings: TrainConfig,
    info: RoundInfo,
) -> tuple[list[ClientUpdate], dict[str, str]]:
    """Train every client of a cohort; one that fails does not stop the others.

    Returns
    -------
    updates : list of ClientUpdate
        In the order of `tasks`, without those that failed.
    failures : dict
        Client id to the reason.
    """
    updates: list[ClientUpdate] = []
    failures: dict[str, str] = {}
    for task in tasks:
        if not task.leading:
            failures[task.client_id] = "no rows to train on"
            continue
        try:
            update = train_client(resident, start, task, objective, settings, info)
        except (OblivionError, RuntimeError) as error:
            resident.model.eval()
            reason, _, _ = str(error).strip().partition("\n")
            failures[task.client_id] = f"{type(error).__name__}: {reason}"
            continue
        updates.append(dataclasses.replace(update, fingerprint=code_fingerprint()))
    return updates, failures
