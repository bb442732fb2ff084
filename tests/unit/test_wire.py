"""Messages survive Flower's records bit for bit, and malformed ones are refused."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from oblivion.config import load_config
from oblivion.errors import IntegrityError
from oblivion.types import (
    ClientTask,
    ClientUpdate,
    DescribeRequest,
    EvaluateRequest,
    GlobalState,
    HostReply,
    HostRequest,
    RoundInfo,
    Sample,
    StartRequest,
    TrainRequest,
    VisitRequest,
)
from oblivion.wire import pack_reply, pack_requests, unpack_reply, unpack_request


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor([0.0, -0.0, 1e-45, -3.4e38, math.inf, math.nan, 1 / 3])
    return {
        "a.lora_A.weight": torch.randn(3, 5, generator=generator),
        "a|odd name/é": torch.randn(5, 3, generator=generator).t(),
        "b.empty": torch.zeros(0, 4),
        "c.scalar": torch.tensor(1.5),
        "d.special": special,
    }


REQUEST = VisitRequest(
    local_epochs=3,
    learning_rate=2e-4,
    host="17",
    config=load_config(None, {"federation.joins": {"client-1": 2}, "lora.targets": ["q_proj"]}).to_json(),
    info=RoundInfo(branch="main", round=2, rounds=9, population=("a", "b"), seed=2**62 + 1),
    state=GlobalState(adapter=tensors(0), residual={"r": torch.ones(2)}),
    cohorts=(
        (ClientTask(client_id="a", excluded=("s1", "s2")), ClientTask(client_id="b", forget=())),
        (ClientTask(client_id="c", forget=("s3",)),),
    ),
    objective="npo",
    parameters={"beta": 0.1},
    public=(Sample(id="p", prompt="q\n«é»", answer="a", wrong_answers=("x", "y"), path=("h", "p1"), extras={"n": 1}),),
)
UPDATE = ClientUpdate(
    client_id="a",
    round=2,
    delta=tensors(1),
    num_examples=12,
    steps=3,
    metrics={"loss": 1 / 3, "tokens": 40.0},
    fingerprint="f00",
)
REPLY = HostReply(
    host="17",
    updates=(UPDATE, dataclasses.replace(UPDATE, client_id="b", delta=tensors(2))),
    failures={"c": "RuntimeError: no"},
    metrics={"a": {"probability": (0.1, 3.0)}},
    clients={"a": {"samples": 12}},
)


def same(one: Any, other: Any) -> None:
    assert list(one) == sorted(other)
    for name in other:
        assert one[name].dtype == other[name].dtype and one[name].shape == other[name].shape
        assert one[name].contiguous().numpy().tobytes() == other[name].contiguous().numpy().tobytes(), name


def pack_request(request: HostRequest) -> RecordDict:
    return pack_requests([request])[0]


def test_request_round_trip_is_exact() -> None:
    back = unpack_request(pack_request(REQUEST))
    assert isinstance(back, VisitRequest)
    same(back.state.adapter, REQUEST.state.adapter)
    same(back.state.residual, REQUEST.state.residual)
    none = GlobalState(adapter={})
    assert dataclasses.replace(back, state=none) == dataclasses.replace(REQUEST, state=none)
    assert isinstance(back.cohorts, tuple) and isinstance(back.cohorts[0][0].excluded, tuple)
    assert isinstance(back.public[0].path, tuple) and isinstance(back.public[0].wrong_answers, tuple)
    assert isinstance(back.info.population, tuple)


def test_a_state_that_several_hosts_get_is_written_once() -> None:
    other = dataclasses.replace(REQUEST, host="18", cohorts=(), state=REQUEST.state)
    alone = dataclasses.replace(REQUEST, host="19", state=GlobalState(adapter=tensors(3)))
    first, second, third = pack_requests([REQUEST, other, alone])
    name = "adapter|a.lora_A.weight"
    arrays = [packed.array_records["arrays"][name] for packed in (first, second, third)]
    assert arrays[0].data is arrays[1].data and arrays[2].data is not arrays[0].data
    for packed, request in ((first, REQUEST), (second, other), (third, alone)):
        back = unpack_request(packed)
        assert isinstance(back, VisitRequest) and back.host == request.host
        same(back.state.adapter, request.state.adapter)


def test_none_and_empty_stay_apart() -> None:
    back = unpack_request(pack_request(REQUEST))
    forgets = [task.forget for cohort in back.cohorts for task in cohort]
    assert forgets == [None, (), ("s3",)]


@pytest.mark.parametrize(
    "request_",
    [
        DescribeRequest(host="1", config={"seed": 1}),
        StartRequest(host="1", config={"seed": 1}),
        EvaluateRequest(config={}, state=GlobalState(adapter={}), cohorts=((ClientTask(client_id="a"),),)),
        TrainRequest(config={}, state=GlobalState(adapter={}), info=REQUEST.info, parameters={"x": 1}),
    ],
    ids=lambda request: request.kind,
)
def test_every_kind_of_request_comes_back_as_it_was_and_with_no_other_field(request_: HostRequest) -> None:
    packed = pack_request(request_)
    assert unpack_request(packed) == request_
    message = json.loads(str(packed.config_records["message"]["json"]))
    for other in ({**message, "kind": "train.unlearn"}, {**message, "weight": 1}, {k: message[k] for k in ("kind",)}):
        packed.config_records["message"]["json"] = json.dumps(other)
        with pytest.raises(IntegrityError, match="not of the form"):
            unpack_request(packed)


def test_reply_round_trip_is_exact() -> None:
    back = unpack_reply(pack_reply(REPLY))
    for mine, other in zip(back.updates, REPLY.updates, strict=True):
        same(mine.delta, other.delta)
        bare: dict[str, Any] = {"delta": {}}
        assert dataclasses.replace(mine, **bare) == dataclasses.replace(other, **bare)
    assert dataclasses.replace(back, updates=()) == dataclasses.replace(REPLY, updates=())
    assert isinstance(back.metrics["a"]["probability"], tuple)
    assert unpack_reply(pack_reply(HostReply())) == HostReply()


def test_a_loss_that_is_not_a_number_travels() -> None:
    back = unpack_reply(pack_reply(HostReply(updates=(dataclasses.replace(UPDATE, metrics={"loss": math.nan}),))))
    assert math.isnan(back.updates[0].metrics["loss"])


def test_eleven_updates_are_not_mixed_up() -> None:
    updates = tuple(
        dataclasses.replace(UPDATE, client_id=f"c{k}", delta={"x": torch.full((2,), float(k))}) for k in range(12)
    )
    back = unpack_reply(pack_reply(HostReply(updates=updates))).updates
    assert [float(u.delta["x"][0]) for u in back] == [float(k) for k in range(12)]
    assert all(list(u.delta) == ["x"] for u in back)


def test_an_update_with_other_parts_than_an_update_has_is_not_read() -> None:
    """Neither a further field nor a further tensor passes; the other client's update does."""
    more = pack_reply(REPLY)
    more.array_records["arrays"]["0|extra|control|x"] = Array(torch.ones(2).numpy())
    message = json.loads(str(pack_reply(REPLY).config_records["message"]["json"]))
    message["updates"][0]["weight"] = 5
    for packed in (more, changed(pack_reply, REPLY, updates=message["updates"])):
        back = unpack_reply(packed)
        assert [update.client_id for update in back.updates] == ["b"]
        assert back.failures["a"] == "its update is not of the form that both sides agree on (ValueError)"


