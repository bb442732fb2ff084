"""Rounds with hosts that are plain functions: what counts is who answers, never in which order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fake_hosts import B_LEFT, INITIAL, MAIN, SIZES, FakeHosts, bits, config, federation, visit

from oblivion.aggregation.gate import GateState
from oblivion.aggregation.round import RoundState
from oblivion.config import RunConfig
from oblivion.errors import FederationError, IntegrityError
from oblivion.federation.absence import to_replay
from oblivion.federation.history import History
from oblivion.federation.phase_runner import PhaseRunner
from oblivion.federation.rounds import Federation
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.rounds import Absence, Branch, CohortOutcome, RoundRecord
from oblivion.privacy.noise import derive_key
from oblivion.removal.combinations import Add
from oblivion.removal.phases import Visit
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


def learn(hosts: FakeHosts, settings: RunConfig | None = None, branch: Branch = MAIN) -> Federation:
    made, _, _ = federation(hosts, settings, branch)
    for _ in range(3):
        made.run_round("main")
    return made


def without_time(records: Sequence[RoundRecord]) -> list[RoundRecord]:
    return [dataclasses.replace(record, seconds=0.0) for record in records]


def trained_clients(hosts: FakeHosts) -> list[str]:
    return [t.client_id for r in hosts.asked if r.kind == "train" for cohort in r.cohorts for t in cohort]


def test_one_round_by_hand() -> None:
    hosts = FakeHosts()
    made, _, _ = federation(hosts)
    record = made.run_round("main")
    info = RoundInfo(branch="main", round=1, rounds=3, population=tuple(SIZES), seed=0)
    updates = {c: visit(ClientTask(client_id=c), info, n) for c, n in SIZES.items()}
    # weights 4, 3, 2, 1 of 10
    for name in INITIAL:
        mean = sum(n / 10 * updates[c].delta[name].double() for c, n in SIZES.items())
        torch.testing.assert_close(made.head("main").state.adapter[name].double(), mean, rtol=0, atol=1e-6)
    assert record.selected == record.accepted == ("a", "b", "c", "d") and not record.failed and not record.refused
    assert record.loss == pytest.approx((16 + 9 + 4 + 1) / 10)
    # 12 numbers of 4 bytes, 4 clients each way
    cost = record.cost
    assert (cost.client_steps, cost.tokens, cost.bytes_up, cost.bytes_down) == (16, 40, 192, 192)
    assert hosts.asked[-1].info == info and hosts.asked[-1].kind == "train"


@pytest.mark.parametrize("aggregator", ["fedavg", "fedadam"])
@pytest.mark.parametrize("cohort", [1, 3])
def test_hosts_and_order_change_no_bit(aggregator: str, cohort: int) -> None:
    settings = config(federation__aggregator=aggregator, train__cohort=cohort)
    reference = learn(FakeHosts(), settings)
    for hosts in (FakeHosts(2), FakeHosts(3, turned=True), FakeHosts(1, turned=True)):
        other = learn(hosts, settings)
        assert bits(other) == bits(reference)
        assert without_time(other.ledger.records("main")) == without_time(reference.ledger.records("main"))
        assert other.head("main").gate_state == reference.head("main").gate_state


def test_leaving_equals_never_having_been_there() -> None:
    rest = {c: n for c, n in SIZES.items() if c != "b"}
    assert bits(learn(FakeHosts(), branch=B_LEFT)) == bits(learn(FakeHosts(sizes=rest)))


def test_samples_are_excluded_and_the_client_stays() -> None:
    absent = (Absence(client="b", samples=("s2",)), Absence(client="b", samples=("s1",)))
    hosts = FakeHosts()
    learn(hosts, branch=dataclasses.replace(MAIN, absent=absent))
    tasks = {t.client_id: t for r in hosts.asked if r.kind == "train" for cohort in r.cohorts for t in cohort}
    assert tasks["b"].excluded == ("s1", "s2") and tasks["a"].excluded == () and len(tasks) == 4


def test_joiners_come_when_they_join() -> None:
    made = learn(FakeHosts(), config(federation__joins={"c": 3}))
    assert ["c" in record.selected for record in made.ledger.records("main")] == [False, False, True]


def test_a_refused_update_costs_its_client_alone() -> None:
    def poison(update: ClientUpdate) -> ClientUpdate:
        return dataclasses.replace(update, delta={**update.delta, "x.lora_A": torch.full((2, 3), math.nan)})

    hosts = FakeHosts()
    hosts.changes["b"] = poison
    made = learn(hosts)
    assert bits(made) == bits(learn(FakeHosts(sizes={c: n for c, n in SIZES.items() if c != "b"})))
    for record in made.ledger.records("main"):
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
    record = made.run_round("main")
    assert "b" not in record.accepted and "a" in record.accepted
    assert [e for e in events if e["event"] in ("update.refused", "client.failed")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_odd_metrics_of_a_client_stop_nobody(value: float) -> None:
    hosts = FakeHosts()
    hosts.changes["b"] = lambda u: dataclasses.replace(u, metrics={"loss": value, "tokens": value, "skipped": value})
    hosts.changes["c"] = lambda u: dataclasses.replace(u, metrics={"loss": -value})
    made, _, _ = federation(hosts)
    record = made.run_round("main")
    assert len(record.accepted) == 4 and bits(made) == bits_of_first_round()


def bits_of_first_round() -> list[bytes]:
    made, _, _ = federation(FakeHosts())
    made.run_round("main")
    return bits(made)


def test_failures_are_recorded_and_told() -> None:
    hosts = FakeHosts()
    hosts.changes["d"] = lambda update: None
    made, _, events = federation(hosts)
    record = made.run_round("main")
    assert record.failed == {"d": "it crashed"} and record.accepted == ("a", "b", "c")
    assert [e["client"] for e in events if e["event"] == "client.failed"] == ["d"]


def test_a_silent_host_fails_its_clients() -> None:
    hosts = FakeHosts(2)
    made, _, _ = federation(hosts)
    hosts.silent = {"host-1"}
    record = made.run_round("main")
    given = {t.client_id for r in hosts.asked if r.kind == "train" and r.host == "host-1" for c in r.cohorts for t in c}
    assert given and record.failed == dict.fromkeys(sorted(given), "no reply from its host")


class Forgetful(FakeHosts):
    """Leaves one client out of its answer without a word."""

    def _answer(self, request: HostRequest) -> HostReply:
        reply = super()._answer(request)
        updates = tuple(u for u in reply.updates if u.client_id != "d")
        return dataclasses.replace(reply, updates=updates)


def test_a_client_that_an_answer_leaves_out_counts_as_failed() -> None:
    """Else a replay would not know that it took no part, and would not be the same rounds."""
    made, _, _ = federation(Forgetful())
    record = made.run_round("main")
    assert record.failed == {"d": "its host answered without it"} and record.accepted == ("a", "b", "c")


def test_quorum_says_what_was_missing_and_why() -> None:
    hosts = FakeHosts()
    for client in "abc":
        hosts.changes[client] = lambda update: None
    made, ledger, _ = federation(hosts)
    with pytest.raises(FederationError) as caught:
        made.run_round("main")
    message = str(caught.value)
    assert "round 1: 1 of 4 clients gave a usable update, federation.quorum asks for 2" in message
    assert "a: it crashed" in message and caught.value.exit_code == 1
    assert made.head("main").round == 0 and ledger.records("main") == ()


def test_a_round_that_failed_is_finished_with_what_it_stored() -> None:
    """The three that crashed are asked again, the one that answered is not; no bit differs from an easy round."""
    hosts = FakeHosts()
    for client in "abc":
        hosts.changes[client] = lambda update: None
    made, _, _ = federation(hosts)
    with pytest.raises(FederationError):
        made.run_round("main")
    hosts.changes.clear()
    hosts.asked.clear()
    record = made.run_round("main")
    assert sorted(trained_clients(hosts)) == ["a", "b", "c"]
    assert record.accepted == ("a", "b", "c", "d") and not record.failed
    assert bits(made) == bits_of_first_round()


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
    made, _, _ = federation(hosts)
    original = made.run_round("main")
    healthy = FakeHosts()
    again, _, _ = federation(healthy)
    record = again.run_round("main", original)
    assert bits(again) == bits(made)
    assert record.accepted == original.accepted and record.selected == original.selected
    assert record.failed == {"d": "was unavailable"}
    assert "d" not in {t.client_id for r in healthy.asked for c in r.cohorts for t in c}


def test_a_replay_tries_once_again_and_then_stops() -> None:
    made, _, _ = federation(FakeHosts())
    original = made.run_round("main")
    shaky = FakeHosts()
    shaky.fails_once = {"b"}
    again, _, _ = federation(shaky)
    assert again.run_round("main", original).failed == {}
    assert bits(again) == bits(made)
    broken = FakeHosts()
    broken.changes["b"] = lambda update: None
    with pytest.raises(FederationError, match=r"replay of round 1: b took part then and fails now \(b: it crashed"):
        federation(broken)[0].run_round("main", original)


def test_a_learning_round_does_not_ask_twice() -> None:
    shaky = FakeHosts()
    shaky.fails_once = {"b"}
    made, _, _ = federation(shaky)
    assert made.run_round("main").failed == {"b": "it crashed"}


def test_a_replayed_round_with_nobody_left_changes_nothing() -> None:
    hosts = FakeHosts(sizes={"a": 4, "b": 3})
    hosts.changes["b"] = lambda update: None
    settings = config(federation__aggregator="fedadam")
    original = federation(hosts, settings)[0].run_round("main")
    branch = dataclasses.replace(MAIN, absent=(Absence(client="a"),))
    made, _, _ = federation(FakeHosts(sizes={"a": 4, "b": 3}), settings, branch)
    before = bits(made)
    record = made.run_round("main", original)
    assert record.selected == ("b",) and record.accepted == () and math.isnan(record.loss)
    assert bits(made) == before and made.head("main").round == 1


VISIT = Visit(
    clients=("b",),
    objective="npo",
    parameters={"beta": 0.5},
    combine=Add(scale=0.5, max_norm=2.0),
    local_epochs=4,
    learning_rate=1e-3,
)


def unlearn(
    made: Federation, request: ForgetRequest, visit: Visit = VISIT, public: Sequence[Sample] = ()
) -> RoundRecord:
    """Run a visit on the main branch, and return its record."""
    PhaseRunner(made, "main", public=public).visit("main", request, visit)
    return made.ledger.records("main")[-1]


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
    made, _, _ = federation(FakeHosts())
    history = History(made.replay, "main")
    after = Add(scale=0.5, max_norm=2.0).combine(head, [update], history)
    torch.testing.assert_close(after.state.adapter["x"], torch.tensor([1.6, 1.8]))
    assert after.rule_state is rule_state and after.gate_state is head.gate_state
    assert head.state.adapter["x"].tolist() == [1.0, 1.0]
    # below the bound nothing is cut: 0.5 * (3, 4) = (1.5, 2)
    free = Add(scale=0.5, max_norm=10.0).combine(head, [update], history)
    torch.testing.assert_close(free.state.adapter["x"], torch.tensor([2.5, 3.0]))
    still = dataclasses.replace(update, delta={"x": torch.zeros(2)})
    assert Add().combine(head, [still], history).state.adapter["x"].tolist() == [1.0, 1.0]
    # of two clients, 1 and 3 examples: (3, 4) / 4 + 3 * (1, 0) / 4 = (1.5, 1)
    other = ClientUpdate(client_id="b", round=1, delta={"x": torch.tensor([1.0, 0.0])}, num_examples=3, steps=1)
    torch.testing.assert_close(
        Add().combine(head, [update, other], history).state.adapter["x"], torch.tensor([2.5, 2.0])
    )


@pytest.mark.parametrize("reset", [True, False])
def test_unlearning_visit_under_fedadam(reset: bool) -> None:
    hosts = FakeHosts()
    made, ledger, _ = federation(hosts, config(federation__aggregator="fedadam"))
    made.run_round("main")
    before = made.head("main")
    request = ForgetRequest(id="r", client_id="b", sample_ids=("s1",))
    record = unlearn(made, request, dataclasses.replace(VISIT, reset_rule_state=reset))
    after = made.head("main")
    if reset:  # its moments hold the client
        anew = made.rule.init(after.state)
        assert after.rule_state.keys() == before.rule_state.keys() == anew.keys()
        assert all(torch.equal(after.rule_state[name], anew[name]) for name in anew)
        assert not all(torch.equal(before.rule_state[name], anew[name]) for name in anew)
    else:
        assert after.rule_state is before.rule_state
    moved = math.sqrt(sum(float((after.state.adapter[n] - t).square().sum()) for n, t in before.state.adapter.items()))
    assert moved == pytest.approx(0.5 * 2.0, rel=1e-4)
    assert record.selected == record.accepted == ("b",) and record.cost.client_steps == 4 and after.round == 2
    assert record.unlearned and ledger.contributions("main", 2) == (), "the update is the data's mirror image"
    asked = hosts.asked[-1]
    assert (asked.kind, asked.objective, asked.parameters) == ("train.visit", "npo", {"beta": 0.5})
    assert asked.cohorts == ((ClientTask(client_id="b", forget=("s1",)),),) and asked.public == ()
    assert asked.state.adapter is before.state.adapter


def test_an_unlearning_visit_that_fails_once_is_asked_for_again() -> None:
    hosts = FakeHosts()
    made, _, _ = federation(hosts)
    hosts.fails_once = {"b"}
    assert unlearn(made, ForgetRequest(id="r", client_id="b")).accepted == ("b",)
    assert [r.kind for r in hosts.asked] == ["query.describe", "train.visit", "train.visit"]


def test_an_unlearning_visit_leaves_out_what_was_forgotten_before() -> None:
    hosts = FakeHosts()
    branch = dataclasses.replace(MAIN, absent=(Absence(client="b", samples=("old",)),))
    made, _, _ = federation(hosts, branch=branch)
    unlearn(made, ForgetRequest(id="r", client_id="b", sample_ids=("s1",)))
    assert hosts.asked[-1].cohorts == ((ClientTask(client_id="b", excluded=("old",), forget=("s1",)),),)


def test_public_rows_travel_only_as_an_anchor() -> None:
    rows = (Sample(id="p", prompt="q", answer="a"),)
    for anchor, sent in (("public", rows), ("retained", ()), ("none", ())):
        hosts = FakeHosts()
        made, _, _ = federation(hosts)
        phase = dataclasses.replace(VISIT, anchor=anchor)
        unlearn(made, ForgetRequest(id="r", client_id="b"), phase, rows)
        assert hosts.asked[-1].public == sent


def test_unlearning_that_fails_changes_nothing() -> None:
    hosts = FakeHosts()
    made, ledger, _ = federation(hosts)
    hosts.changes["b"] = lambda update: None
    with pytest.raises(FederationError, match="b could not unlearn: it crashed"):
        unlearn(made, ForgetRequest(id="r", client_id="b"))
    hosts.changes["b"] = lambda update: dataclasses.replace(update, fingerprint="old")
    with pytest.raises(FederationError, match="b could not unlearn: it was made by other code"):
        unlearn(made, ForgetRequest(id="r", client_id="b"))
    hosts.silent = {"host-0"}
    with pytest.raises(FederationError, match="b could not unlearn: no reply from its host"):
        unlearn(made, ForgetRequest(id="r", client_id="b"))
    assert made.head("main").round == 0 and ledger.records("main") == ()


def test_a_client_that_is_refused_again_and_again_is_not_asked_any_more() -> None:
    hosts = FakeHosts()
    hosts.changes["b"] = lambda u: dataclasses.replace(u, num_examples=-1)
    made, ledger, _ = federation(hosts, config(federation__rounds=5, federation__quarantine_after=2))
    for _ in range(4):
        made.run_round("main")
    asked = [{t.client_id for c in r.cohorts for t in c} for r in hosts.asked if r.kind == "train"]
    assert [("b" in names) for names in asked] == [True, True, False, False]
    first, *_, last = ledger.records("main")
    assert "examples" in first.refused["b"] and last.refused["b"].startswith("in quarantine since round 1: its number")
    assert "b" in last.selected and last.failed == {}
    # computed again from what the ledger holds, and taken up by another process: the same state
    assert made.replay.check("main") == 4
    again, _, _ = federation(hosts, config(federation__rounds=5, federation__quarantine_after=2), ledger=ledger)
    assert again.head("main").gate_state == made.head("main").gate_state
    again.run_round("main")
    assert "b" not in {t.client_id for c in hosts.asked[-1].cohorts for t in c}


@pytest.mark.parametrize("unit", ["none", "sample", "client"])
def test_with_privacy_of_clients_no_norm_decides_over_the_update_of_another(unit: str) -> None:
    """Each update is clipped; a bound from the others' norms would let one of them move more than its own update."""
    hosts = FakeHosts()
    made, _, _ = federation(hosts, config(federation__rounds=5, privacy__unit=unit, federation__norm_factor=3.0))
    for _ in range(4):
        made.run_round("main")
    hosts.changes["b"] = lambda u: dataclasses.replace(u, delta={n: 1000 * t for n, t in u.delta.items()})
    made.gate = dataclasses.replace(made.gate, max_norm=1e9)
    record = made.run_round("main")
    assert ("b" in record.accepted) == (unit == "client")


