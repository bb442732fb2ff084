"""From a config and a request to the plan of a removal, before a run, after it, or without running anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from oblivion.aggregation import rule_of, scheme_of
from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.federation import without
from oblivion.data.groups import asked_rows, shared_rows
from oblivion.data.requests import select_samples
from oblivion.errors import PlanRefusedError
from oblivion.federation.fitting import Unfit
from oblivion.ledger.rounds import Absence, RoundRecord
from oblivion.privacy.budget import budget_of
from oblivion.removal import removal_from
from oblivion.removal.plan import LearnPhase, RemovalPlan, Situation, first_asked, plan_removal
from oblivion.seeding import derive_seed
from oblivion.types import ForgetRequest
from oblivion.visits import steps_per_visit


def oracle_seeds(config: RunConfig) -> dict[str, int]:
    """The oracles that a request is measured with, by name: the first has the run's own seed."""
    seed, count = config.seed, config.evaluate.oracle_seeds
    others = {f"oracle-{n}": derive_seed(seed, "oracle", n - 1) for n in range(2, count + 1)}
    return {"oracle": seed, **others} if count else {}


def make_request(data: FederatedData, client: str, samples: str) -> ForgetRequest:
    """What is asked for, not yet signed."""
    return ForgetRequest(id="", client_id=client, sample_ids=select_samples(data, client, samples))


def present(data: FederatedData, exclusions: Sequence[Absence]) -> FederatedData:
    """The same data without what was forgotten for good, where its source still has it."""
    for absence in exclusions:
        if absence.client not in data.clients:
            continue
        known = {row.id for row in data.clients[absence.client]}
        gone = known if absence.samples is None else known.intersection(absence.samples)
        if gone:
            data = without(data, absence.client, None if gone == known else gone)
    return data


def usable(data: FederatedData, unfit: Unfit) -> dict[str, int]:
    """Client id to the number of its rows that can be trained on, as far as that is known."""
    return {client: len(rows) - len(unfit.get(client, ())) for client, rows in data.clients.items()}


def visits(config: RunConfig, usable: Mapping[str, int]) -> dict[str, int]:
    """Client id to the client-steps of one visit, from its number of usable rows."""
    train = config.train
    return {c: steps_per_visit(rows, train.batch_size, train.local_epochs) for c, rows in usable.items()}


def request_entry(data: FederatedData, request: ForgetRequest, situation: Situation, never: str) -> dict[str, Any]:
    """What ``metrics.json`` says about a request before any removal was run.

    Parameters
    ----------
    data, request, situation
        As in `make_situation`.
    never : str
        Why the model learned nothing of it; empty if it did.
    """
    rows = asked_rows(data.clients[request.client_id], request)
    shared = [row.id for row in shared_rows(data, request)]
    accepted = (record.round for record in situation.records if request.client_id in record.accepted)
    return {
        "id": request.id,
        "client": request.client_id,
        "samples": None if request.whole_client else len(rows),
        "sample_ids": request.sample_ids,
        "rows": len(rows),
        **({"shared": shared} if shared else {}),
        "t_u": first_asked(request, situation),
        "first_update": next(accepted, None),
        **({"never": never} if never else {}),
        "models": {},
    }


def make_situation(
    config: RunConfig,
    data: FederatedData,
    request: ForgetRequest,
    records: Sequence[RoundRecord] = (),
    restorable: Sequence[int] | None = None,
    unfit: Unfit | None = None,
    rounding: str = "",
) -> Situation:
    """What a removal may know when it plans.

    Parameters
    ----------
    config : RunConfig
        Resolved.
    data : FederatedData
        The present clients' rows.
    request : ForgetRequest
        What is asked for.
    records : sequence of RoundRecord
        The rounds that led to the head of the run; empty before it was run.
    restorable : sequence of int, optional
        The rounds whose state can be had again; before a run, those that it will keep.
    unfit : mapping, optional
        See `oblivion.federation.fitting.unfit`; None where that is not known yet, so that every row counts.
    rounding : str, default ""
        See `Situation`.

    Raises
    ------
    PlanRefusedError
        If nobody would be left.
    """
    asked = asked_rows(data.clients[request.client_id], request)
    target = len(asked)
    shared = tuple(row.id for row in shared_rows(data, request))
    sizes = {client: len(rows) - target * (client == request.client_id) for client, rows in data.clients.items()}
    unfit = unfit or {}
    fit, forgotten = usable(data, unfit), sum(row.id not in unfit.get(request.client_id, ()) for row in asked)
    fit[request.client_id] -= forgotten
    steps = {client: count for client, count in visits(config, fit).items() if sizes[client]}
    if not any(steps.values()):
        why = "the only client" + (" with rows that fit" if steps else "")
        raise PlanRefusedError(f"{request.client_id} is {why}; without it there is nothing to learn from")
    federation = config.federation
    return Situation(
        rounds=federation.rounds,
        head=records[-1].round if records else federation.rounds,
        records=records,
        restorable=tuple(_kept(config) if restorable is None else restorable),
        aggregator=rule_of(config),
        scheme=scheme_of(config),
        seed=config.seed,
        clients_per_round=federation.clients_per_round,
        joins=federation.joins,
        steps=steps,
        unlearn_steps=steps_per_visit(forgotten, config.train.batch_size, config.forget.local_epochs),
        shared=shared,
        # In a simulation every client can be asked at any time.
        available=frozenset({"target_online", "checkpoints", *(("public_data",) if data.public else ())}),
        samples={client: rows for client, rows in sizes.items() if rows},
        budget=budget_of(config),
        rounding=rounding,
    )


def _kept(config: RunConfig) -> range | list[int]:
    """The rounds whose state a run will be able to restore at its end."""
    rounds, keep = config.federation.rounds, config.ledger.retention
    if not keep:
        return range(rounds + 1)
    return [r for r in range(rounds + 1) if r > rounds - keep or r % config.ledger.checkpoint_every == 0]


def make_plan(config: RunConfig, request: ForgetRequest, situation: Situation, method: str) -> RemovalPlan:
    """Plan one of the scenario's removals.

    Raises
    ------
    PlanRefusedError
        If it cannot be done.
    """
    return plan_removal(removal_from(method, config.forget), method, request, situation)


def plan_values(plan: RemovalPlan) -> dict[str, Any]:
    """A plan as plain JSON values; every phase names its kind, and ``shared`` is left out if there are no such rows."""
    content = dataclasses.asdict(plan)
    if not plan.shared:
        del content["shared"]
    for phase, values in zip(plan.phases, content["phases"], strict=True):
        values["kind"] = "learn" if isinstance(phase, LearnPhase) else "unlearn"
    return content
