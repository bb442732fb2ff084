"""Turn messages into Flower records and back. No other module of the library knows Flower.

A message is one ConfigRecord with JSON and one ArrayRecord with fp32 arrays. No pickle: Flower stores arrays in
NumPy's own format with pickling switched off.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from tokenize import TokenError
from typing import Any, TypeVar
from zipfile import BadZipFile

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from oblivion.errors import IntegrityError
from oblivion.named_statistics import Statistic, check_schema
from oblivion.types import (
    CLIENT_ID,
    Adapter,
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
from oblivion.untrusted import decode

_MESSAGE = "message"
_ARRAYS = "arrays"
_SEPARATOR = "|"
_NAN = "nan"
_HEADER = 256
"""The largest header of NumPy's format, in bytes; that of an adapter's tensor takes 128."""
_LONGEST_NAME = 512
_UPDATE = {"client_id", "round", "num_examples", "steps", "metrics", "fingerprint"}
"""The fields of an update in a message; its tensors are arrays beside it."""
_LONGEST_TEXT = 4 << 20
MALFORMED = (
    LookupError, TypeError, ValueError, AttributeError, EOFError, BadZipFile, RecursionError, MemoryError, OverflowError
)  # fmt: skip
"""Exceptions that malformed input can raise. Their text may quote the input, so it is never shown."""
_REQUESTS: Mapping[str, type[HostRequest]] = {
    kind.kind: kind for kind in (DescribeRequest, StartRequest, EvaluateRequest, TrainRequest, VisitRequest)
}
Arrays = dict[str, Array]
T = TypeVar("T")


def _pack_adapter(prefix: str, adapter: Adapter, arrays: Arrays) -> None:
    for name, tensor in adapter.items():
        arrays[f"{prefix}{_SEPARATOR}{name}"] = Array(tensor.numpy())


def _unpack_adapter(prefix: str, arrays: Mapping[str, Any]) -> Adapter:
    import torch

    start = prefix + _SEPARATOR
    names = sorted(name for name in arrays if name.startswith(start))
    return {name.removeprefix(start): torch.from_numpy(arrays[name].copy()) for name in names}


def _records(message: Mapping[str, Any], arrays: Arrays) -> RecordDict:
    return RecordDict({_MESSAGE: ConfigRecord({"json": json.dumps(message)}), _ARRAYS: ArrayRecord(arrays)})


def _open(records: RecordDict) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        text = records.config_records[_MESSAGE]["json"]
        if not isinstance(text, str):
            raise TypeError("its message is no text")
        message = decode(text)
        if not isinstance(message, dict):
            raise TypeError("its message is no object")
        return message, dict(records.array_records[_ARRAYS])
    except MALFORMED as error:
        raise IntegrityError(
            f"a message is not of the form that both sides agree on ({type(error).__name__})"
        ) from None


def _pack_state(state: GlobalState) -> Arrays:
    arrays: Arrays = {}
    _pack_adapter("adapter", state.adapter, arrays)
    _pack_adapter("residual", state.residual, arrays)
    return arrays


def pack_requests(requests: Sequence[HostRequest]) -> list[RecordDict]:
    """Write requests as Flower records; a state that several of them have is written once."""
    packed: dict[int, Arrays] = {}
    records = []
    for request in requests:
        arrays: Arrays = {}
        if isinstance(request, EvaluateRequest | TrainRequest):
            if id(request.state) not in packed:
                packed[id(request.state)] = _pack_state(request.state)
            arrays = dict(packed[id(request.state)])
        records.append(_pack_request(request, arrays))
    return records


def _pack_request(request: HostRequest, arrays: Arrays) -> RecordDict:
    for task in (task for cohort in request.cohorts for task in cohort):
        _pack_adapter(f"correction{_SEPARATOR}{task.client_id}", task.correction, arrays)
    message: dict[str, Any] = {
        "kind": request.kind,
        "host": request.host,
        "config": dict(request.config),
        "cohorts": [[_task_values(task) for task in cohort] for cohort in request.cohorts],
    }
    if isinstance(request, TrainRequest):
        message["info"] = dataclasses.asdict(request.info)
        message["objective"], message["parameters"] = request.objective, dict(request.parameters)
    if isinstance(request, VisitRequest):
        message["local_epochs"], message["learning_rate"] = request.local_epochs, request.learning_rate
        message["public"] = [dataclasses.asdict(sample) for sample in request.public]
        message["statistics"] = {name: dataclasses.asdict(one) for name, one in request.statistics.items()}
    if isinstance(request, VisitRequest | EvaluateRequest):
        message["store"], message["line"] = request.store, request.line
    return _records(message, arrays)


def unpack_request(records: RecordDict) -> HostRequest:
    """Read a request back.

    Raises
    ------
    IntegrityError
        If the records are not what `pack_requests` writes.
    """
    message, packed = _open(records)
    try:
        kind = _REQUESTS[message.pop("kind")]
        if set(message) != {field.name for field in dataclasses.fields(kind)} - {"state"}:
            raise KeyError("it has other fields than a message of this kind")
        arrays = {name: _read_array(array) for name, array in packed.items()}
        message["cohorts"] = tuple(tuple(_task(task, arrays) for task in cohort) for cohort in message["cohorts"])
        if issubclass(kind, EvaluateRequest | TrainRequest):
            adapter, residual = _unpack_adapter("adapter", arrays), _unpack_adapter("residual", arrays)
            message["state"] = GlobalState(adapter=adapter, residual=residual)
        if issubclass(kind, TrainRequest):
            info = message["info"]
            message["info"] = RoundInfo(**{**info, "population": tuple(info["population"])})
        if issubclass(kind, VisitRequest):
            message["public"] = tuple(_sample(sample) for sample in message["public"])
            schema = {name: _statistic(values) for name, values in message["statistics"].items()}
            message["statistics"] = check_schema(schema)
        if issubclass(kind, VisitRequest | EvaluateRequest):
            _of(str, message["store"])
            message["line"] = tuple(
                (_of(str, branch), _of(int, first), _of(int, last)) for branch, first, last in message["line"]
            )
        return kind(**message)
    except MALFORMED as error:
        raise IntegrityError(
            f"a request is not of the form that both sides agree on ({type(error).__name__})"
        ) from None


def _task_values(task: ClientTask) -> dict[str, Any]:
    names = ("client_id", "excluded", "forget", "noise_key", "id_key")
    return {name: getattr(task, name) for name in names}


def _task(values: Mapping[str, Any], arrays: Mapping[str, Any]) -> ClientTask:
    forget = values["forget"]
    return ClientTask(
        client_id=values["client_id"],
        excluded=tuple(values["excluded"]),
        forget=None if forget is None else tuple(forget),
        correction=_unpack_adapter(f"correction{_SEPARATOR}{values['client_id']}", arrays),
        noise_key=values["noise_key"],
        id_key=values["id_key"],
    )


def _sample(values: Mapping[str, Any]) -> Sample:
    return Sample(**{**values, "wrong_answers": tuple(values["wrong_answers"]), "path": tuple(values["path"])})


def _statistic(values: Mapping[str, Any]) -> Statistic:
    return Statistic(**{**values, "shape": tuple(values["shape"])})


def _number(value: float) -> float | str:
    """Write a number for JSON, in which one that is not finite travels as a text."""
    return value if math.isfinite(value) else _NAN


def _as_float(value: Any) -> float:
    if value == _NAN:
        return math.nan
    return float(_of(float, value) if type(value) is not int else value)


def _of(kind: type[T], value: Any) -> T:
    """Return the value if it has exactly this type: neither True nor "5" is a number."""
    if type(value) is not kind:
        raise TypeError(f"it is no {kind.__name__}")
    return value


def pack_reply(reply: HostReply) -> RecordDict:
    """Write a reply as Flower records."""
    arrays: Arrays = {}
    updates = []
    for index, update in enumerate(reply.updates):
        _pack_adapter(f"{index}{_SEPARATOR}delta", update.delta, arrays)
        _pack_adapter(f"{index}{_SEPARATOR}statistic", update.statistics, arrays)
        updates.append(
            {
                "client_id": update.client_id,
                "round": update.round,
                "num_examples": update.num_examples,
                "steps": update.steps,
                "metrics": {name: _number(value) for name, value in update.metrics.items()},
                "fingerprint": update.fingerprint,
            }
        )
    message = {
        "host": reply.host,
        "updates": updates,
        "failures": dict(reply.failures),
        "metrics": {
            client: {name: [_number(part) for part in pair] for name, pair in values.items()}
            for client, values in reply.metrics.items()
        },
        "clients": reply.clients,
    }
    return _records(message, arrays)


def check_reply(records: RecordDict, request: HostRequest) -> None:
    """Refuse a reply that is larger than the request can lead to, before anything of it is parsed.

    Only lengths are looked at: how many records and arrays there are, their bytes, and the text of the message.

    Raises
    ------
    IntegrityError
        Saying which limit was passed, and nothing of what was sent.
    """
    clients = sum(len(cohort) for cohort in request.cohorts)
    expected = list(request.state.adapter.values()) if isinstance(request, TrainRequest) else []
    declared = list(request.statistics.values()) if isinstance(request, VisitRequest) else []
    sizes = [tensor.numel() * tensor.element_size() for tensor in expected] + [one.size for one in declared]
    most = clients * len(sizes)
    size = clients * sum(own + _HEADER for own in sizes)
    known = set(records) == {_MESSAGE, _ARRAYS} and _MESSAGE in records.config_records
    if not known or _ARRAYS not in records.array_records or set(records.config_records[_MESSAGE]) != {"json"}:
        raise IntegrityError("a reply does not hold the two records that it should")
    arrays = records.array_records[_ARRAYS]
    if len(arrays) > most:
        raise IntegrityError(f"a reply holds more than {most} arrays")
    if sum(len(array.data) for array in arrays.values()) > size:
        raise IntegrityError(f"a reply's arrays are larger than {size} bytes")
    if sum(len(name) for name in arrays) > most * _LONGEST_NAME:
        raise IntegrityError("a reply's arrays have longer names than tensors have")
    text = records.config_records[_MESSAGE]["json"]
    if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
        raise IntegrityError(f"a reply's message is no text of at most {_LONGEST_TEXT} characters")


def _read_array(array: Array) -> Any:
    """Return an array if its header describes its bytes; nothing is allocated beyond them."""
    from numpy.lib import format as npy

    data = array.data
    stream = io.BytesIO(data[:_HEADER])
    version = npy.read_magic(stream)
    if version != (1, 0):
        raise ValueError("its format is not version 1.0")
    try:
        shape, _, dtype = npy.read_array_header_1_0(stream, max_header_size=_HEADER)
    except (TokenError, SyntaxError):  # NumPy reads a header that is no literal again, as Python 2
        raise ValueError("its header cannot be read") from None
    length = math.prod(shape) * dtype.itemsize
    if not dtype.itemsize:  # values without bytes can be any number, and take as long to copy
        raise ValueError("its values have no size")
    if dtype.hasobject or stream.tell() + length != len(data):
        raise ValueError("its bytes are not what its header says")
    if list(array.shape) != list(shape) or array.dtype != str(dtype):
        raise ValueError("it is declared as something else than its bytes are")
    return array.numpy()


def unpack_reply(records: RecordDict) -> HostReply:
    """Read a reply back; whether its updates are sane is for the gate to say.

    A client whose update cannot be read is among the failures, and costs the others nothing.

    Raises
    ------
    IntegrityError
        If the records are not what `pack_reply` writes.
    """
    message, arrays = _open(records)
    try:
        updates, unread = _updates(message["updates"], arrays)
        metrics = {
            client: {name: (_as_float(total), _as_float(weight)) for name, (total, weight) in values.items()}
            for client, values in message["metrics"].items()
        }
        return HostReply(
            host=_of(str, message["host"]),
            updates=updates,
            failures={**{client: _of(str, reason) for client, reason in message["failures"].items()}, **unread},
            metrics=metrics,
            clients={
                client: {name: _of(int, value) for name, value in facts.items()}
                for client, facts in message["clients"].items()
            },
        )
    except MALFORMED as error:
        raise IntegrityError(f"a reply is not of the form that both sides agree on ({type(error).__name__})") from None


def _updates(values: Any, arrays: Mapping[str, Any]) -> tuple[tuple[ClientUpdate, ...], dict[str, str]]:
    by_index: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        by_index.setdefault(name.partition(_SEPARATOR)[0], {})[name] = array
    updates, unread = [], {}
    for index, value in enumerate(values):
        own = by_index.get(str(index), {})
        try:
            updates.append(_update(index, value, {name: _read_array(array) for name, array in own.items()}))
        except MALFORMED as error:
            client = value.get("client_id") if isinstance(value, dict) else None
            if not isinstance(client, str) or not CLIENT_ID.fullmatch(client):
                raise ValueError("an update names no client") from None
            unread[client] = f"its update is not of the form that both sides agree on ({type(error).__name__})"
    return tuple(updates), unread


def _update(index: int, values: Mapping[str, Any], arrays: Mapping[str, Any]) -> ClientUpdate:
    known = tuple(f"{index}{_SEPARATOR}{kind}{_SEPARATOR}" for kind in ("delta", "statistic"))
    if set(values) != _UPDATE or any(not name.startswith(known) for name in arrays):
        raise ValueError("it has other parts than an update has")
    return ClientUpdate(
        client_id=values["client_id"],
        round=values["round"],
        delta=_unpack_adapter(f"{index}{_SEPARATOR}delta", arrays),
        num_examples=values["num_examples"],
        steps=values["steps"],
        metrics={name: _as_float(value) for name, value in values["metrics"].items()},
        fingerprint=values["fingerprint"],
        statistics=_unpack_adapter(f"{index}{_SEPARATOR}statistic", arrays),
    )