def test_privacy_of_clients_tells_nothing_without_noise_and_makes_the_same_bits_again() -> None:
    hosts, settings = FakeHosts(), config(privacy__unit="client", privacy__clip_norm=0.1, ledger__checkpoint_every=1)
    made, ledger, _ = federation(hosts, settings)
    for _ in range(3):
        made.run_round("main")
    assert made.replay.check("main") == 3
    records = ledger.records("main")
    assert all(math.isnan(record.loss) and math.isnan(record.scheme_error) for record in records)
    assert all(record.cost.tokens is None and record.cost.client_steps > 0 for record in records)
    assert [dict(one.clients) for one in ledger.charged()] == [dict.fromkeys(SIZES, 1)] * 3  # all are asked
    assert all(not task.noise_key for r in hosts.asked for cohort in r.cohorts for task in cohort)
    # resumed in another process: the same secret, the same bits; on a branch of the same rounds other noise
    again, _, _ = federation(hosts, settings, ledger=ledger)
    assert bits(again) == bits(made)
    made.begin(Branch(name="other", seed=0, rounds=3), INITIAL)
    made.run_round("other")
    assert bits(made, "other")[0] != ledger.last_state("main", 1).state.adapter["x.lora_A"].numpy().tobytes()
    assert ledger.noise_secret("other") != ledger.noise_secret("main")


