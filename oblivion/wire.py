"""Messages to and from Flower records. The only module of the library that knows Flower.

A message is one ConfigRecord with JSON and one ArrayRecord with fp32 arrays. No pickle: Flower stores arrays in
NumPy's own format with pickling switched off.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any
from zipfile import BadZipFile

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from oblivion.errors import IntegrityError
from oblivion.types import (
    Adapter,
    ClientTask,
    ClientUpdate,
    GlobalState,
    HostReply,
    HostRequest,
    RoundInfo,
    Sample,
)

_MESSAGE = "message"
_ARRAYS = "arrays"
_SEPARATOR = "|"
Arrays = dict[str, Array]


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


def _open(records: RecordDict) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        message = json.loads(str(records.config_records[_MESSAGE]["json"]))
        arrays = {name: array.numpy() for name, array in records.array_records[_ARRAYS].items()}
    except (KeyError, ValueError, TypeError, EOFError, BadZipFile, RecursionError, MemoryError) as error:
        raise IntegrityError(f"a message is not of the form that both sides agree on: {error}") from None
    return message, arrays


def pack_request(request: HostRequest) -> RecordDict:
    """Write a request as Flower records."""
    arrays: Arrays = {}
    if request.state is not None:
        _pack_adapter("adapter", request.state.adapter, arrays)
        _pack_adapter("residual", request.state.residual, arrays)
        _pack_adapter("broadcast", request.state.broadcast, arrays)
    for task in (task for cohort in request.cohorts for task in cohort):
        _pack_adapter(f"correction{_SEPARATOR}{task.client_id}", task.correction, arrays)
    message = {
        "kind": request.kind,
        "host": request.host,
        "config": dict(request.config),
        "info": dataclasses.asdict(request.info) if request.info else None,
        "state": request.state is not None,
        "cohorts": [[_task_values(task) for task in cohort] for cohort in request.cohorts],
        "objective": request.objective,
        "parameters": dict(request.parameters),
        "public": [dataclasses.asdict(sample) for sample in request.public],
    }
    return _records(message, arrays)


def unpack_request(records: RecordDict) -> HostRequest:
    """Read a request back.

    Raises
    ------
    IntegrityError
        If the records are not what `pack_request` writes.
    """
    message, arrays = _open(records)
    try:
        info = message["info"]
        state = GlobalState(
            adapter=_unpack_adapter("adapter", arrays),
            residual=_unpack_adapter("residual", arrays),
            broadcast=_unpack_adapter("broadcast", arrays),
        )
        return HostRequest(
            kind=message["kind"],
            host=message["host"],
            config=message["config"],
            info=RoundInfo(**{**info, "population": tuple(info["population"])}) if info else None,
            state=state if message["state"] else None,
            cohorts=tuple(tuple(_task(task, arrays) for task in cohort) for cohort in message["cohorts"]),
            objective=message["objective"],
            parameters=message["parameters"],
            public=tuple(_sample(sample) for sample in message["public"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"a request is not of the form that both sides agree on: {error}") from None


def _task_values(task: ClientTask) -> dict[str, Any]:
    return {"client_id": task.client_id, "excluded": task.excluded, "forget": task.forget}


def _task(values: Mapping[str, Any], arrays: Mapping[str, Any]) -> ClientTask:
    forget = values["forget"]
    return ClientTask(
        client_id=values["client_id"],
        excluded=tuple(values["excluded"]),
        forget=None if forget is None else tuple(forget),
        correction=_unpack_adapter(f"correction{_SEPARATOR}{values['client_id']}", arrays),
    )


def _sample(values: Mapping[str, Any]) -> Sample:
    return Sample(**{**values, "wrong_answers": tuple(values["wrong_answers"]), "path": tuple(values["path"])})


def pack_reply(reply: HostReply) -> RecordDict:
    """Write a reply as Flower records."""
    arrays: Arrays = {}
    updates = []
    for index, update in enumerate(reply.updates):
        _pack_adapter(f"{index}{_SEPARATOR}delta", update.delta, arrays)
        for name, extra in update.extras.items():
            _pack_adapter(f"{index}{_SEPARATOR}extra{_SEPARATOR}{name}", extra, arrays)
        updates.append(
            {
                "client_id": update.client_id,
                "round": update.round,
                "num_examples": update.num_examples,
                "steps": update.steps,
                "metrics": dict(update.metrics),
                "extras": sorted(update.extras),
                "fingerprint": update.fingerprint,
            }
        )
    message = {
        "host": reply.host,
        "updates": updates,
        "failures": dict(reply.failures),
        "metrics": reply.metrics,
        "clients": reply.clients,
    }
    return _records(message, arrays)


def unpack_reply(records: RecordDict) -> HostReply:
    """Read a reply back; whether its updates are sane is for the gate to say.

    Raises
    ------
    IntegrityError
        If the records are not what `pack_reply` writes.
    """
    message, arrays = _open(records)
    try:
        updates = tuple(_update(index, values, arrays) for index, values in enumerate(message["updates"]))
        metrics = {
            client: {name: (float(total), float(weight)) for name, (total, weight) in values.items()}
            for client, values in message["metrics"].items()
        }
        return HostReply(
            host=message["host"],
            updates=updates,
            failures={str(client): str(reason) for client, reason in message["failures"].items()},
            metrics=metrics,
            clients={
                client: {name: int(value) for name, value in facts.items()}
                for client, facts in message["clients"].items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"a reply is not of the form that both sides agree on: {error}") from None


def _update(index: int, values: Mapping[str, Any], arrays: Mapping[str, Any]) -> ClientUpdate:
    return ClientUpdate(
        client_id=values["client_id"],
        round=values["round"],
        delta=_unpack_adapter(f"{index}{_SEPARATOR}delta", arrays),
        num_examples=values["num_examples"],
        steps=values["steps"],
        metrics={name: float(value) for name, value in values["metrics"].items()},
        extras={
            name: _unpack_adapter(f"{index}{_SEPARATOR}extra{_SEPARATOR}{name}", arrays) for name in values["extras"]
        },
        fingerprint=values["fingerprint"],
    )
