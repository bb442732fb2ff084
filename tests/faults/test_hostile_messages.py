"""What a hostile host does to the messages around its replies: Flower builds them from bytes that the host sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import InflatableObject, get_all_nested_objects, get_object_id
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from oblivion.replies import LONGEST_REASON
from oblivion.types import ClientTask, ClientUpdate, GlobalState, HostReply, RoundInfo, TrainRequest
from oblivion.wire import _read_array, pack_reply, unpack_reply, unpack_request
from strategies.grid_hosts import GridHosts

GOOD, EVIL = 4, 30
STATE = GlobalState(adapter={"x": torch.ones(2)})
INFO = RoundInfo(branch="main", round=1, rounds=1, population=(), seed=0)
Objects = dict[str, bytes]
Forge = Callable[[Message, "Link"], tuple[str, Objects]]


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message can only be made inside a run; this is Flower's own way of naming one."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Link:
    """As Flower's SuperLink and the grid before it: knows whose reply is whose, and does not look into replies."""

    def __init__(self, forge: Forge, left: Iterable[int] = ()) -> None:
        self.forge, self.left = forge, set(left)
        self.asked: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        return [GOOD, EVIL]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata._message_id = "" if node in self.left else f"m-{node}"
            sent.append(message.metadata.message_id)
            if node not in self.left:
                self.asked[f"m-{node}"] = message
        return sent

    def pull_messages(self, ids: Iterable[str]) -> list[InflatableObject]:
        pulled = []
        for message in [self.asked.pop(name) for name in sorted(ids, reverse=True) if name in self.asked]:
            own = message.metadata.dst_node_id == EVIL
            pulled.append(inflate_object_from_contents(*(self.forge(message, self) if own else deflated(message))))
        return pulled


def answer(message: Message, factor: float = 1.0) -> Message:
    client = unpack_request(message.content).cohorts[0][0].client_id
    update = ClientUpdate(client_id=client, round=1, delta={"x": factor * torch.ones(2)}, num_examples=1, steps=1)
    return Message(pack_reply(HostReply(host="h", updates=(update,))), reply_to=message)


def contents(message: Message) -> Objects:
    return {name: inner.deflate() for name, inner in get_all_nested_objects(message).items()}


def deflated(message: Message) -> tuple[str, Objects]:
    reply = answer(message)
    return reply.object_id, contents(reply)


def made(kind: str, children: Iterable[str], body: bytes) -> tuple[str, bytes]:
    """An object as Flower's store takes it: kind, children and length are of the right form."""
    head = f"{kind} {','.join(children)} {len(body)}"
    data = head.encode() + b"\x00" + body
    return get_object_id(data), data


def root(kind: str, body: bytes, *others: tuple[str, bytes]) -> tuple[str, Objects]:
    name, data = made(kind, [other for other, _ in others], body)
    return name, {name: data, **dict(others)}


def childless(message: Message, link: Link) -> tuple[str, Objects]:
    reply = answer(message)
    return root("Message", reply.deflate().partition(b"\x00")[2])


def other_child(message: Message, link: Link) -> tuple[str, Objects]:
    record = ConfigRecord({"a": 1})
    return root("Message", answer(message).deflate().partition(b"\x00")[2], (record.object_id, record.deflate()))


def garbage_inside(message: Message, link: Link) -> tuple[str, Objects]:
    return root("Message", answer(message).deflate().partition(b"\x00")[2], made("RecordDict", (), b"\xff" * 9))


def endless(message: Message, link: Link) -> tuple[str, Objects]:
    objects: Objects = {}
    name, data = made("ArrayRecord", (), b"")
    for _ in range(3000):
        objects[name] = data
        name, data = made("ArrayRecord", [name], b"")
    return name, {**objects, name: data}


def no_record(message: Message, link: Link) -> tuple[str, Objects]:
    record = RecordDict()
    return record.object_id, contents(record)  # type: ignore[arg-type]


