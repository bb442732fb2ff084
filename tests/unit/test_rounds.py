"""Rounds with hosts that are plain functions: what counts is who answers, never in which order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from oblivion.aggregation.gate import GateState
from oblivion.config import RunConfig, load_config
from oblivion.errors import FederationError
from oblivion.fingerprint import code_fingerprint
from oblivion.ledger.memory import MemoryLedger, RoundRecord, RoundState
from oblivion.removal.plan import UnlearnPhase
from oblivion.seeding import torch_generator
from oblivion.types import (
    ClientTask,
    ClientUpdate,
    ForgetRequest,
    GlobalState,
    HostReply,
    HostRequest,
    RoundInfo,
    Sample,
)
from server.events import Event, Observer
from server.rounds import Absence, Federation, apply_unlearning

SIZES = {"a": 4, "b": 3, "c": 2, "d": 1}
INITIAL = {"x.lora_A": torch.zeros(2, 3), "x.lora_B": torch.zeros(3, 2)}
Change = Callable[[ClientUpdate], ClientUpdate | None]


def visit(task: ClientTask, info: RoundInfo, size: int) -> ClientUpdate:
    """A stand-in for training: an update that depends on seed, round, client and excluded rows alone."""
    generator = torch_generator(info.seed, "fake", info.round, task.client_id)
    left = size - len(task.excluded)
    return ClientUpdate(
        client_id=task.client_id,
        round=info.round,
        delta={name: left * torch.randn(t.shape, generator=generator) for name, t in INITIAL.items()},
        num_examples=left,
        steps=2,
        metrics={"loss": float(size), "tokens": 10.0},
        fingerprint=code_fingerprint(),
    )


class FakeHosts:
    """Hosts that share all clients; `changes` bends single clients' updates, None makes them fail."""

    def __init__(self, count: int = 1, turned: bool = False, sizes: dict[str, int] = SIZES) -> None:
        self.count, self.turned, self.sizes = count, turned, sizes
        self.changes: dict[str, Change] = {}
        self.silent: set[str] = set()
        self.fails_once: set[str] = set()
        self.asked: list[HostRequest] = []

    def names(self) -> tuple[str, ...]:
        return tuple(f"host-{k}" for k in range(self.count))

    def ask(self, requests: Sequence[HostRequest]) -> list[HostReply]:
        self.asked += requests
        replies = [self._answer(request) for request in requests if request.host not in self.silent]
        return replies[::-1] if self.turned else replies

    def _answer(self, request: HostRequest) -> HostReply:
        if request.kind == "query.describe":
            return HostReply(host=request.host, clients={c: {"samples": n} for c, n in self.sizes.items()})
        assert request.info is not None
        updates, failures = [], {}
        for task in (task for cohort in request.cohorts for task in cohort):
            client = task.client_id
            update = self.changes.get(client, lambda u: u)(visit(task, request.info, self.sizes[client]))
            if client in self.fails_once or update is None:
                self.fails_once.discard(client)
                failures[client] = "it crashed"
            else:
                updates.append(update)
        return HostReply(host=request.host, updates=tuple(updates[::-1] if self.turned else updates), failures=failures)


def config(**changes: Any) -> RunConfig:
    return load_config(None, {"federation.rounds": 3, **{k.replace("__", "."): v for k, v in changes.items()}})


def federation(hosts: FakeHosts, settings: RunConfig | None = None) -> tuple[Federation, MemoryLedger, list[Event]]:
    ledger, events = MemoryLedger(), []  # type: tuple[MemoryLedger, list[Event]]
    made = Federation(settings or config(), hosts, ledger, INITIAL, Observer(events.append))
    made.describe()
    state = GlobalState(adapter=INITIAL)
    ledger.branch("main", RoundState(round=0, state=state, rule_state=made.rule.init(state), gate_state=GateState()))
    return made, ledger, events


