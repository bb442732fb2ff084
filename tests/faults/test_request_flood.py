"""Ten thousand requests that nobody may make, against a real ledger: none is taken in, and none leaves a trace."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from small_ledger import CLIENTS, SETTINGS, Clock, World, ask, build

from oblivion.errors import InputError, IntegrityError
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.register import Register
from oblivion.ledger.requests import canonical, from_json, issue, to_json
from oblivion.types import ForgetRequest

FEW, FLOOD = 1_600, 10_000
GONE = "eve"
STAYING = CLIENTS[:-1]
HOSTILE = [
    "", " ", "..", "../ana", "../../keys/log", "ana/", "/ana", "a\x00b", "ana\x00", "ana\n", "Ana", "\u202eana",
    "an\u200ba", "аna", "x" * 4096, "a" * 65, "\ud800", "\udcff", "'; DROP TABLE records; --", "%", "_", "*", "-ana",
    "ana ", "\x1b[2J",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("flood") / "run")


@dataclasses.dataclass
class Desk:
    """An open ledger with its clock, and what an enemy has: old requests, the public ids, keys of its own."""

    register: Register
    clock: Clock
    known: list[ForgetRequest]
    gone: list[ForgetRequest]
    gone_key: Ed25519PrivateKey

    def __post_init__(self) -> None:
        self.federation = self.register.federation
        self.keys = {client: self.register.simulated_key(client) for client in STAYING}

    def key(self, client: str) -> Ed25519PrivateKey:
        return self.keys[client]

    def genuine(self, rng: random.Random, client: str = "", **changes: Any) -> ForgetRequest:
        """A request that its client would make now, or one with other fields that it would sign."""
        client = client or rng.choice(STAYING)
        samples = None if rng.random() < 0.3 else tuple(f"rows/{n}" for n in rng.sample(range(50), rng.randint(1, 3)))
        made = issue(client, samples, self.key(client), self.federation, self.register.book.now())
        return signed(dataclasses.replace(made, nonce=rng.randbytes(16).hex(), **changes), self.key(client))

    def size(self) -> int:
        return len(self.register.book.entries())


def named(request: ForgetRequest) -> ForgetRequest:
    """With the id that belongs to its content."""
    return dataclasses.replace(request, id=f"req-{hashlib.sha256(canonical(request)).hexdigest()[:12]}")


def signed(request: ForgetRequest, key: Ed25519PrivateKey) -> ForgetRequest:
    request = named(request)
    return dataclasses.replace(request, signature=key.sign(canonical(request)).hex())


@pytest.fixture
def desk(world: World, tmp_path: Path) -> Iterator[Desk]:
    """After a removal: eve is gone, and whoever kept a copy of keys/ from before has her request key."""
    root = tmp_path / "run"
    shutil.copytree(world.root, root)
    clock = Clock()
    clock.time += timedelta(days=1)
    ledger, register = open_ledger(root, SETTINGS, now=clock)
    known = [ask(register, "ana").request, ask(register, "dov", ("rows/1",)).request]
    known += [asked.request for asked in register.all_asked()]
    yield Desk(register, clock, known, [request for request in known if request.client_id == GONE], world.gone_key)
    ledger.close()


def forged(rng: random.Random, desk: Desk) -> ForgetRequest:
    """Signed by somebody else, or not at all."""
    request, stranger = desk.genuine(rng), Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
    own = rng.choice([client for client in STAYING if client != request.client_id])
    order = 2**252 + 27742317777372353535851937790883648493
    raw = bytes.fromhex(request.signature)
    scalar = (int.from_bytes(raw[32:], "little") + order).to_bytes(32, "little")
    return rng.choice(
        [
            signed(request, stranger),
            signed(request, desk.key(own)),
            dataclasses.replace(request, signature=rng.randbytes(64).hex()),
            dataclasses.replace(request, signature=rng.choice(["", "0" * 128, "f" * 128, request.signature.upper()])),
            dataclasses.replace(request, signature=(raw[:32] + scalar).hex()),
            dataclasses.replace(request, signature=rng.choice(desk.known).signature),
        ]
    )


def altered(rng: random.Random, desk: Desk) -> ForgetRequest:
    """Genuine, and changed on its way, with or without the id that follows from the content."""
    request = desk.genuine(rng)
    samples = request.sample_ids
    changes: list[dict[str, Any]] = [
        {"client_id": rng.choice([client for client in STAYING if client != request.client_id])},
        {"sample_ids": None if samples else ("rows/1",)},
        {"sample_ids": (*(samples or ()), "rows/99")},
        {"sample_ids": ((samples or ("",))[0] + "\u200b",)},
        {"nonce": rng.randbytes(16).hex()},
        {"nonce": request.nonce[:-1] + ("0" if request.nonce[-1] != "0" else "1")},
        {"issued_at": "2026-03-01T00:00:00Z"},
        {"expires_at": "2026-12-31T00:00:00Z"},
        {"federation": rng.randbytes(16).hex()},
    ]
    other = dataclasses.replace(request, **rng.choice(changes))
    return named(other) if rng.random() < 0.5 else other


def malformed(rng: random.Random, desk: Desk) -> ForgetRequest:
    """Signed by its client where it can be, and of another form than any request has."""
    request = desk.genuine(rng)
    field = rng.choice([field.name for field in dataclasses.fields(ForgetRequest)])
    values: list[Any] = [None, 7, True, b"x", ["x"], {}, 1.5, float("nan"), *HOSTILE]
    if field == "sample_ids":
        values = [(), (None,), ("",), ("a", "a"), ("\ud800",), ("x" * 1025,), "rows/1", 7, [["a"]], {"a": 1}, (b"a",)]
    value = rng.choice([value for value in values if value != getattr(request, field)])
    other = dataclasses.replace(request, **{field: value})
    if rng.random() < 0.5:
        try:
            other = signed(other, desk.key(request.client_id))
        except (TypeError, ValueError, AttributeError):
            return other
        other = dataclasses.replace(other, **({field: value} if field in ("id", "signature") else {}))
    return other


def out_of_time(rng: random.Random, desk: Desk) -> ForgetRequest:
    """Signed by its client: expired, of tomorrow, valid for ever or never."""
    now, minutes = desk.register.book.now(), rng.randint(1, 10**6)

    def stamp(shift: timedelta) -> str:
        return (now + shift).strftime("%Y-%m-%dT%H:%M:%SZ")

    spans = [
        (timedelta(minutes=-minutes - 60), timedelta(minutes=-minutes)),
        (timedelta(days=-30), timedelta(0)),
        (timedelta(minutes=6 + minutes), timedelta(minutes=7 + minutes)),
        (timedelta(days=-1), timedelta(days=366)),
        (timedelta(0), timedelta(minutes=-minutes)),
        (timedelta(0), timedelta(0)),
    ]
    issued, expires = rng.choice(spans)
    return desk.genuine(rng, issued_at=stamp(issued), expires_at=stamp(expires))


def of_another_federation(rng: random.Random, desk: Desk) -> ForgetRequest:
    own = desk.federation
    return desk.genuine(
        rng, federation=rng.choice([rng.randbytes(16).hex(), own.upper() + "0", own[:-1], "", "x" * 129])
    )


def of_no_client(rng: random.Random, desk: Desk) -> ForgetRequest:
    """Of somebody who never took part, signed with a key that is its own."""
    client = rng.choice(["zoe", "ana-2", "an", f"client-{rng.randrange(1000)}", *HOSTILE])
    key = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
    request = dataclasses.replace(desk.genuine(rng), client_id=client)
    return signed(request, key)


def of_the_forgotten(rng: random.Random, desk: Desk) -> ForgetRequest:
    """Of a client that was forgotten, with the key that it had, also by changing the request that was answered."""
    request = dataclasses.replace(desk.genuine(rng), client_id=GONE)
    again = dataclasses.replace(desk.gone[0], sample_ids=("rows/1",))
    return rng.choice([request, signed(request, desk.gone_key), again, signed(again, desk.gone_key)])


def with_a_used_nonce(rng: random.Random, desk: Desk) -> ForgetRequest:
    """Signed by its client, with the nonce of an earlier request and other content."""
    old = rng.choice([request for request in desk.known if request.client_id != GONE])
    request = desk.genuine(rng, old.client_id)
    return signed(dataclasses.replace(request, nonce=old.nonce, sample_ids=("rows/77",)), desk.key(old.client_id))


KINDS: list[Callable[[random.Random, Desk], ForgetRequest]] = [
    forged, altered, malformed, out_of_time, of_another_federation, of_no_client, of_the_forgotten, with_a_used_nonce,
]  # fmt: skip


def flood(desk: Desk, numbers: range) -> Counter[str]:
    """Send requests, every number another and the same one at every run; return the first words of the refusals."""
    size, before = desk.size(), desk.register.all_asked()
    why: Counter[str] = Counter()
    for number in numbers:
        request = KINDS[number % len(KINDS)](random.Random(f"flood {number}"), desk)
        with pytest.raises(IntegrityError, match=r"^the forget request is refused: ") as refused:
            desk.register.receive(request)
        message = str(refused.value)
        assert message.isascii() and message.isprintable() and len(message) < 400, (number, message)
        why[message.split()[5]] += 1
    assert desk.size() == size and desk.register.all_asked() == before
    return why


def test_none_is_taken_in(desk: Desk) -> None:
    why = flood(desk, range(FEW))
    assert {"its", "id", "signature", "federation", "client", "expired", "issued", "nonce", "samples"} <= set(why), why


@pytest.mark.slow
def test_none_of_ten_thousand_is_taken_in(desk: Desk) -> None:
    assert sum(flood(desk, range(FEW, FLOOD)).values()) == FLOOD - FEW


def test_none_is_taken_in_by_way_of_json(desk: Desk) -> None:
    """The same as they come by file or network, with keys added, dropped and changed."""
    size = desk.size()
    for number in range(FEW // 2):
        rng = random.Random(f"json {number}")
        value: Any = to_json(rng.choice(KINDS[:2] + KINDS[3:])(rng, desk))
        if rng.random() < 0.5:
            value[rng.choice(sorted(value))] = rng.choice([None, 7, True, [], {}, "x" * 2000, ["x", "x"], *HOSTILE])
        elif rng.random() < 0.3:
            value.pop(rng.choice(sorted(value)))
        elif rng.random() < 0.2:
            value = rng.choice([None, [], 7, "x", {**value, "more": 1}, {**value, "version": True}])
        with pytest.raises((IntegrityError, InputError)) as refused:
            desk.register.receive(from_json(json.loads(json.dumps(value))))
        assert str(refused.value).isascii()
    assert desk.size() == size


def test_one_request_a_hundred_times_is_one_request(desk: Desk) -> None:
    request = desk.genuine(random.Random("once"))
    first = desk.register.receive(request)
    size = desk.size()
    assert first.state == "received" and size > 0
    for _ in range(100):
        desk.clock.time += timedelta(hours=1)
        assert desk.register.receive(from_json(json.loads(json.dumps(to_json(request))))) == first
    assert desk.size() == size
    assert [asked.request for asked in desk.register.all_asked()].count(request) == 1


def test_what_was_answered_is_not_asked_again(desk: Desk) -> None:
    """The request of who is gone is still known by its nonce, and stays as it was answered."""
    (request,) = desk.gone
    size = desk.size()
    for _ in range(10):
        assert desk.register.receive(request).state == "committed"
    desk.register.move(desk.known[0].id, "refused", "retention required by law")
    assert desk.register.receive(desk.known[0]).ground == "retention required by law"
    assert desk.size() == size + 1
    assert desk.register.open_request(GONE, None) is None


def test_a_used_nonce_belongs_to_its_client_alone(desk: Desk) -> None:
    """Nobody can keep another from asking by using its nonce first."""
    rng = random.Random("nonce")
    request = desk.genuine(rng, "ana")
    stolen = signed(dataclasses.replace(request, client_id="ben"), desk.key("ben"))
    assert desk.register.receive(stolen).request.client_id == "ben"
    assert desk.register.receive(request).request == request


def test_a_clock_that_goes_back_revives_nothing(desk: Desk, tmp_path: Path) -> None:
    """Times are never before the log's last entry, also in the next process."""
    now = desk.register.book.now()
    request = issue("ana", ("rows/5",), desk.key("ana"), desk.federation, now, valid_days=2)
    in_time = issue("ana", ("rows/6",), desk.key("ana"), desk.federation, now, valid_days=30)
    desk.clock.time += timedelta(days=3)
    desk.register.receive(desk.genuine(random.Random("three days later"), "ben"))
    root = desk.register.book.path.parent.parent
    for back in (timedelta(days=3), timedelta(days=400)):
        desk.clock.time -= back
        with pytest.raises(IntegrityError, match="expired"):
            desk.register.receive(request)
        desk.register.book.close()
        ledger, register = open_ledger(root, SETTINGS, now=desk.clock)
        with pytest.raises(IntegrityError, match="expired"):
            register.receive(request)
        desk.register = register
    times = [json.loads(line)["time"] for line in desk.register.book.entries()]
    assert times == sorted(times)
    asked = desk.register.receive(in_time)
    assert asked.received_at >= max(times)
    ledger.close()


def test_a_client_that_asks_too_early_may_ask_again(desk: Desk) -> None:
    """A clock that is behind the client's by more than five minutes refuses; when it is right the same one counts."""
    request = issue("ana", ("rows/5",), desk.key("ana"), desk.federation, desk.clock() + timedelta(minutes=9))
    with pytest.raises(IntegrityError, match="issued is in the future"):
        desk.register.receive(request)
    desk.clock.time += timedelta(minutes=5)
    assert desk.register.receive(request).state == "received"
