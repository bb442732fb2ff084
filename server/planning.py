"""From a config and a request to the plan of a removal, before a run, after it, or without running anything."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from oblivion.aggregation import aggregators
from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.groups import asked_rows
from oblivion.data.requests import select_samples
from oblivion.errors import PlanRefusedError
from oblivion.ledger.memory import RoundRecord
from oblivion.parameters import build
from oblivion.removal import removal_from
from oblivion.removal.plan import LearnPhase, RemovalPlan, Situation, plan_removal
from oblivion.training.batches import steps_per_visit
from oblivion.types import ForgetRequest


def make_request(data: FederatedData, client: str, samples: str) -> ForgetRequest:
    """Make a request; its id is a digest of what it asks for, so the same request has the same id."""
    asked = select_samples(data, client, samples)
    content = json.dumps([client, None if asked is None else sorted(asked)]).encode()
    return ForgetRequest(id=f"req-{hashlib.sha256(content).hexdigest()[:12]}", client_id=client, sample_ids=asked)


def visits(config: RunConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    """Client id to the client-steps of one visit, from its number of rows; clients without rows are left out."""
    train = config.train
    return {c: steps_per_visit(rows, train.batch_size, train.local_epochs) for c, rows in sizes.items() if rows}


def make_situation(
    config: RunConfig, data: FederatedData, request: ForgetRequest, records: Sequence[RoundRecord] = ()
) -> Situation:
    """What a removal may know when it plans.

    Raises
    ------
    PlanRefusedError
        If nobody would be left.
    """
    target = len(asked_rows(data.clients[request.client_id], request))
    sizes = {client: len(rows) - target * (client == request.client_id) for client, rows in data.clients.items()}
    steps = visits(config, sizes)
    if not steps:
        raise PlanRefusedError(f"{request.client_id} is the only client; without it there is nothing to learn from")
    federation = config.federation
    return Situation(
        rounds=federation.rounds,
        records=records,
        aggregator=build(aggregators, federation.aggregator, federation.parameters, "federation.parameters"),
        seed=config.seed,
        clients_per_round=federation.clients_per_round,
        joins=federation.joins,
        steps=steps,
        unlearn_steps=steps_per_visit(target, config.train.batch_size, config.forget.local_epochs),
        # In a simulation every client can be asked at any time.
        available=frozenset({"target_online", *(("public_data",) if data.public else ())}),
    )


def make_plan(config: RunConfig, request: ForgetRequest, situation: Situation, method: str) -> RemovalPlan:
    """Plan one of the scenario's removals.

    Raises
    ------
    PlanRefusedError
        If it cannot be done.
    """
    return plan_removal(removal_from(method, config.forget), method, request, situation)


def plan_values(plan: RemovalPlan) -> dict[str, Any]:
    """A plan as plain JSON values; every phase says its kind."""
    content = dataclasses.asdict(plan)
    for phase, values in zip(plan.phases, content["phases"], strict=True):
        values["kind"] = "learn" if isinstance(phase, LearnPhase) else "unlearn"
    return content
