"""Hundreds of malformed and poisoned updates through the real wire: none reaches a model, and no round is lost."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import resource
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from oblivion.config import RunConfig, load_config
from oblivion.errors import IntegrityError
from oblivion.federation.rounds import Federation
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.rounds import Branch
from oblivion.provenance import code_fingerprint
from oblivion.run.events import Observer
from oblivion.seeding import torch_generator
from oblivion.types import ClientTask, ClientUpdate, HostReply, HostRequest, RoundInfo, TrainRequest
from oblivion.visit_steps import steps_per_visit
from oblivion.wire import check_reply, pack_reply, unpack_reply

CLIENTS = {f"client-{k}": 6 + k for k in range(5)}
BAD = "client-2"
INITIAL = {
    "x.lora_A.weight": torch.zeros(2, 3),
    "x.lora_B.weight": torch.zeros(3, 2),
    "y.lora_A.weight": torch.zeros(2, 1),
    "y.lora_B.weight": torch.zeros(1, 2),
}
NAMES = sorted(INITIAL)
Change = Callable[[ClientUpdate, np.random.Generator], Any]
"""An update made bad: a `ClientUpdate`, or a change of the packed records."""


def visit(task: ClientTask, info: RoundInfo) -> ClientUpdate:
    """A stand-in for training: honest updates that depend on round and client alone."""
    generator = torch_generator(0, "honest", info.round, task.client_id)
    delta = {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in INITIAL.items()}
    return ClientUpdate(
        client_id=task.client_id,
        round=info.round,
        delta=delta,
        num_examples=CLIENTS[task.client_id],
        steps=steps_per_visit(CLIENTS[task.client_id], 8, 4),
        metrics={"loss": 1.0, "tokens": 10.0},
        fingerprint=code_fingerprint(),
    )


def poison(name: str, value: float) -> Change:
    def change(update: ClientUpdate, generator: np.random.Generator) -> ClientUpdate:
        tensor = update.delta[name].clone()
        tensor.view(-1)[int(generator.integers(tensor.numel()))] = value
        return dataclasses.replace(update, delta={**update.delta, name: tensor})

    return change


def scaled(factor: float) -> Change:
    return lambda update, _: dataclasses.replace(update, delta={n: factor * t for n, t in update.delta.items()})


def tensor(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda update, _: dataclasses.replace(update, delta={**update.delta, name: make(update.delta[name])})


def names(make: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    return lambda update, _: dataclasses.replace(update, delta=make(dict(update.delta)))


def renamed(name: str, other: str) -> Change:
    return names(lambda delta: {other if n == name else n: t for n, t in delta.items()})


def field(**values: Any) -> Change:
    return lambda update, _: dataclasses.replace(update, **values)


def array(name: str, make: Callable[[Array], Array]) -> Change:
    """A change of one packed array."""

    def change(update: ClientUpdate, _: np.random.Generator) -> Callable[[RecordDict, int], None]:
        def apply(packed: RecordDict, index: int) -> None:
            arrays = packed.array_records["arrays"]
            key = f"{index}|delta|{name}"
            arrays[key] = make(arrays[key])

        return apply

    return change


def declared(**values: Any) -> Callable[[Array], Array]:
    def make(old: Array) -> Array:
        said = {"dtype": old.dtype, "shape": tuple(old.shape), "stype": old.stype, "data": old.data, **values}
        return Array(**said)

    return make


def header(shape: tuple[int, ...], descr: str = "<f4", pad: int = 0) -> bytes:
    buffer = io.BytesIO()
    content = {"descr": descr, "fortran_order": False, "shape": shape}
    if pad:
        text = (str(content) + " " * pad + "\n").encode()
        return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text
    np.lib.format.write_array_header_1_0(buffer, content)
    return buffer.getvalue()


DTYPES = (torch.float64, torch.float16, torch.int32, torch.int64, torch.uint8, torch.bool)
SHAPES: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda t: t.reshape(-1),
    lambda t: t[None],
    lambda t: t.t() if t.shape[0] != t.shape[1] else t[:1],
    lambda t: torch.ones(1),
    lambda t: torch.ones(1, 1),
    lambda t: torch.ones(()),
    lambda t: torch.zeros(0),
    lambda t: torch.cat([t, t]),
)
COUNTS: tuple[Any, ...] = (-80, 0, 10**12, 1e12, 2.5, True, "7", None, -1, 2**63, CLIENTS[BAD] + 1, [3])
DATA = (
    b"",
    b"nonsense",
    b"PK\x03\x04",
    header((1 << 50,)),
    header((3,), "|O"),
    header((2, 3), pad=1 << 20),
    zlib.compress(bytes(1 << 20)),
)


def table() -> list[tuple[str, Change]]:
    bad: list[tuple[str, Change]] = []
    for name in NAMES:
        for value in (math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38):
            bad.append((f"{value} in {name}", poison(name, value)))
        bad += [(f"{name} as {dtype}", tensor(name, lambda t, d=dtype: t.to(d))) for dtype in DTYPES]
        bad += [(f"{name} of shape {k}", tensor(name, shape)) for k, shape in enumerate(SHAPES)]
        bad.append((f"no {name}", names(lambda d, n=name: {k: t for k, t in d.items() if k != n})))
        for other in ("x", f"{name}2", f"../{name}", "x.lora_A.weight\x00", "é" * 40):
            bad.append(
                (
                    f"{name} is called {other!r}",
                    names(lambda d, n=name, o=other: {o if k == n else k: t for k, t in d.items()}),
                )
            )
        bad.append((f"one more than {name}", names(lambda d, n=name: {**d, f"{n}.more": d[n]})))
        bad += [(f"bytes {k} for {name}", array(name, declared(data=data))) for k, data in enumerate(DATA)]
        for shape in ((1,), (1000, 1000), (-1,), (2, 3, 4)):
            bad.append((f"{name} declared {shape}", array(name, declared(shape=shape))))
        bad += [(f"{name} declared {kind}", array(name, declared(dtype=kind))) for kind in ("float64", "object", "<U9")]
    bad += [(f"times {factor:g}", scaled(factor)) for factor in (1e4, -1e4, 1e9, 1e30, math.nan, math.inf)]
    bad += [(f"{count!r} examples", field(num_examples=count)) for count in COUNTS]
    bad += [(f"{steps!r} steps", field(steps=steps)) for steps in (-1, 0, 1, 7, 9, 10**9, 8.0, "8", None, True)]
    bad += [(f"round {number!r}", field(round=number)) for number in (-1, 10**6, 1.5, "1", None)]
    bad += [
        (f"client {other!r}", field(client_id=other))
        for other in ("client-9", "../x", "", None, 3, "client-1", "A" * 99)
    ]
    bad += [(f"code {print!r}", field(fingerprint=print)) for print in ("", "other", None, 7)]
    bad.append(("no tensors", field(delta={})))
    return bad


TABLE = table()
SEEDS = 3


class BadHosts:
    """One host that trains all clients honestly, but for one whose reply is made bad on the way."""

    def __init__(self, change: Change | None, seed: int, absent: bool = False) -> None:
        self.change, self.absent = change, absent
        self.generator = np.random.default_rng(seed)

    def names(self) -> tuple[str, ...]:
        return ("host-0",)

    def ask(self, requests: Sequence[HostRequest]) -> Iterator[HostReply]:
        for request in requests:
            if request.kind == "query.describe":
                yield HostReply(host=request.host, clients={c: {"samples": n} for c, n in CLIENTS.items()})
                continue
            assert isinstance(request, TrainRequest)
            tasks = [task for cohort in request.cohorts for task in cohort]
            updates = [visit(task, request.info) for task in tasks]
            index = next((i for i, u in enumerate(updates) if u.client_id == BAD), -1)
            if self.absent and index >= 0:
                del updates[index]
            packed_change = None
            if self.change is not None and index >= 0 and not self.absent:
                made = self.change(updates[index], self.generator)
                if isinstance(made, ClientUpdate):
                    updates[index] = made
                else:
                    packed_change = made
            packed = pack_reply(HostReply(updates=tuple(updates)))
            if packed_change is not None:
                packed_change(packed, index)
            yield received(packed, request)


def received(packed: RecordDict, request: HostRequest) -> HostReply:
    """What the server makes of a reply, over a grid."""
    try:
        check_reply(packed, request)
        return dataclasses.replace(unpack_reply(packed), host=request.host)
    except IntegrityError as error:
        clients = [task.client_id for cohort in request.cohorts for task in cohort]
        return HostReply(host=request.host, failures=dict.fromkeys(clients, str(error)))


def config() -> RunConfig:
    # one client a cohort, and so one message each: what makes a whole reply unreadable costs its client alone
    # and a rate with which a visit can go as far as the stand-ins for updates, and sixteen times as far
    several = {"federation.rounds": 4, "train.cohort": 1, "federation.quarantine-after": 0, "train.learning-rate": 0.4}
    return load_config(None, several)


class OneMessageEach(BadHosts):
    """As many hosts as clients, each with its own client."""

    def names(self) -> tuple[str, ...]:
        return tuple(f"host-{client}" for client in CLIENTS)

    def ask(self, requests: Sequence[HostRequest]) -> Iterator[HostReply]:
        for request in requests:
            if request.kind == "query.describe":
                client = request.host.removeprefix("host-")
                yield HostReply(host=request.host, clients={client: {"samples": CLIENTS[client]}})
            else:
                yield from super().ask([request])


def head_after(hosts: Any, rounds: int = 1) -> tuple[dict[str, torch.Tensor], Federation]:
    federation = Federation(config(), hosts, MemoryLedger(), INITIAL, Observer())
    federation.describe()
    federation.begin(Branch(name="main", seed=0, rounds=4), INITIAL)
    for _ in range(rounds):
        federation.run_round("main")
    return dict(federation.head("main").state.adapter), federation


@pytest.fixture(scope="module")
def others() -> dict[str, torch.Tensor]:
    """The round's aggregate without the bad client."""
    return head_after(OneMessageEach(None, 0, absent=True))[0]


