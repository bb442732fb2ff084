"""Statistics that are not those of the schema: through the gate and over the wire, each costs its client alone."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from fake_hosts import INITIAL as SMALL
from flwr.app import Array, ConfigRecord, RecordDict
from mortal import TRIAL, learned, run
from test_bad_updates import BAD, CLIENTS, INITIAL, visit

from oblivion.aggregation.gate import Gate
from oblivion.errors import FederationError, IntegrityError
from oblivion.federation import phase_runner
from oblivion.named_statistics import Statistic, check_schema, refusal
from oblivion.objectives.lm import LanguageModel
from oblivion.objectives.terms import Outcome
from oblivion.provenance import code_fingerprint
from oblivion.removal.combinations import moved
from oblivion.removal.phases import Visit
from oblivion.types import ClientTask, ClientUpdate, GlobalState, HostReply, RoundInfo, VisitRequest
from oblivion.wire import check_reply, pack_reply, pack_requests, unpack_reply, unpack_request

SCHEMA = {
    "distance": Statistic(shape=(2,), lowest=0.0, highest=0.1),
    "score": Statistic(shape=(), dtype="int64", lowest=-3, highest=3),
}
GOOD = {"distance": torch.tensor([0.0, 0.1]), "score": torch.tensor(3)}
INFO = RoundInfo(branch="r/t", round=4, rounds=4, population=tuple(CLIENTS), seed=0)
GATE = Gate(INITIAL, 100.0, code_fingerprint(), statistics=SCHEMA)
BAD_VALUES: dict[str, Any] = {
    "none": {},
    "one missing": {"score": GOOD["score"]},
    "one more": {**GOOD, "other": torch.zeros(())},
    "another name": {"distance": GOOD["distance"], "Score": GOOD["score"]},
    "no mapping": [1],
    "no tensor": {**GOOD, "score": 3},
    "float64": {**GOOD, "distance": GOOD["distance"].double()},
    "int32": {**GOOD, "score": torch.tensor(3, dtype=torch.int32)},
    "bool": {**GOOD, "score": torch.tensor(True)},
    "complex": {**GOOD, "distance": torch.zeros(2, dtype=torch.complex64)},
    "a shape that broadcasts": {**GOOD, "distance": torch.tensor([0.0])},
    "a shape of ones": {**GOOD, "score": torch.tensor([3])},
    "empty": {**GOOD, "distance": torch.zeros(0)},
    "turned": {**GOOD, "distance": torch.zeros(2, 1)},
    "NaN": {**GOOD, "distance": torch.tensor([0.0, math.nan])},
    "infinite": {**GOOD, "distance": torch.tensor([0.0, math.inf])},
    "too high": {**GOOD, "distance": torch.tensor([0.0, 0.1000001])},
    "too low": {**GOOD, "distance": torch.tensor([-1e-30, 0.0])},
    "above as int": {**GOOD, "score": torch.tensor(2**62)},
    "sparse": {**GOOD, "distance": torch.zeros(2).to_sparse()},
    "on no device": {**GOOD, "distance": torch.zeros(2, device="meta")},
}
ON_WIRE = sorted(BAD_VALUES.keys() - {"no mapping", "no tensor", "sparse", "on no device"})


def update(client: str, statistics: Any) -> ClientUpdate:
    return dataclasses.replace(visit(ClientTask(client_id=client), INFO), statistics=statistics)


def request() -> VisitRequest:
    return VisitRequest(
        host="h",
        config={},
        info=INFO,
        state=GlobalState(adapter=INITIAL),
        cohorts=(tuple(ClientTask(client_id=client, forget=()) for client in CLIENTS),),
        local_epochs=1,
        learning_rate=0.1,
        statistics=SCHEMA,
        store="/run/client-store",
        line=(("main", 0, 3), ("r/t", 4, 4)),
    )


def judged(updates: list[ClientUpdate]) -> tuple[set[str], dict[str, str]]:
    accepted, refused = GATE.admit(updates, CLIENTS, INFO.round)
    return {one.client_id for one in accepted}, refused


@pytest.mark.parametrize("name", BAD_VALUES)
def test_wrong_statistics_cost_their_client_alone(name: str) -> None:
    updates = [update(client, BAD_VALUES[name] if client == BAD else GOOD) for client in CLIENTS]
    accepted, refused = judged(updates)
    assert accepted == CLIENTS.keys() - {BAD} and list(refused) == [BAD]
    assert "statistic" in refused[BAD] and "Score" not in refused[BAD] and "other" not in refused[BAD]


@pytest.mark.parametrize("name", ON_WIRE)
def test_and_over_the_wire(name: str) -> None:
    reply = HostReply(host="h", updates=tuple(update(c, BAD_VALUES[name] if c == BAD else GOOD) for c in CLIENTS))
    read = unpack_reply(pack_reply(reply))
    accepted, refused = judged(list(read.updates))
    assert accepted == CLIENTS.keys() - {BAD} and {*refused, *read.failures} == {BAD}


def test_good_ones_come_through_as_they_are() -> None:
    packed = pack_reply(HostReply(host="h", updates=tuple(update(client, GOOD) for client in CLIENTS)))
    check_reply(packed, request())
    read = unpack_reply(packed)
    assert all(torch.equal(one.statistics[name], GOOD[name]) for one in read.updates for name in GOOD)
    assert judged(list(read.updates)) == (set(CLIENTS), {})
    (back,) = [unpack_request(records) for records in pack_requests([request()])]
    assert isinstance(back, VisitRequest)
    assert (back.statistics, back.store, back.line) == (SCHEMA, request().store, request().line)


def test_learning_takes_none() -> None:
    plain = dataclasses.replace(GATE, statistics={})
    accepted, refused = plain.admit([update(BAD, GOOD)], {BAD: 8}, INFO.round)
    assert accepted == () and "statistics" in refused[BAD]


def test_more_arrays_or_bytes_than_the_schema_has_are_not_parsed() -> None:
    for statistics in ({**GOOD, "other": torch.zeros(())}, {**GOOD, "distance": torch.zeros(10_000)}):
        packed = pack_reply(HostReply(host="h", updates=tuple(update(client, statistics) for client in CLIENTS)))
        with pytest.raises(IntegrityError, match=r"more than|larger than"):
            check_reply(packed, request())


@pytest.mark.parametrize("array", [np.array([b"x"]), np.zeros(2, dtype=">f4"), np.zeros(2, dtype="M8[s]")])
def test_arrays_of_other_kinds_cost_their_client_alone(array: Any) -> None:
    packed = pack_reply(HostReply(host="h", updates=tuple(update(client, GOOD) for client in CLIENTS)))
    packed.array_records["arrays"][f"{list(CLIENTS).index(BAD)}|statistic|distance"] = Array(array)
    read = unpack_reply(packed)
    accepted, refused = judged(list(read.updates))
    assert accepted == CLIENTS.keys() - {BAD} and {*refused, *read.failures} == {BAD}


@pytest.mark.parametrize(
    "change",
    [
        {"statistics": {"a|b": {"shape": [], "dtype": "float32", "lowest": 0, "highest": 1}}},
        {"statistics": {"a": {"shape": [-1], "dtype": "float32", "lowest": 0, "highest": 1}}},
        {"statistics": {"a": {"shape": [], "dtype": "object", "lowest": 0, "highest": 1}}},
        {"statistics": {"a": {"shape": [], "dtype": "float32", "lowest": 1, "highest": 0}}},
        {"statistics": {"a": {"shape": [], "dtype": "float32", "lowest": 0, "highest": math.inf}}},
        {"statistics": [1]},
        {"store": 5},
        {"line": [["main", 0]]},
        {"line": [["main", True, 3]]},
    ],
)
def test_a_request_of_another_form_is_refused(change: dict[str, Any]) -> None:
    (records,) = pack_requests([request()])
    message = {**json.loads(str(records.config_records["message"]["json"])), **change}
    arrays = records.array_records["arrays"]
    bent = RecordDict({"message": ConfigRecord({"json": json.dumps(message)}), "arrays": arrays})
    with pytest.raises(IntegrityError, match="not of the form"):
        unpack_request(bent)


def test_a_schema_that_nothing_can_fulfil_is_refused_when_it_is_made() -> None:
    for wrong in ({"shape": (0,)}, {"lowest": 2.0}, {"highest": math.nan}, {"dtype": "float16"}):
        with pytest.raises(ValueError, match=r"must be|no range"):
            Statistic(**{"shape": (), "lowest": 0.0, "highest": 1.0, **wrong})
    with pytest.raises(ValueError, match="no name"):
        check_schema({"a b": SCHEMA["score"]})
    assert refusal(GOOD, SCHEMA) is None


class Telling(LanguageModel):
    """An objective with statistics."""

    def schema(self, adapter: Any) -> dict[str, Statistic]:
        return SCHEMA

    def finish(self, before: Any, delta: Any, private: Any) -> Outcome:
        raise NotImplementedError("the hosts of this test are plain functions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Move every tensor by the sum of the clients' scores."""

    name: ClassVar[str] = "scores"

    def combine(self, before: Any, updates: Any, history: Any) -> Any:
        total = sum(int(one.statistics["score"]) for one in updates)
        return moved(before, {name: torch.full(t.shape, float(total)).double() for name, t in SMALL.items()})


def test_a_combination_gets_statistics_and_a_wrong_one_stops_the_visit_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(phase_runner, "objective_from", lambda name, parameters: Telling())
    visit = Visit(clients=("a", "b"), rows="own", objective="lm", local_epochs=1, learning_rate=1e-3, combine=Scores())

    def told(statistics: Any) -> Any:
        return lambda one: dataclasses.replace(one, statistics=statistics)

    made = learned()
    before = made.head("main").state.adapter
    made.hosts.changes = {"a": told(GOOD), "b": told({**GOOD, "score": torch.tensor(-1)})}
    run(made, (visit,))
    after = made.head(TRIAL).state.adapter
    for name in SMALL:
        torch.testing.assert_close(after[name], before[name] + 2, msg="3 and -1")

    for wrong in ({}, {**GOOD, "score": torch.tensor(4)}):
        made = learned()
        made.hosts.changes = {"a": told(GOOD), "b": told(wrong)}
        with pytest.raises(FederationError, match=r"b could not train: .*statistic"):
            run(made, (visit,))
        assert all(record.branch == "main" for record in made.ledger.records(TRIAL)), "nothing was committed"