def learn(hosts: FakeHosts, settings: RunConfig | None = None, absence: Absence | None = None) -> MemoryLedger:
    made, ledger, _ = federation(hosts, settings)
    for _ in range(3):
        made.run_round("main", absence or Absence(), 3, 0)
    return ledger


def bits(ledger: MemoryLedger, branch: str = "main") -> list[bytes]:
    head = ledger.head(branch)
    return [t.numpy().tobytes() for t in (*head.state.adapter.values(), *head.rule_state.values())]


def without_time(record: RoundRecord) -> RoundRecord:
    return dataclasses.replace(record, loss=0.0)


def test_one_round_by_hand() -> None:
    hosts = FakeHosts()
    made, ledger, _ = federation(hosts)
    record = made.run_round("main", Absence(), 3, 0)
    info = RoundInfo(branch="main", round=1, rounds=3, population=tuple(SIZES), seed=0)
    updates = {c: visit(ClientTask(client_id=c), info, n) for c, n in SIZES.items()}
    # weights 4, 3, 2, 1 of 10
    for name in INITIAL:
        mean = sum(n / 10 * updates[c].delta[name].double() for c, n in SIZES.items())
        torch.testing.assert_close(ledger.head("main").state.adapter[name].double(), mean, rtol=0, atol=1e-6)
    assert record.selected == record.accepted == ("a", "b", "c", "d") and not record.failed and not record.refused
    assert record.loss == pytest.approx((16 + 9 + 4 + 1) / 10)
    # 12 numbers of 4 bytes, 4 clients each way
    cost = record.cost
    assert (cost.client_steps, cost.tokens, cost.bytes_up, cost.bytes_down) == (8, 40, 192, 192)
    assert hosts.asked[-1].info == info and hosts.asked[-1].kind == "train"


@pytest.mark.parametrize("aggregator", ["fedavg", "fedadam"])
@pytest.mark.parametrize("cohort", [1, 3])
def test_hosts_and_order_change_no_bit(aggregator: str, cohort: int) -> None:
    settings = config(federation__aggregator=aggregator, train__cohort=cohort)
    reference = learn(FakeHosts(), settings)
    for hosts in (FakeHosts(2), FakeHosts(3, turned=True), FakeHosts(1, turned=True)):
        other = learn(hosts, settings)
        assert bits(other) == bits(reference)
        assert other.records("main") == reference.records("main")
        assert other.head("main").gate_state == reference.head("main").gate_state


def test_leaving_equals_never_having_been_there() -> None:
    absence = Absence(ForgetRequest(id="r", client_id="b"))
    rest = {c: n for c, n in SIZES.items() if c != "b"}
    assert bits(learn(FakeHosts(), absence=absence)) == bits(learn(FakeHosts(sizes=rest)))


def test_samples_are_excluded_and_the_client_stays() -> None:
    request = ForgetRequest(id="r", client_id="b", sample_ids=("s1", "s2"))
    hosts = FakeHosts()
    learn(hosts, absence=Absence(request))
    tasks = {t.client_id: t for r in hosts.asked if r.kind == "train" for cohort in r.cohorts for t in cohort}
    assert tasks["b"].excluded == ("s1", "s2") and tasks["a"].excluded == () and len(tasks) == 4


def test_joiners_come_when_they_join() -> None:
    ledger = learn(FakeHosts(), config(federation__joins={"c": 3}))
    assert ["c" in record.selected for record in ledger.records("main")] == [False, False, True]


def test_a_refused_update_costs_its_client_alone() -> None:
    def poison(update: ClientUpdate) -> ClientUpdate:
        return dataclasses.replace(update, delta={**update.delta, "x.lora_A": torch.full((2, 3), math.nan)})

    hosts = FakeHosts()
    hosts.changes["b"] = poison
    ledger = learn(hosts)
    assert bits(ledger) == bits(learn(FakeHosts(sizes={c: n for c, n in SIZES.items() if c != "b"})))
    for record in ledger.records("main"):
        assert "not finite" in record.refused["b"] and "b" not in record.accepted and not record.failed
        assert "b" in record.selected