FORGED: dict[str, Forge] = {
    "no protobuf": lambda message, link: root("Message", b"\xff" * 20),
    "an empty one": lambda message, link: root("Message", b""),
    "nothing in it": childless,
    "a wrong record in it": other_child,
    "garbage in it": garbage_inside,
    "nested without end": endless,
    "no message": no_record,
    "a child that is not there": lambda message, link: root("Message", b"", ("a" * 64, b"")),
}


def ask(link: Link) -> dict[str, HostReply]:
    hosts = GridHosts(link, deadline=5, expected=2)  # type: ignore[arg-type]
    requests = [
        TrainRequest(host=host, config={}, info=INFO, state=STATE, cohorts=((ClientTask(client_id=c),),))
        for host, c in ((str(GOOD), "a"), (str(EVIL), "b"))
    ]
    return {reply.host: reply for reply in hosts.ask(requests)}


@pytest.mark.parametrize("how", FORGED)
def test_a_message_that_is_none_costs_its_host_alone(how: str) -> None:
    replies = ask(Link(FORGED[how]))
    assert [update.client_id for update in replies[str(GOOD)].updates] == ["a"] and not replies[str(GOOD)].failures
    assert list(replies[str(EVIL)].failures) == ["b"] and not replies[str(EVIL)].updates
    (reason,) = replies[str(EVIL)].failures.values()
    assert reason.isprintable() and len(reason) < LONGEST_REASON


def test_a_reply_that_says_it_answers_anothers_message_is_its_senders() -> None:
    """The message itself names what it replies to, and its sender wrote it."""

    def impersonate(message: Message, link: Link) -> tuple[str, Objects]:
        reply = answer(message, factor=7.0)
        reply.metadata._reply_to_message_id = f"m-{GOOD}"
        reply.metadata._src_node_id = GOOD
        return reply.object_id, contents(reply)

    replies = ask(Link(impersonate))
    assert {host: float(reply.updates[0].delta["x"][0]) for host, reply in replies.items()} == {"4": 1.0, "30": 7.0}
    assert replies[str(GOOD)].updates[0].client_id == "a"


@pytest.mark.parametrize("claimed", ["m-99", ""])
def test_a_reply_to_a_message_that_was_never_sent_is_its_senders(claimed: str) -> None:
    def stray(message: Message, link: Link) -> tuple[str, Objects]:
        reply = answer(message)
        reply.metadata._reply_to_message_id = claimed
        return reply.object_id, contents(reply)

    assert {host: len(reply.updates) for host, reply in ask(Link(stray)).items()} == {"4": 1, "30": 1}


@pytest.mark.parametrize("left", [[EVIL], [GOOD, EVIL]])
def test_a_host_that_has_left_fails_alone(left: list[int]) -> None:
    """Flower gives an empty name for a message that it cannot send."""
    replies = ask(Link(lambda message, link: deflated(message), left))
    assert all("has left" in why for host in left for why in replies[str(host)].failures.values())
    assert bool(replies[str(GOOD)].updates) == (GOOD not in left) and len(replies) == 2


@pytest.mark.parametrize("kind", ["|V0", "|S0", "<U0"])
def test_values_without_a_size_take_no_time(kind: str) -> None:
    """A million million of them are no byte, so no bound on bytes holds them; copying them would not end."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (1000000000000,), }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()
    with pytest.raises(ValueError, match="no size"):
        _read_array(Array(kind, (10**12,), "numpy.ndarray", data))


HEADS = ["(" * 100, '{"a": """', "if 1:\n  x\n y", "\x00" * 9, "[" * 110, "{'shape': (1 ** 9,)}"]


@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
def test_a_header_that_is_no_literal_is_malformed_and_no_more(head: str) -> None:
    text = head.ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    record = pack_reply(
        HostReply(host="h", updates=(ClientUpdate(client_id="b", round=1, delta={}, num_examples=1, steps=1),))
    )
    record["arrays"] = ArrayRecord({"0|delta|x": Array("float32", (2,), "numpy.ndarray", data)})
    reply = unpack_reply(record)
    assert not reply.updates and "not of the form" in reply.failures["b"]