def test_there_are_enough() -> None:
    assert len(TABLE) * SEEDS >= 500 and len({name for name, _ in TABLE}) == len(TABLE)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_bad_update_reaches_the_model_and_no_round_is_lost(seed: int, others: dict[str, torch.Tensor]) -> None:
    wrong = []
    for name, change in TABLE:
        found, federation = head_after(OneMessageEach(change, seed))
        (record,) = federation.ledger.records("main")
        lost = {**record.refused, **record.failed}
        if set(record.accepted) != set(CLIENTS) - {BAD}:
            wrong.append(f"{name}: {record.accepted}")
        if not all(torch.equal(found[n], t) for n, t in others.items()):
            wrong.append(f"{name}: another aggregate")
        if BAD not in lost:
            wrong.append(f"{name}: no reason")
    assert wrong == []


def test_a_norm_that_history_does_not_know_is_refused(others: dict[str, torch.Tensor]) -> None:
    """Twelve times the usual size is far below the absolute bound of 1000, and above that of the rounds before."""

    def later(update: ClientUpdate, _: np.random.Generator) -> ClientUpdate:
        factor = 12.0 if update.round == 3 else 1.0
        return dataclasses.replace(update, delta={n: factor * t for n, t in update.delta.items()})

    _, federation = head_after(OneMessageEach(later, 0), rounds=3)
    first, second, third = federation.ledger.records("main")
    assert BAD in first.accepted and BAD in second.accepted
    assert "its L2 norm is above the bound" in third.refused[BAD] and set(third.accepted) == set(CLIENTS) - {BAD}


