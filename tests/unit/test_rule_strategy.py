"""Oblivion's rules inside Flower's strategy, and hosts behind Flower's grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from oblivion.aggregation.rules.fedadam import FedAdam
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.errors import FederationError
from oblivion.types import (
    ClientTask,
    ClientUpdate,
    DescribeRequest,
    GlobalState,
    HostReply,
    HostRequest,
    RoundInfo,
    TrainRequest,
)
from oblivion.wire import pack_reply, unpack_request
from strategies import grid_hosts
from strategies.grid_hosts import GridHosts
from strategies.rule_strategy import RuleStrategy


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message can only be made inside a run; this is Flower's own way of naming one."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


START = {"w": np.array([1.0, 2.0], dtype=np.float32), "b": np.array([[0.5]], dtype=np.float32)}
INFO = RoundInfo(branch="main", round=1, rounds=1, population=(), seed=0)


def arrays(values: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in values.items()})


class FakeGrid:
    """Nodes that answer at once through `answer`."""

    def __init__(self, nodes: list[int], answer: Any = None) -> None:
        self.nodes, self.answer, self.pushed = nodes, answer, []  # type: ignore[var-annotated]
        self.batches = 1

    def get_node_ids(self) -> list[int]:
        return self.nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterator[str]:
        for message in messages:
            message.metadata._message_id = f"m{len(self.pushed)}"
            self.pushed.append(message)
            yield message.metadata.message_id

    def pull_messages(self, waiting: Iterable[str]) -> list[Message]:
        known = set(waiting)
        there = [m for m in self.pushed if m.metadata.message_id in known][: self.batches]
        return [reply for m in there if (reply := self.answer(m)) is not None]


def replies(numbers: dict[int, tuple[dict[str, np.ndarray], int]], key: str | None = "client") -> list[Message]:
    made = []
    for client, (values, examples) in numbers.items():
        metrics: dict[str, Any] = {"num-examples": examples, "train_loss": float(client)}
        if key:
            metrics[key] = client
        asked = Message(RecordDict(), dst_node_id=1000 - client, message_type="train")
        asked.metadata._message_id = f"q{client}"
        content = RecordDict({"arrays": arrays(values), "metrics": MetricRecord(metrics)})
        made.append(Message(content, reply_to=asked))
    return made


def trained(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {n: (v + generator.normal(size=v.shape)).astype(np.float32) for n, v in START.items()}


NUMBERS = {k: (trained(k), k + 1) for k in (0, 1, 2, 10)}


def prepared(rule: Any, **options: Any) -> RuleStrategy:
    strategy = RuleStrategy(rule, **options)
    configure(strategy, START)
    return strategy


def configure(strategy: RuleStrategy, values: dict[str, np.ndarray]) -> list[Message]:
    return list(strategy.configure_train(1, arrays(values), ConfigRecord(), FakeGrid([1, 2, 3])))  # type: ignore[arg-type]


def values_of(record: ArrayRecord | None) -> dict[str, np.ndarray]:
    assert record is not None
    return {name: record[name].numpy() for name in record}


def test_fedavg_by_hand() -> None:
    # w: 1 + 1/4 * (3 - 1) + 3/4 * (5 - 1) = 4.5; b: 0.5 + 1/4 * 0.5 + 3/4 * 1.5 = 1.75
    one = {"w": np.array([3.0, 2.0], dtype=np.float32), "b": np.array([[1.0]], dtype=np.float32)}
    two = {"w": np.array([5.0, 2.0], dtype=np.float32), "b": np.array([[2.0]], dtype=np.float32)}
    record, metrics = prepared(FedAvg()).aggregate_train(1, replies({0: (one, 1), 1: (two, 3)}))
    result = values_of(record)
    np.testing.assert_allclose(result["w"], [4.5, 2.0])
    np.testing.assert_allclose(result["b"], [[1.75]])
    assert metrics is not None and metrics["train_loss"] == pytest.approx(0.75)


@pytest.mark.parametrize("rule", [FedAvg(learning_rate=0.5), FedAdam()])
def test_equals_the_rule_applied_by_hand_over_two_rounds(rule: Any) -> None:
    strategy = prepared(rule)
    state = GlobalState(adapter={n: torch.from_numpy(v) for n, v in sorted(START.items())})
    rule_state = rule.init(state)
    current = START
    for number in (1, 2):
        configure(strategy, current)
        record, _ = strategy.aggregate_train(number, replies(NUMBERS))
        updates = [
            ClientUpdate(
                client_id=f"client-{k:03d}",
                round=number,
                delta={n: torch.from_numpy(v[n]) - state.adapter[n] for n in state.adapter},
                num_examples=count,
                steps=0,
            )
            for k, (v, count) in NUMBERS.items()
        ]
        state, rule_state = rule.step(updates, state, rule_state, INFO)
        current = values_of(record)
        assert list(current) == sorted(START)
        assert all(current[n].tobytes() == t.numpy().tobytes() for n, t in state.adapter.items())


def test_order_of_replies_changes_no_bit() -> None:
    forward, _ = prepared(FedAvg()).aggregate_train(1, replies(NUMBERS))
    turned, _ = prepared(FedAvg()).aggregate_train(1, reversed(replies(NUMBERS)))
    assert forward is not None and turned is not None
    assert {n: v.tobytes() for n, v in values_of(forward).items()} == {
        n: v.tobytes() for n, v in values_of(turned).items()
    }


def test_clients_are_named_by_node_where_they_do_not_name_themselves() -> None:
    named, _ = prepared(FedAvg()).aggregate_train(1, replies(NUMBERS))
    unnamed, _ = prepared(FedAvg()).aggregate_train(1, replies(NUMBERS, key=None))
    for name, value in values_of(named).items():
        np.testing.assert_allclose(values_of(unnamed)[name], value, rtol=1e-6)


def test_failed_replies_are_left_out() -> None:
    asked = Message(RecordDict(), dst_node_id=7, message_type="train")
    asked.metadata._message_id = "q"
    bad = Message(Error(code=2, reason="crash"), reply_to=asked)
    alone, _ = prepared(FedAvg()).aggregate_train(1, replies(NUMBERS))
    both, _ = prepared(FedAvg()).aggregate_train(1, [bad, *replies(NUMBERS)])
    assert all((values_of(alone)[n] == v).all() for n, v in values_of(both).items())
    assert prepared(FedAvg()).aggregate_train(1, [bad]) == (None, None)
    assert prepared(FedAvg()).aggregate_train(1, []) == (None, None)


def test_configure_asks_every_node_and_keeps_the_rule_state() -> None:
    strategy = prepared(FedAdam(), min_train_nodes=3, min_available_nodes=3)
    messages = configure(strategy, START)
    assert sorted(m.metadata.dst_node_id for m in messages) == [1, 2, 3]
    strategy.aggregate_train(1, replies(NUMBERS))
    before = dict(strategy._rule_state)
    configure(strategy, trained(5))
    assert strategy._rule_state == before and any(t.any() for n, t in before.items() if n.startswith("m/"))


def request(host: str, client: str) -> HostRequest:
    return TrainRequest(
        host=host,
        config={},
        info=INFO,
        state=GlobalState(adapter={"x": torch.ones(2)}),
        cohorts=((ClientTask(client_id=client),),),
    )


def answered(message: Message, **changes: Any) -> Message:
    asked = unpack_request(message.content)
    client = asked.cohorts[0][0].client_id
    update = ClientUpdate(client_id=client, round=1, delta={"x": torch.ones(2)}, num_examples=1, steps=1)
    reply = HostReply(**{"host": asked.host, "updates": (update,), **changes})
    return Message(pack_reply(reply), reply_to=message)


def test_grid_hosts_ask_and_read_every_node() -> None:
    grid = FakeGrid([30, 4], answered)
    hosts = GridHosts(grid, deadline=5, expected=2)  # type: ignore[arg-type]
    assert hosts.names() == ("4", "30")
    replies = hosts.ask([request("30", "a"), request("4", "b")])
    assert sorted((r.host, r.updates[0].client_id) for r in replies) == [("30", "a"), ("4", "b")]
    assert sorted(m.metadata.dst_node_id for m in grid.pushed) == [4, 30]
    assert {m.metadata.message_type for m in grid.pushed} == {"train"}


def test_hosts_are_started_without_waiting_for_them() -> None:
    grid = FakeGrid([30, 4], lambda message: None)
    GridHosts(grid, deadline=60, expected=2).start({"seed": 1})  # type: ignore[arg-type]
    assert sorted(m.metadata.dst_node_id for m in grid.pushed) == [4, 30]
    assert {m.metadata.message_type for m in grid.pushed} == {"query.start"}


def test_a_host_is_who_sent_the_message_and_not_who_it_says() -> None:
    grid = FakeGrid([4], lambda message: answered(message, host="30"))
    hosts = GridHosts(grid, deadline=5, expected=1)  # type: ignore[arg-type]
    assert [r.host for r in hosts.ask([request("4", "a")])] == ["4"]


def test_errors_and_malformed_answers_become_failures() -> None:
    def crash(message: Message) -> Message:
        return Message(Error(code=2, reason="boom"), reply_to=message)

    def nonsense(message: Message) -> Message:
        return Message(RecordDict(), reply_to=message)

    for answer, reason in ((crash, "its host failed: boom"), (nonsense, "two records that it should")):
        hosts = GridHosts(FakeGrid([4], answer), deadline=5, expected=1)  # type: ignore[arg-type]
        (reply,) = hosts.ask([request("4", "a")])
        assert reply.host == "4" and list(reply.failures) == ["a"] and reason in reply.failures["a"]
        (describe,) = hosts.ask([DescribeRequest(host="4", config={})])
        assert list(describe.failures) == ["4"] and not describe.clients


def test_a_reply_is_there_before_the_next_host_answers() -> None:
    """What has come is stored while others still train: it must not wait for the slowest."""
    grid = FakeGrid([30, 4], lambda message: None if message.metadata.dst_node_id == 30 else answered(message))
    grid.batches = 2
    coming = GridHosts(grid, deadline=60, expected=2).ask([request("30", "a"), request("4", "b")])  # type: ignore[arg-type]
    assert next(coming).host == "4"
    grid.answer = answered
    assert [reply.host for reply in coming] == ["30"]


def test_a_host_that_does_not_answer_is_left_out() -> None:
    grid = FakeGrid([4, 30], lambda m: answered(m) if m.metadata.dst_node_id == 4 else None)
    grid.batches = 2
    hosts = GridHosts(grid, deadline=0.1, expected=2)  # type: ignore[arg-type]
    assert [r.host for r in hosts.ask([request("30", "a"), request("4", "b")])] == ["4"]


def test_nodes_that_do_not_come_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_hosts, "_START_TIMEOUT", 0.05)
    with pytest.raises(FederationError, match="1 of 2 hosts came within"):
        GridHosts(FakeGrid([4]), deadline=1, expected=2)  # type: ignore[arg-type]


def test_a_wait_can_be_ended_from_outside() -> None:
    import threading

    stop = threading.Event()
    hosts = GridHosts(FakeGrid([4], lambda m: None), deadline=math.inf, expected=1, stop=stop)  # type: ignore[arg-type]
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        list(hosts.ask([request("4", "a")]))