@pytest.mark.parametrize(
    "change",
    [{"num_examples": 5}, {"fingerprint": "other"}, {"round": 9}, {"steps": -1}, {"client_id": "c"}],
)
def test_the_gate_stands_in_the_round(change: dict[str, Any]) -> None:
    hosts = FakeHosts()
    hosts.changes["b"] = lambda update: dataclasses.replace(update, **change)
    made, _, events = federation(hosts)
    record = made.run_round("main", Absence(), 3, 0)
    assert "b" not in record.accepted and "a" in record.accepted
    assert [e for e in events if e["event"] in ("update.refused", "client.failed")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_odd_metrics_of_a_client_stop_nobody(value: float) -> None:
    hosts = FakeHosts()
    hosts.changes["b"] = lambda u: dataclasses.replace(u, metrics={"loss": value, "tokens": value, "skipped": value})
    hosts.changes["c"] = lambda u: dataclasses.replace(u, metrics={"loss": -value})
    made, ledger, _ = federation(hosts)
    record = made.run_round("main", Absence(), 3, 0)
    assert len(record.accepted) == 4 and bits(ledger) == bits_of_first_round()


def bits_of_first_round() -> list[bytes]:
    made, ledger, _ = federation(FakeHosts())
    made.run_round("main", Absence(), 3, 0)
    return bits(ledger)


def test_failures_are_recorded_and_told() -> None:
    hosts = FakeHosts()
    hosts.changes["d"] = lambda update: None
    made, _, events = federation(hosts)
    record = made.run_round("main", Absence(), 3, 0)
    assert record.failed == {"d": "it crashed"} and record.accepted == ("a", "b", "c")
    assert [e["client"] for e in events if e["event"] == "client.failed"] == ["d"]


def test_a_silent_host_fails_its_clients() -> None:
    hosts = FakeHosts(2)
    made, _, _ = federation(hosts)
    hosts.silent = {"host-1"}
    record = made.run_round("main", Absence(), 3, 0)
    given = {t.client_id for r in hosts.asked if r.kind == "train" and r.host == "host-1" for c in r.cohorts for t in c}
    assert given and record.failed == dict.fromkeys(sorted(given), "no reply from its host")


class Forgetful(FakeHosts):
    """Leaves one client out of its answer without a word, and speaks of clients that nobody asked about."""

    def _answer(self, request: HostRequest) -> HostReply:
        reply = super()._answer(request)
        updates = tuple(u for u in reply.updates if u.client_id != "d")
        strange = {} if request.kind == "query.describe" else {"stranger": "hello"}
        return dataclasses.replace(reply, updates=updates, failures=strange)


def test_a_client_that_an_answer_leaves_out_counts_as_failed() -> None:
    """Else a replay would not know that it took no part, and would not be the same rounds."""
    made, _, _ = federation(Forgetful())
    record = made.run_round("main", Absence(), 3, 0)
    assert record.failed == {"d": "its host answered without it"} and record.accepted == ("a", "b", "c")


def test_quorum_says_what_was_missing_and_why() -> None:
    hosts = FakeHosts()
    for client in "abc":
        hosts.changes[client] = lambda update: None
    made, ledger, _ = federation(hosts)
    with pytest.raises(FederationError) as caught:
        made.run_round("main", Absence(), 3, 0)
    message = str(caught.value)
    assert "round 1: 1 of 4 clients gave a usable update, federation.quorum asks for 2" in message
    assert "a: it crashed" in message and caught.value.exit_code == 1
    assert ledger.head("main").round == 0 and ledger.contributions("main", 1) == ()


def test_quorum_counts_refused_updates_as_missing() -> None:
    hosts = FakeHosts()
    hosts.changes["a"] = lambda update: dataclasses.replace(update, steps=-1)
    with pytest.raises(FederationError, match=r"3 of 4 .* asks for 4.*a: its number of steps"):
        learn(hosts, config(federation__quorum=1.0))


def test_nobody_at_all_is_a_failure() -> None:
    with pytest.raises(FederationError, match="no host says that it serves a client"):
        federation(FakeHosts(sizes={}))


def test_a_replay_keeps_out_who_was_unavailable_and_gives_the_same_bits() -> None:
    hosts = FakeHosts()
    hosts.changes["d"] = lambda update: None
    made, ledger, _ = federation(hosts)
    original = made.run_round("main", Absence(), 3, 0)
    healthy = FakeHosts()
    again, replay, _ = federation(healthy)
    record = again.run_round("main", Absence(), 3, 0, replayed=original)
    assert bits(replay) == bits(ledger)
    assert record.accepted == original.accepted and record.selected == original.selected
    assert record.failed == {"d": "was unavailable"}
    assert "d" not in {t.client_id for r in healthy.asked for c in r.cohorts for t in c}


def test_a_replay_tries_once_again_and_then_stops() -> None:
    made, ledger, _ = federation(FakeHosts())
    original = made.run_round("main", Absence(), 3, 0)
    shaky = FakeHosts()
    shaky.fails_once = {"b"}
    again, replay, _ = federation(shaky)
    assert again.run_round("main", Absence(), 3, 0, replayed=original).failed == {}
    assert bits(replay) == bits(ledger)
    broken = FakeHosts()
    broken.changes["b"] = lambda update: None
    with pytest.raises(FederationError, match="replay of round 1: b took part then and fails now: it crashed"):
        federation(broken)[0].run_round("main", Absence(), 3, 0, replayed=original)


def test_a_learning_round_does_not_ask_twice() -> None:
    shaky = FakeHosts()
    shaky.fails_once = {"b"}
    made, _, _ = federation(shaky)
    assert made.run_round("main", Absence(), 3, 0).failed == {"b": "it crashed"}


def test_a_replayed_round_with_nobody_left_changes_nothing() -> None:
    hosts = FakeHosts(sizes={"a": 4, "b": 3})
    hosts.changes["b"] = lambda update: None
    settings = config(federation__aggregator="fedadam")
    original = federation(hosts, settings)[0].run_round("main", Absence(), 3, 0)
    made, ledger, _ = federation(FakeHosts(sizes={"a": 4, "b": 3}), settings)
    before = bits(ledger)
    record = made.run_round("main", Absence(ForgetRequest(id="r", client_id="a")), 3, 0, replayed=original)
    assert record.selected == ("b",) and record.accepted == () and math.isnan(record.loss)
    assert bits(ledger) == before and ledger.head("main").round == 1


PHASE = UnlearnPhase(
    round=1,
    objective="npo",
    parameters={"beta": 0.5},
    scale=0.5,
    max_norm=2.0,
    local_epochs=5,
    learning_rate=1e-3,
    anchor="none",
)


def test_unlearning_is_clipped_scaled_and_bypasses_the_rule() -> None:
    # |(3, 4)| = 5 is cut to 2: (1.2, 1.6); half of it is added to (1, 1): (1.6, 1.8)
    update = ClientUpdate(client_id="a", round=1, delta={"x": torch.tensor([3.0, 4.0])}, num_examples=1, steps=1)
    rule_state = {"m/x": torch.tensor([7.0, 7.0])}
    head = RoundState(
        round=0,
        state=GlobalState(adapter={"x": torch.ones(2)}),
        rule_state=rule_state,
        gate_state=GateState(norms=((("a", 1.0),),)),
    )
    after = apply_unlearning(head, update, PHASE)
    torch.testing.assert_close(after.state.adapter["x"], torch.tensor([1.6, 1.8]))
    assert after.rule_state is rule_state and after.gate_state is head.gate_state and after.round == 1
    assert head.state.adapter["x"].tolist() == [1.0, 1.0]
    # below the bound nothing is cut: 0.5 * (3, 4) = (1.5, 2)
    free = apply_unlearning(head, update, dataclasses.replace(PHASE, max_norm=10.0))
    torch.testing.assert_close(free.state.adapter["x"], torch.tensor([2.5, 3.0]))
    still = dataclasses.replace(update, delta={"x": torch.zeros(2)})
    assert apply_unlearning(head, still, PHASE).state.adapter["x"].tolist() == [1.0, 1.0]


def test_unlearning_visit_under_fedadam() -> None:
    hosts = FakeHosts()
    made, ledger, _ = federation(hosts, config(federation__aggregator="fedadam"))
    made.run_round("main", Absence(), 3, 0)
    before = ledger.head("main")
    request = ForgetRequest(id="r", client_id="b", sample_ids=("s1",))
    record = made.unlearn("main", request, dataclasses.replace(PHASE, round=2), ())
    after = ledger.head("main")
    assert before.rule_state and after.rule_state is before.rule_state
    moved = math.sqrt(sum(float((after.state.adapter[n] - t).square().sum()) for n, t in before.state.adapter.items()))
    assert moved == pytest.approx(0.5 * 2.0, rel=1e-4)
    assert record.selected == record.accepted == ("b",) and record.cost.client_steps == 2 and after.round == 2
    asked = hosts.asked[-1]
    assert (asked.kind, asked.objective, asked.parameters) == ("train.unlearn", "npo", {"beta": 0.5})
    assert asked.cohorts == ((ClientTask(client_id="b", forget=("s1",)),),) and asked.public == ()
    assert asked.state is not None and asked.state.adapter is before.state.adapter


def test_public_rows_travel_only_as_an_anchor() -> None:
    rows = (Sample(id="p", prompt="q", answer="a"),)
    for anchor, sent in (("public", rows), ("retained", ()), ("none", ())):
        hosts = FakeHosts()
        made, _, _ = federation(hosts)
        phase = dataclasses.replace(PHASE, anchor=anchor)
        made.unlearn("main", ForgetRequest(id="r", client_id="b"), phase, rows)
        assert hosts.asked[-1].public == sent


def test_unlearning_that_fails_changes_nothing() -> None:
    hosts = FakeHosts()
    made, ledger, _ = federation(hosts)
    hosts.changes["b"] = lambda update: None
    with pytest.raises(FederationError, match="b could not unlearn: it crashed"):
        made.unlearn("main", ForgetRequest(id="r", client_id="b"), PHASE, ())
    hosts.changes["b"] = lambda update: dataclasses.replace(update, fingerprint="old")
    with pytest.raises(FederationError, match="b could not unlearn: it was made by other code"):
        made.unlearn("main", ForgetRequest(id="r", client_id="b"), PHASE, ())
    hosts.silent = {"host-0"}
    with pytest.raises(FederationError, match="b could not unlearn: no reply from its host"):
        made.unlearn("main", ForgetRequest(id="r", client_id="b"), PHASE, ())
    assert ledger.head("main").round == 0 and ledger.records("main") == ()


def test_skipped_rows_are_warned_of_once() -> None:
    hosts = FakeHosts()
    hosts.changes["b"] = lambda u: dataclasses.replace(u, metrics={**u.metrics, "skipped": 2.0})
    made, _, events = federation(hosts)
    for _ in range(3):
        made.run_round("main", Absence(), 3, 0)
    warnings = [e for e in events if e["event"] == "warning"]
    assert [(w["client"], w["skipped"]) for w in warnings] == [("b", 2)]
    assert "2 of b's rows are longer than the context" in warnings[0]["text"]


def test_a_round_gives_the_config_and_the_seed_of_its_branch() -> None:
    hosts = FakeHosts()
    made, _, _ = federation(hosts)
    made.run_round("main", Absence(), 3, 17)
    request = hosts.asked[-1]
    assert request.info is not None and request.info.seed == 17
    assert request.config == config().to_json() and request.objective == "lm"
