"""From a config and a request to the plan of a removal, before a run, after it, or without running anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from oblivion.aggregation import rule_of, scheme_of
from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.federation import without
from oblivion.data.groups import asked_rows, shared_rows
from oblivion.data.requests import select_samples
from oblivion.errors import PlanRefusedError
from oblivion.federation.too_long import Unfit
from oblivion.learning import learning_phases
from oblivion.ledger.rounds import Absence, RoundRecord
from oblivion.privacy.budget import budget_of
from oblivion.removal.context import PlanningContext, first_asked, from_round
from oblivion.removal.plan import RemovalPlan, plan_removal
from oblivion.removal.retrain import Retrain
from oblivion.removal.settings import method_of, removal_from
from oblivion.run.records import RequestRecord
from oblivion.seeding import derive_seed
from oblivion.selection import population, select_clients
from oblivion.types import ForgetRequest
from oblivion.visit_steps import steps_per_visit


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


def request_entry(data: FederatedData, request: ForgetRequest, context: PlanningContext, never: str) -> RequestRecord:
    """What ``metrics.json`` says about a request before any removal was run.

    Parameters
    ----------
    data, request, context
        As in `make_context`.
    never : str
        Why the model learned nothing of it; empty if it did.
    """
    rows = asked_rows(data.clients[request.client_id], request)
    shared = [row.id for row in shared_rows(data, request)]
    accepted = (record.round for record in context.records if request.client_id in record.accepted)
    return RequestRecord(
        id=request.id,
        client=request.client_id,
        samples=None if request.whole_client else len(rows),
        sample_ids=request.sample_ids,
        rows=len(rows),
        **({"shared": tuple(shared)} if shared else {}),
        t_u=first_asked(request, context),
        first_update=next(accepted, None),
        **({"never": never} if never else {}),
        models={},
    )


def make_context(
    config: RunConfig,
    data: FederatedData,
    request: ForgetRequest,
    records: Sequence[RoundRecord] = (),
    restorable: Sequence[int] | None = None,
    stored: Mapping[int, frozenset[str]] | None = None,
    unfit: Unfit | None = None,
    rounding: str = "",
) -> PlanningContext:
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
    stored : mapping of int to frozenset of str, optional
        Round to the clients whose contribution is stored; before a run, those that it will have stored.
    unfit : mapping, optional
        See `oblivion.federation.too_long.unfit`; None where that is not known yet, so that every row counts.
    rounding : str, default ""
        See `PlanningContext`.

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
    federation, train = config.federation, config.train
    context = PlanningContext(
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
        usable={client: fit[client] for client in steps},
        forgotten=forgotten,
        batch_size=train.batch_size,
        local_epochs=train.local_epochs,
        learning_rate=train.learning_rate,
        learning=learning_phases(config, replay=True),
        shared=shared,
        samples={client: rows for client, rows in sizes.items() if rows},
        budget=budget_of(config),
        rounding=rounding,
        stored=_stored(config, data) if stored is None else stored,
    )
    return dataclasses.replace(context, available=_available(request, context, bool(data.public)))


def _available(request: ForgetRequest, context: PlanningContext, public: bool) -> frozenset[str]:
    """Return what of `Removal.requires` there is, for this request and by what is really kept."""
    t_u = from_round(request, context)
    there = {
        "target_online": True,  # in a simulation every client can be asked at any time
        "public_data": public,
        "checkpoints": not t_u or any(round < t_u for round in context.restorable),
        "updates": bool(context.stored_rounds(request.client_id)),
        "norms": bool(context.stored_rounds(request.client_id)),  # they are kept with the updates
    }
    return frozenset(name for name, is_there in there.items() if is_there)


def _stored(config: RunConfig, data: FederatedData) -> dict[int, frozenset[str]]:
    """Return the contributions that a run will have stored at its end, if everybody answers."""
    federation, keep = config.federation, config.ledger.retention
    first = max(1, federation.rounds - keep + 1) if keep else 1
    stored = {}
    for number in range(first, federation.rounds + 1):
        there = population(tuple(data.clients), federation.joins, number)
        stored[number] = frozenset(select_clients(there, federation.clients_per_round, config.seed, number))
    return stored


def _kept(config: RunConfig) -> range | list[int]:
    """The rounds whose state a run will be able to restore at its end."""
    rounds, keep = config.federation.rounds, config.ledger.retention
    if not keep:
        return range(rounds + 1)
    return [r for r in range(rounds + 1) if r > rounds - keep or r % config.ledger.checkpoint_every == 0]


def make_plan(config: RunConfig, request: ForgetRequest, context: PlanningContext, name: str) -> RemovalPlan:
    """Plan one of the scenario's removals, by the name of its settings.

    Raises
    ------
    PlanRefusedError
        If it cannot be done.
    """
    settings = config.forget.methods.get(name, {})
    return plan_removal(removal_from(name, settings), method_of(name, settings), request, context, name)


def check_oracle(config: RunConfig, request: ForgetRequest, context: PlanningContext) -> None:
    """Refuse a request whose oracle could not be trained.

    Raises
    ------
    PlanRefusedError
        With the reason, and how to do without an oracle.
    """
    if not config.evaluate.oracle_seeds:
        return
    try:
        plan_removal(Retrain(), "retrain", request, context)
    except PlanRefusedError as error:
        raise PlanRefusedError(
            f"the oracle cannot be trained, so nothing could be compared with it: {error}. "
            "evaluate.oracle-seeds = 0 does without"
        ) from None
