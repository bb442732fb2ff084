"""What a hostile host does while others are forgotten: rounds are run again, and it answers otherwise, or not."""

from __future__ import annotations

import dataclasses

import pytest
from test_hostile_updates import EVE, INITIAL, Change, Silos, learn, own, settings

from oblivion.errors import FederationError
from oblivion.federation.absence import to_replay
from oblivion.federation.rounds import Federation
from oblivion.ledger.rounds import Absence, Branch, RoundRecord
from oblivion.training.batches import NO_ROWS
from oblivion.types import HostReply

ROUNDS, LEAVES = 6, "client-4"
REFUSED: Change = own(num_examples=-1)


def says(reason: str) -> Change:
    return lambda reply: dataclasses.replace(reply, updates=(), failures={EVE: reason} if reason else {})


NOW: dict[str, Change] = {
    "nothing": says(""),
    "a failure": says("it crashed"),
    "no rows": says(NO_ROWS),
    "a good update": lambda reply: reply,
    "a bad update": own(steps=-1),
}


def again(then: Change, now: Change, t_u: int) -> tuple[Federation, list[RoundRecord]]:
    """The rounds of a federation, and the same without a client that has a part from round `t_u` on."""
    hosts = Silos(client_2=then)
    made = learn(hosts, settings(ROUNDS))
    hosts.changes[EVE] = now
    made.begin(Branch(name="again", seed=0, rounds=ROUNDS, absent=(Absence(client=LEAVES),)), INITIAL)
    replayed = to_replay(made.ledger.records("main"), t_u)
    return made, [made.run_round("again", replayed[round]) for round in range(1, ROUNDS + 1)]


def states(made: Federation) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in made.head("again").state.adapter.values()]


@pytest.mark.parametrize("now", NOW)
def test_whose_updates_never_counted_decides_nothing_by_its_silence(now: str) -> None:
    """Refused in three rounds and in quarantine since: before the leaving client took part, that is how it stays."""
    made, records = again(REFUSED, NOW[now], t_u=ROUNDS)
    then = made.ledger.records("main")
    for one, other in zip(records, then, strict=True):
        assert set(one.refused) == set(other.refused) == {EVE} and not one.failed
        assert set(one.accepted) == set(other.accepted) - {LEAVES}
    assert made.head("again").gate_state.strikes[0][1:3] == made.head("main").gate_state.strikes[0][1:3]
    assert made.replay.check("again") == ROUNDS
    assert states(made) == states(again(REFUSED, REFUSED, t_u=ROUNDS)[0])


@pytest.mark.parametrize("now", ["nothing", "a failure", "no rows", "a bad update"])
def test_nor_does_it_after_the_leaving_client_took_part(now: str) -> None:
    made, records = again(REFUSED, NOW[now], t_u=1)
    assert all(len(record.accepted) == 3 and EVE not in record.accepted for record in records)
    assert made.replay.check("again") == ROUNDS


def test_strikes_that_are_dodged_raise_no_alarm() -> None:
    """Silent while it was refused, good while it was in quarantine: the ledger's own check must not see a change."""
    count = iter(range(100))

    def later(reply: HostReply) -> HostReply:
        return says(NO_ROWS)(reply) if next(count) < 3 else reply

    made, records = again(REFUSED, later, t_u=ROUNDS)
    assert all(EVE in record.refused for record in records)
    assert made.replay.check("again") == ROUNDS


@pytest.mark.parametrize("now", ["nothing", "a failure", "no rows"])
def test_who_counted_then_must_answer_and_the_way_out_is_told(now: str) -> None:
    with pytest.raises(FederationError, match=rf"{EVE} took part then and fails now .*forget those first"):
        again(lambda reply: reply, NOW[now], t_u=1)