def test_who_has_a_substitute_pays_for_it_too() -> None:
    """Three of four are asked; without one of them the fourth would be: the sum moves by two clipping bounds."""
    hosts = FakeHosts()
    made, ledger, _ = federation(hosts, config(privacy__unit="client", federation__clients_per_round=3))
    first, second = made.run_round("main"), made.run_round("main")
    lost = dataclasses.replace(first, failed={first.selected[0]: "it crashed"})
    for name in ("again", "without"):
        absent = (Absence(client=first.selected[2]),) if name == "without" else ()
        made.begin(Branch(name=name, seed=0, rounds=3, absent=absent), INITIAL)
    made.run_round("again", lost)
    made.run_round("without")
    charges = [dict(one.clients) for one in ledger.charged()]
    assert charges[:2] == [dict.fromkeys(first.selected, 2), dict.fromkeys(second.selected, 2)]
    assert charges[2] == {first.selected[0]: 1, first.selected[1]: 2, first.selected[2]: 2}  # its place alone
    assert set(charges[3].values()) == {1} and len(charges[3]) == 3  # all three that are left


def test_privacy_of_samples_gives_every_visit_a_key_of_its_own() -> None:
    hosts = FakeHosts()
    made, ledger, _ = federation(hosts, config(privacy__unit="sample"))
    made.begin(dataclasses.replace(B_LEFT, name="other", absent=(Absence(client="b", samples=("s1",)),)), INITIAL)
    for name in ("main", "main", "other"):
        made.run_round(name)
    keys = [task.noise_key for r in hosts.asked if r.kind == "train" for cohort in r.cohorts for task in cohort]
    assert len(keys) == len(set(keys)) == 3 * len(SIZES)
    assert keys[0] in {derive_key(ledger.noise_secret("main"), "dp-sgd", 1, client).hex() for client in SIZES}
    assert dict(ledger.charged()[-1].clients) == {**SIZES, "b": SIZES["b"] - 1}


