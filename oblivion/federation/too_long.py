"""Which rows fit into the model's context: found before anything is trained, with as little tokenising as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.groups import asked_rows
from oblivion.errors import InputError, PlanRefusedError, plural
from oblivion.learners import learner_of
from oblivion.training.batches import encode_rows
from oblivion.types import ForgetRequest, Sample

Unfit = Mapping[str, frozenset[str]]
"""Client id to the ids of its rows that cannot be trained on."""
_NAMED = 5


def _lengths(config: RunConfig, samples: Iterable[Sample]) -> Iterable[tuple[str, int]]:
    """Sample ids with the size of the row."""
    task = learner_of(config).task
    return ((sample.id, task.size(sample)) for sample in samples)


def context_of(config: RunConfig) -> int:
    """The context in tokens."""
    return learner_of(config).max_length


def unfit_rows(config: RunConfig, data: FederatedData) -> dict[str, list[str]] | None:
    """Return the ids of all rows that do not fit, by client: the run notes them, so that planning needs no model.

    None where a row cannot be encoded at all: the host of its client says so when it trains.
    """
    task = learner_of(config).task
    try:
        skipped = {client: encode_rows(task, samples).skipped for client, samples in data.clients.items()}
    except InputError:
        return None
    return {client: sorted(set(ids)) for client, ids in skipped.items() if ids}


def unfit(config: RunConfig, data: FederatedData, client: str = "", known: Unfit | None = None) -> Unfit:
    """Rows that do not fit: those of `client`, and all rows of every client that has none that fits.

    Where the run noted its rows that do not fit, they are `known`. Else the rows of other clients are only looked at
    up to the first that fits, which takes no time. How many of the rest fit is known once the client was trained.
    """
    if known is not None:
        own = {name: frozenset(sample.id for sample in samples) for name, samples in data.clients.items()}
        gone = {name: ids & known.get(name, frozenset()) for name, ids in own.items()}
        return {name: ids for name, ids in gone.items() if name == client or ids == own[name]}
    context, found = context_of(config), {}
    for name, samples in data.clients.items():
        fitting: set[str] = set()
        for sample, length in _lengths(config, samples):
            if length <= context:
                fitting.add(sample)
                if name != client:
                    break
        if name == client or not fitting:
            found[name] = frozenset(sample.id for sample in samples) - fitting
    return found


def nothing_fits(config: RunConfig, data: FederatedData, request: ForgetRequest, known: Unfit | None = None) -> str:
    """Why nothing that is asked to be forgotten was ever trained on, in words; empty where something could be.

    Where the run noted its rows that do not fit, they are `known`, and only their lengths have to be looked up.
    """
    rows = asked_rows(data.clients[request.client_id], request)
    if known is not None and any(row.id not in known.get(request.client_id, ()) for row in rows):
        return ""
    context = context_of(config)
    shortest = min((length for _, length in _lengths(config, rows)), default=0)
    if 0 < shortest <= context:
        return ""
    part = f"its {plural(len(rows), 'row')}"
    if not request.whole_client:
        part = f"the {plural(len(rows), 'sample')} that it asks to be forgotten"
    why = f"fits into the context of {context} tokens (the shortest has {shortest})"
    if not shortest:
        why = "has an answer with a token of its own"
    return f"{request.client_id}: none of {part} {why}, so none is ever trained on, and there is nothing to forget"


def check_fits(config: RunConfig, data: FederatedData, request: ForgetRequest) -> None:
    """Refuse, before anything is trained, a scenario that asks to forget what will not be trained on.

    Raises
    ------
    PlanRefusedError
        With the numbers.
    """
    why = nothing_fits(config, data, request)
    if why:
        longer = "raise train.max-length" if config.train.max_length else "take a model with a longer context"
        raise PlanRefusedError(f"{why}; leave forget.client out, or {longer}")


def beforehand(config: RunConfig, data: FederatedData) -> list[str]:
    """What the user should know before anything is trained: warnings."""
    draws = learner_of(config).draws
    told = (
        f"the base model draws at random in training ({', '.join(draws)}): this is switched off while clients train, "
        "so that a run can be repeated bit for bit; for dropout on the adapter, set lora.dropout"
    )
    return [text for text in (told if draws else "", _idle_clients(config, data)) if text]


def _idle_clients(config: RunConfig, data: FederatedData) -> str:
    """Which clients will not take part since none of their rows fits, in words; empty where all will."""
    idle = sorted(client for client, rows in unfit(config, data).items() if rows)
    if not idle:
        return ""
    named = _some([f"{client}: {plural(len(data.clients[client]), 'row')}" for client in idle])
    return (
        f"{plural(len(idle), 'client')} without a row that fits into the context of {context_of(config)} tokens "
        f"({named}): such a client fails in every round, and nothing of it is learned"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