def test_unpacked_tensors_own_their_memory() -> None:
    back = unpack_reply(pack_reply(REPLY))
    back.updates[0].delta["a.lora_A.weight"].zero_()
    assert UPDATE.delta["a.lora_A.weight"].any()


def records(message: str, arrays: dict[str, Array] | None = None) -> RecordDict:
    return RecordDict({"message": ConfigRecord({"json": message}), "arrays": ArrayRecord(arrays or {})})


def changed(pack: Any, value: Any, **changes: Any) -> RecordDict:
    packed = pack(value)
    message = json.loads(str(packed.config_records["message"]["json"]))
    packed.config_records["message"]["json"] = json.dumps({**message, **changes})
    return packed


@pytest.mark.parametrize(
    "malformed",
    [RecordDict(), records("{"), records("[]"), records("null"), records("{}"), records("[" * 100_000)],
    ids=["empty", "cut", "list", "null", "no-keys", "deep"],
)
@pytest.mark.parametrize("unpack", [unpack_request, unpack_reply])
def test_malformed_messages_are_integrity_errors(malformed: RecordDict, unpack: Any) -> None:
    with pytest.raises(IntegrityError, match="not of the form") as caught:
        unpack(malformed)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"cohorts": [[{"client_id": "a"}]]},
        {"cohorts": 3},
        {"info": {"branch": "main"}},
        {"info": 3},
        {"public": [{"id": "p"}]},
        {"public": [{**dataclasses.asdict(REQUEST.public[0]), "surplus": 1}]},
    ],
)
def test_malformed_requests(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="a request is not of the form"):
        unpack_request(changed(pack_request, REQUEST, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"updates": [{"client_id": "../a"}]},
        {"updates": [3]},
        {"updates": 3},
        {"metrics": {"a": {"x": 1.0}}},
        {"metrics": {"a": {"x": ["one", "two"]}}},
        {"metrics": []},
        {"failures": ["a"]},
        {"clients": {"a": {"samples": "many"}}},
        {"clients": ["a"]},
    ],
)
def test_malformed_replies(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="a reply is not of the form"):
        unpack_reply(changed(pack_reply, REPLY, **changes))