def test_who_is_quarantined_counts_neither_for_the_quorum_nor_as_unavailable_in_a_replay() -> None:
    hosts = FakeHosts()
    hosts.changes["b"] = lambda u: dataclasses.replace(u, num_examples=-1)
    made, ledger, _ = federation(hosts, config(federation__quarantine_after=1, federation__quorum=1.0 / 2))
    for _ in range(3):
        made.run_round("main")
    replay = Branch(name="again", seed=0, rounds=3)
    made.begin(replay, INITIAL)
    del hosts.changes["b"]  # each branch decides from its own gate state: here b is asked again, and passes
    for record in to_replay(ledger.records("main"), 1).values():  # who left was there from the first round on
        made.run_round("again", record)
    assert all("b" in record.accepted for record in ledger.records("again"))


def test_skipped_rows_are_warned_of_once() -> None:
    hosts = FakeHosts()
    hosts.changes["b"] = lambda u: dataclasses.replace(u, num_examples=1, metrics={"skipped": 2.0})
    made, _, events = federation(hosts)
    for _ in range(3):
        made.run_round("main")
    warnings = [e for e in events if e["event"] == "warning"]
    assert [(w["client"], w["skipped"]) for w in warnings] == [("b", 2)]
    assert warnings[0]["text"] == "left out whole, because longer than the context: 2 rows of b"