# Bombs: refused before anything is unpacked


def bombs() -> dict[str, RecordDict]:
    good = Array(np.zeros((2, 3), dtype=np.float32))
    empty = Array(dtype="float32", shape=(0,), stype="numpy.ndarray", data=header((0,)))
    big = Array(dtype="float32", shape=(1 << 22,), stype="numpy.ndarray", data=bytes(1 << 24))

    def packed(arrays: dict[str, Array], text: str = "{}", **more: Any) -> RecordDict:
        return RecordDict({"message": ConfigRecord({"json": text, **more}), "arrays": ArrayRecord(arrays)})

    made = {
        "a hundred thousand arrays": packed({f"0|delta|{k}": empty for k in range(100_000)}),
        "one large array": packed({"0|delta|x": big}),
        "a long text": packed({}, "[" * (5 << 20)),
        "long names": packed({"0|delta|" + "x" * (1 << 20): good}),
        "more in the message": packed({}, "{}", more="x" * (1 << 20)),
        "another record": RecordDict({**packed({}), "metrics": ConfigRecord({"x": 1})}),
        "no record": RecordDict({}),
    }
    for k, data in enumerate((header((1 << 40,)), header((2, 3), pad=1 << 20), header((1 << 60, 1 << 60)))):
        bomb = Array(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=data)
        made[f"header {k}"] = packed({f"0|delta|{NAMES[0]}": bomb}, json.dumps({"updates": [{"client_id": "a"}]}))
    return made


def test_bombs_are_refused_without_being_unpacked() -> None:
    request = TrainRequest(
        config={},
        info=RoundInfo(branch="main", round=1, rounds=1, population=("a",), seed=0),
        cohorts=((ClientTask(client_id="a"),),),
        state=dataclasses.replace(_state(), adapter=INITIAL),
    )
    made = bombs()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, bomb in made.items():
        reply = received(bomb, request)
        assert not reply.updates and list(reply.failures) == ["a"], name
        assert len(reply.failures["a"]) < 200, "nothing of what was sent is repeated"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 50


def _state() -> Any:
    from oblivion.types import GlobalState

    return GlobalState(adapter={})