def only_a_failed(packed: RecordDict) -> None:
    """The update of client a cannot be read; that of b is as it was, and the reason repeats nothing that was sent."""
    back = unpack_reply(packed)
    assert [update.client_id for update in back.updates] == ["b"]
    same(back.updates[0].delta, REPLY.updates[1].delta)
    assert re.fullmatch(r"its update is not of the form that both sides agree on \(\w+\)", back.failures["a"])


@pytest.mark.parametrize("metrics", [["loss"], {"loss": "low"}, {"loss": None}])
def test_metrics_that_are_no_numbers_cost_their_client_the_round(metrics: Any) -> None:
    values = json.loads(str(pack_reply(REPLY).config_records["message"]["json"]))["updates"]
    values[0]["metrics"] = metrics
    only_a_failed(changed(pack_reply, REPLY, updates=values))


def test_an_update_without_its_fields_costs_its_client_the_round() -> None:
    values = json.loads(str(pack_reply(REPLY).config_records["message"]["json"]))["updates"]
    only_a_failed(changed(pack_reply, REPLY, updates=[{"client_id": "a"}, values[1]]))


class Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was opened",))


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.ones(1, dtype=np.float32))
    return buffer.getvalue()


def huge() -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50,)})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", pickle.dumps(Trap()), b"PK\x03\x04", npz(), huge()],
    ids=["empty", "nonsense", "pickle", "cut-zip", "zip", "huge"],
)
def test_arrays_that_are_not_numpys_own_format_are_refused(data: bytes) -> None:
    array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=data)
    packed = pack_reply(REPLY)
    packed.array_records["arrays"]["0|delta|a.lora_A.weight"] = array
    only_a_failed(packed)


def test_object_arrays_are_refused() -> None:
    array = Array(np.ones(2, dtype=np.float32))
    packed = pack_reply(REPLY)
    packed.array_records["arrays"]["0|delta|a.lora_A.weight"] = Array(
        dtype="float32", shape=array.shape, stype="other", data=array.data
    )
    only_a_failed(packed)


@pytest.mark.parametrize(("dtype", "shape"), [("float32", (2,)), ("float32", (1, 1)), ("float64", (1000, 1000))])
def test_an_array_that_is_declared_as_something_else_is_refused(dtype: str, shape: tuple[int, ...]) -> None:
    array = Array(np.ones((1000, 1000), dtype=np.float32))
    packed = pack_reply(REPLY)
    packed.array_records["arrays"]["0|delta|a.lora_A.weight"] = Array(
        dtype=dtype, shape=shape, stype=array.stype, data=array.data
    )
    only_a_failed(packed)


@pytest.mark.parametrize("kind", [DescribeRequest, StartRequest, EvaluateRequest, TrainRequest, VisitRequest])
def test_the_client_app_answers_every_kind_of_request(kind: type[HostRequest]) -> None:
    from clients.app import app

    category, _, action = kind.kind.partition(".")
    assert f"{category}.{action or 'default'}" in app._registered_funcs