def test_a_round_gives_the_config_and_the_seed_of_its_branch() -> None:
    hosts = FakeHosts()
    made, _, _ = federation(hosts, branch=dataclasses.replace(MAIN, seed=17))
    made.run_round("main")
    request = hosts.asked[-1]
    assert request.info.seed == 17
    assert request.config == config().to_json() and request.objective == "lm"


# Branches: where they begin, and that an interrupted one goes on with the same bits


class Stops(MemoryLedger):
    """Stops the process, so to say, right before or after a cohort is stored or a round is committed."""

    def __init__(self, method: str, call: int, after: bool) -> None:
        super().__init__()
        self.method, self.left, self.after = method, call, after

    def _stop(self, method: str, after: bool) -> None:
        if self.method == method and self.after == after:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def append(self, outcome: CohortOutcome) -> None:
        self._stop("append", False)
        super().append(outcome)
        self._stop("append", True)

    def commit(self, record: RoundRecord, after: RoundState, keep: bool) -> None:
        self._stop("commit", False)
        super().commit(record, after, keep)
        self._stop("commit", True)


@pytest.mark.parametrize("aggregator", ["fedavg", "fedadam"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("method", "call"), [("append", 1), ("append", 3), ("append", 6), ("commit", 1), ("commit", 2)]
)
def test_another_process_goes_on_with_the_same_bits(aggregator: str, after: bool, method: str, call: int) -> None:
    settings = config(federation__aggregator=aggregator, train__cohort=2)
    reference = learn(FakeHosts(), settings)
    ledger = Stops(method, call, after)
    hosts = FakeHosts()
    made, _, _ = federation(hosts, settings, ledger=ledger)
    with pytest.raises(KeyboardInterrupt):
        while made.head("main").round < 3:
            made.run_round("main")
    stored = {(round, update.client_id) for round in (1, 2, 3) for update in ledger.contributions("main", round)}
    hosts.asked.clear()
    again, _, _ = federation(hosts, settings, ledger=ledger)
    while again.head("main").round < 3:
        again.run_round("main")
    assert bits(again) == bits(reference)
    assert without_time(ledger.records("main")) == without_time(reference.ledger.records("main"))
    asked = {(r.info.round, t.client_id) for r in hosts.asked if r.kind == "train" for c in r.cohorts for t in c}
    assert not asked & stored, "what is stored is not trained again"


def test_who_was_asked_stays_who_is_asked() -> None:
    """A selection that was written down is not made again, even if more clients are there by now."""
    ledger = Stops("commit", 1, after=False)
    made, _, _ = federation(FakeHosts(), ledger=ledger)
    with pytest.raises(KeyboardInterrupt):
        made.run_round("main")
    more = FakeHosts(sizes={**SIZES, "e": 9})
    again, _, _ = federation(more, ledger=ledger)
    record = again.run_round("main")
    assert record.selected == ("a", "b", "c", "d") and trained_clients(more) == []
    assert bits(again) == bits_of_first_round()


@pytest.mark.parametrize("aggregator", ["fedavg", "fedadam"])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_branch_begins_at_its_parents_state_also_where_none_is_kept(aggregator: str, every: int) -> None:
    settings = config(federation__aggregator=aggregator, federation__joins={"b": 3}, ledger__checkpoint_every=every)
    made = learn(FakeHosts(), settings)
    made.begin(dataclasses.replace(B_LEFT, name="r/rollback", parent="main", fork=2))
    records = {record.round: record for record in made.ledger.records("main")}
    made.run_round("r/rollback", records[3])
    never = learn(FakeHosts(sizes={c: n for c, n in SIZES.items() if c != "b"}), settings)
    assert bits(made, "r/rollback") == bits(never) != bits(made)
    assert made.head("r/rollback").gate_state == never.head("main").gate_state
    assert [r.branch for r in made.ledger.records("r/rollback")] == ["main", "main", "r/rollback"]


def test_a_branch_no_longer_knows_the_norms_of_who_left() -> None:
    made = learn(FakeHosts())
    made.begin(dataclasses.replace(B_LEFT, name="r/exclude", parent="main", fork=3, rounds=4))
    here = made.head("r/exclude")
    assert "b" in {client for row in made.head("main").gate_state.norms for client, _ in row}
    assert [[client for client, _ in row] for row in here.gate_state.norms] == [["a", "c", "d"]] * 3
    assert here.state.adapter is made.head("main").state.adapter


def test_a_branch_is_begun_once_and_forgotten_for_good() -> None:
    made, ledger, _ = federation(FakeHosts())
    made.begin(MAIN, INITIAL)
    assert [branch.name for branch in ledger.branches()] == ["main"]
    made.run_round("main")
    made.begin(dataclasses.replace(MAIN, name="r/x", parent="main", fork=1))
    made.run_round("r/x")
    made.forget_branch("r/x")
    assert [branch.name for branch in ledger.branches()] == ["main"]
    with pytest.raises(IntegrityError, match="no branch 'r/x'"):
        made.head("r/x")
    before = bits(made)
    made.forget_heads()
    assert bits(made) == before, "the head is had again from the ledger"


def test_cohorts_that_no_host_serves_whole_are_stored_apart() -> None:
    class Silos(FakeHosts):
        """Each host serves its own clients alone."""

        def _answer(self, request: HostRequest) -> HostReply:
            reply = super()._answer(request)
            own = set("ab") if request.host == "host-0" else set("cd")
            return dataclasses.replace(reply, clients={c: facts for c, facts in reply.clients.items() if c in own})

    hosts = Silos(2)
    made, ledger, _ = federation(hosts, config(train__cohort=4))
    made.run_round("main")
    selection = ledger.selection("main", 1)
    assert selection is not None and selection.cohorts == (("a",), ("b",), ("c",), ("d",))
    assert [outcome.cohort for outcome in ledger.outcomes("main", 1)] == [0, 1, 2, 3]
    assert bits(made) == bits_of_first_round()
