"""Who was absent from a round, and who never took part at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path

from oblivion.errors import FederationError, PlanRefusedError, plural
from oblivion.federation.accounting import count
from oblivion.ledger.rounds import Branch, CohortOutcome, RoundRecord
from oblivion.training.batches import NO_ROWS
from oblivion.types import ClientUpdate, ForgetRequest

_NAMED = 10
"""The number of reasons that one message holds."""


def missing(outcome: CohortOutcome, branch: Branch, replayed: RoundRecord | None) -> dict[str, str]:
    """Return the clients that fail in a replay although they must not, each with the reason.

    A client may fail if it was selected in the round that is replayed and its update did not count. It may also fail
    for want of rows if it had none then, or if some of its rows were forgotten since.
    """
    if replayed is None:
        return {}

    def may(client: str, why: str) -> bool:
        counted = client in replayed.accepted
        has_none = why == NO_ROWS and (not counted or bool(branch.excluded(client)))
        return has_none or (client in replayed.selected and not counted)

    return {client: why for client, why in outcome.failed.items() if not may(client, why)}


def to_replay(records: Sequence[RoundRecord], t_u: int) -> dict[int, RoundRecord]:
    """The rounds as a removal runs them again; from t_u on (0: never) what was refused may pass without the data."""
    return {r.round: dataclasses.replace(r, refused={}) if 0 < t_u <= r.round else r for r in records}


def refused_again(outcomes: Iterable[CohortOutcome], replayed: RoundRecord | None) -> Iterator[CohortOutcome]:
    """Yield the outcomes of a replay; a client whose update was refused then is refused again.

    This holds whatever the client sends now, and also if it sends nothing. Otherwise it could decide by its silence
    whether others can be forgotten, and which strikes it has.
    """
    then = replayed.refused if replayed else {}
    for outcome in outcomes:
        again = {c: then[c] for c in (*(u.client_id for u in outcome.updates), *outcome.failed) if c in then}
        yield dataclasses.replace(
            outcome,
            updates=tuple(update for update in outcome.updates if update.client_id not in again),
            refused={**outcome.refused, **again},
            failed={client: why for client, why in outcome.failed.items() if client not in again},
        )


def check_quorum(
    quorum: float, accepted: Sized, asked: Sequence[str], branch: Branch, number: int, lost: Mapping[str, str]
) -> None:
    """Refuse a round for which too few clients gave an update.

    On a branch without some client, clients without rows are not counted, because one of them may have been selected
    in the place of who left. A round in which nobody is left to be counted changes nothing.

    Raises
    ------
    FederationError
        With the reason for each client that is missing.
    """
    counted = [client for client in asked if not (branch.absent and lost.get(client) == NO_ROWS)]
    enough = max(1, math.ceil(quorum * len(counted)))
    if counted and len(accepted) < enough:
        raise FederationError(
            f"round {number}: {len(accepted)} of {len(counted)} clients gave a usable update, "
            f"federation.quorum asks for {enough}. {told(dict(sorted(lost.items())))}"
        )


def told(reasons: Mapping[str, str]) -> str:
    """Return the first few reasons with the names that they belong to, in their order, for one message.

    A reason may be the words of a host, so it must not look as if the reason of another client began in it. All
    reasons are in the ledger and in ``events.jsonl``.
    """
    said = [f"{name}: {why.replace(';', ',')}" for name, why in reasons.items()]
    more = [f"and {len(said) - _NAMED} more, see events.jsonl"] if len(said) > _NAMED else []
    return "; ".join([*said[:_NAMED], *more])


def halved(cohorts: Sequence[Sequence[str]], stored: Sequence[ClientUpdate], refused: Collection[str]) -> bool:
    """Whether a pass held fewer clients than its cohort had to train."""
    together = {update.client_id: count(update, "together") for update in stored}
    for cohort in cohorts:
        trained = sum(client in together or client in refused for client in cohort)
        if any(0 < together.get(client, 0) < trained for client in cohort):
            return True
    return False


def never_took_part(records: Sequence[RoundRecord], client: str) -> str:
    """Why a client that was asked has no part in a model, in words; empty where it has one, or was never asked.

    Parameters
    ----------
    records : sequence of RoundRecord
        The rounds that made the model.
    client : str
        The client.
    """
    asked = [record for record in records if client in record.selected]
    if not asked or any(client in record.accepted for record in asked):
        return ""
    reasons: dict[str, list[str]] = {}
    for record in asked:
        why = {**record.failed, **record.refused}.get(client, "it gave no update")
        reasons.setdefault(why, []).append(str(record.round))
    when = told({f"{'round' if len(n) == 1 else 'rounds'} {', '.join(n)}": why for why, n in reasons.items()})
    times = plural(len(asked), "round")
    return f"{client} never took part: it was asked in {times}, and none of its updates was taken ({when})"


def refusal(root: Path, request: ForgetRequest, never: str) -> PlanRefusedError:
    """The error for a request about data that was never learned; `never` says why."""
    way = f"oblivion refuse {root} {request.id or 'REQUEST'} --ground 'never took part'"
    return PlanRefusedError(f"{never}. To refuse the request for good: {way}")
