"""What a hostile host says beside its updates: of clients, of measurements, of failures, inline and over the wire."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from test_bad_updates import CLIENTS, INITIAL, visit

from oblivion.config import load_config
from oblivion.errors import FederationError, IntegrityError
from oblivion.federation.measure import measure_clients
from oblivion.federation.rounds import Federation
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.rounds import Branch
from oblivion.metrics.suites import make_suite
from oblivion.replies import LONGEST_REASON, MOST_CLIENTS, MOST_ROWS, OTHERS, SKIPPED, measured, one_line, served
from oblivion.run.events import Event, Observer
from oblivion.types import ClientTask, DescribeRequest, GlobalState, HostReply, HostRequest, TrainRequest
from oblivion.wire import check_reply, pack_reply, unpack_reply

HONEST = {client: {"samples": rows} for client, rows in CLIENTS.items()}
GOOD = {"loss": (20.0, 10.0), "probability": (0.5, 1.0), "skipped": (0.0, 1.0)}
GOOD |= dict.fromkeys(("exact_memorization", "extraction_strength"), (0.5, 1.0))
ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\n\u202e\x9b31m"
NAMES = ("../../etc/x", "", "A", "a" * 65, "a\n", ESCAPES, "stranger ", "ä", "a/b", "_a", "a b")
NUMBERS = (-5, -1, 10**12, 10**30, True, False, 1.0, math.nan, math.inf, "5", None, [], {}, b"1", MOST_ROWS + 1)

Change = Callable[[HostReply, HostRequest], HostReply]


class TwoHosts:
    """Two hosts that serve everybody; what the second says is changed."""

    def __init__(self, change: Change = lambda reply, request: reply, mute: str = "") -> None:
        self.change, self.mute = change, mute

    def names(self) -> tuple[str, ...]:
        return ("good", "zz-evil")

    def ask(self, requests: Sequence[HostRequest]) -> Iterator[HostReply]:
        for request in requests:
            reply = self.honest(request)
            yield self.change(reply, request) if request.host == "zz-evil" else reply

    def honest(self, request: HostRequest) -> HostReply:
        tasks = [task for cohort in request.cohorts for task in cohort]
        if request.kind == "query.describe":
            return HostReply(host=request.host, clients=HONEST)
        if request.kind == "evaluate":
            return HostReply(host=request.host, metrics={task.client_id: GOOD for task in tasks})
        assert isinstance(request, TrainRequest)
        return HostReply(host=request.host, updates=tuple(visit(task, request.info) for task in tasks))


def federation(
    hosts: TwoHosts, known: dict[str, int] | None = CLIENTS, **settings: Any
) -> tuple[Federation, MemoryLedger, list[Event]]:
    far = {"train.learning-rate": 0.4}  # the stand-ins for updates are large
    config = load_config(None, {"federation.rounds": 2, "train.cohort": 1, **far, **settings})
    events: list[Event] = []
    ledger = MemoryLedger()
    made = Federation(config, hosts, ledger, INITIAL, Observer(events.append))
    made.describe(known)
    made.begin(Branch(name="main", seed=0, rounds=2), INITIAL)
    return made, ledger, events


def warnings(events: list[Event]) -> list[str]:
    return [event["text"] for event in events if event["event"] == "warning"]


def is_safe(text: str) -> bool:
    return text.isprintable() and len(text) <= LONGEST_REASON + 100


# --- describe


def says(clients: Any) -> Change:
    def change(reply: HostReply, request: HostRequest) -> HostReply:
        return dataclasses.replace(reply, clients=clients) if request.kind == "query.describe" else reply

    return change


def test_a_host_changes_neither_the_population_nor_the_sizes_of_a_run_whose_data_is_known() -> None:
    invented = {f"invented-{k}": {"samples": 10**6} for k in range(60_000)}
    lies = {client: {"samples": 1} for client in CLIENTS}
    for said in (invented, lies, {**HONEST, **invented}, {c: {"samples": 10**9} for c in CLIENTS}):
        made, _, events = federation(TwoHosts(says(said)))
        assert made.sizes == CLIENTS
        told = warnings(events)
        assert 1 <= len(told) <= 2 and all("host zz-evil: " in text and is_safe(text) for text in told)
        record = made.run_round("main")
        assert set(record.accepted) == set(CLIENTS) and not record.refused and not record.failed


def test_where_data_is_not_known_a_lie_never_lowers_an_honest_clients_bound() -> None:
    first = sorted(CLIENTS)[0]
    made, _, events = federation(TwoHosts(says({first: {"samples": 1}})), known=None)
    assert made.sizes == CLIENTS
    assert any("say different numbers" in text and "zz-evil" in text for text in warnings(events))
    assert first in made.run_round("main").accepted


@pytest.mark.parametrize("known", [None, CLIENTS], ids=["unknown", "known"])
def test_names_and_numbers_that_cannot_be_are_dropped_with_the_hosts_name(known: dict[str, int] | None) -> None:
    facts: list[Any] = [{"samples": value} for value in NUMBERS] + [{}, None, [], "x", 5, {"Samples": 1}]
    attacks: list[Any] = [{name: {"samples": 1}} for name in (*NAMES, 5, None, ("a",))]
    attacks += [{client: fact} for client in list(CLIENTS)[:2] for fact in facts] + [None, [], "text", 7]
    for said in attacks:
        made, _, events = federation(TwoHosts(says(said)), known)
        assert made.sizes == CLIENTS and made.serves == {c: ["good"] for c in CLIENTS}
        told = warnings(events)
        assert all(text.startswith("host zz-evil: ") and is_safe(text) for text in told)
        assert told or not isinstance(said, dict)


def test_too_many_clients_and_nobody_at_all() -> None:
    many = {f"c{k}": {"samples": 1} for k in range(MOST_CLIENTS + 1)}
    assert served(many)[0] == {} and "more than 100000" in served(many)[1][0]

    class Alone(TwoHosts):
        def names(self) -> tuple[str, ...]:
            return ("zz-evil",)

    with pytest.raises(FederationError, match="no host says that it serves a client"):
        federation(Alone(says({"../x": {}})))


def test_a_client_that_nobody_serves_is_unavailable_and_no_traceback() -> None:
    left = sorted(CLIENTS)[0]

    class Alone(TwoHosts):
        def names(self) -> tuple[str, ...]:
            return ("zz-evil",)

    made, _, events = federation(Alone(says({c: f for c, f in HONEST.items() if c != left})))
    made.sizes.update(CLIENTS)
    record = made.run_round("main")
    assert record.failed == {left: "was unavailable"} and left not in record.accepted
    found = measure_clients(GlobalState(adapter=INITIAL), made, [ClientTask(client_id=left)], 100)
    assert found == {} and "no host serves it" in warnings(events)[-1]


def test_hosts_that_were_not_asked_and_second_answers_are_not_heard() -> None:
    class Echo(TwoHosts):
        def ask(self, requests: Sequence[HostRequest]) -> Iterator[HostReply]:
            for reply in super().ask(requests):
                yield reply
                yield dataclasses.replace(reply, clients={"later": {"samples": 3}})
                yield dataclasses.replace(reply, host=ESCAPES, clients={"other": {"samples": 3}})
                yield dataclasses.replace(reply, host=7, clients={"other": {"samples": 3}})  # type: ignore[arg-type]

    made, _, _ = federation(Echo(), known=None)
    assert made.sizes == CLIENTS and set(made.serves[sorted(CLIENTS)[0]]) == {"good", "zz-evil"}


# --- evaluation


def measure(metrics: Callable[[list[str]], Any], **task: Any) -> tuple[dict[str, Any], list[str]]:
    """What is known of the clients after the second host answered an evaluation so."""

    def change(reply: HostReply, request: HostRequest) -> HostReply:
        asked = [t.client_id for cohort in request.cohorts for t in cohort]
        return dataclasses.replace(reply, metrics=metrics(asked)) if request.kind == "evaluate" else reply

    made, _, events = federation(TwoHosts(change))
    events.clear()
    tasks = [ClientTask(client_id=client, **task) for client in sorted(CLIENTS)]
    return dict(measure_clients(GlobalState(adapter=INITIAL), made, tasks, 100)), warnings(events)


BOUNDS = make_suite("tofu").client_bounds()
CLIENT_METRICS = (*BOUNDS, SKIPPED)


def test_a_host_overwrites_nothing_of_others_and_adds_nobody() -> None:
    honest, told = measure(lambda asked: dict.fromkeys(asked, GOOD))
    assert set(honest) == set(CLIENTS) and not told
    forged = {"probability": (1e-308, 1e-308)}

    def everybody(asked: list[str]) -> Any:
        others = [*CLIENTS, ESCAPES, *(f"{c} (forgotten)" for c in CLIENTS), *(f"x{k}" for k in range(50_000))]
        return {**dict.fromkeys(others, forged), **dict.fromkeys(asked, GOOD)}

    found, told = measure(everybody)
    assert found == honest
    assert len(told) == 1 and told[0].startswith("host zz-evil: 5") and is_safe(told[0])


BAD_PAIRS: list[Any] = [
    (math.nan, 1.0), (math.inf, 1.0), (-math.inf, 1e-308), (1.0, math.nan), (1.0, math.inf), (1.0, -1.0), (0.5, 0.5),
    (1.0, 1e-308), (1.0, 10.0**12), (1.0, 0.0), (-1.0, 1.0), (-1e-3, 1.0), (10**400, 1.0), (1.0, 10**400), (True, 1.0),
    (1.0, True), ("1", 1.0), (1.0, None), (1.0,), (1.0, 1.0, 1.0), None, "ab", 5, {}, [], {"a": 1, "b": 2},
]  # fmt: skip


def test_values_that_cannot_be_true_are_dropped_and_the_rule_is_named() -> None:
    attacks = [{name: pair} for name in CLIENT_METRICS for pair in BAD_PAIRS]
    attacks += [{name: (1.01, 1.0)} for name in CLIENT_METRICS if name != "loss"] + [{"loss": (1e13, 1.0)}]
    attacks += [{name: (0.5, 1.0)} for name in ("rouge", ESCAPES, "", "probability ", 5, None, "x" * 10**6)]
    attacks += [{"loss": (1.0, 7 * 100.0 + 1)}, {"probability": (1.0, 8.0)}]
    assert len(attacks) > 140
    for attack in attacks:
        taken, told = measured({"a": attack}, {"a": 7}, 100, BOUNDS)
        assert taken == {}, attack
        assert len(told) == 1 and is_safe(told[0])
    for attack in (None, [], 5, "x"):
        assert measured({"a": attack}, {"a": 7}, 100, BOUNDS)[0] == {}
    for attack in attacks[:-2:20]:
        found, told = measure(lambda asked, attack=attack: dict.fromkeys(asked, attack))  # type: ignore[misc]
        assert told and all(text.startswith("host zz-evil: ") for text in told)
        assert all(math.isfinite(m.value) for metrics in found.values() for m in metrics.values())


def test_what_honest_clients_say_passes() -> None:
    honest = {"loss": (7 * 100 * 3.5, 700.0), "probability": (7.0, 7.0), "exact_memorization": (0.0, 0.0)}
    assert measured({"a": honest}, {"a": 7}, 100, BOUNDS) == ({"a": honest}, [])
    assert measured({"a": {"probability": (1 + 1e-8, 1.0)}}, {"a": 7}, 100, BOUNDS)[1] == [], "rounding is no lie"


def test_portions_are_named_only_where_rows_are_asked_for() -> None:
    portions = lambda asked: {f"{c} ({part})": GOOD for c in asked for part in ("forgotten", "kept")}  # noqa: E731
    found, told = measure(portions)
    assert not any("(" in name for name in found) and told
    too_many = {"probability": (2.0, 2.0)}
    found, told = measure(lambda asked: {f"{c} (forgotten)": too_many for c in asked}, forget=("row-1",))
    assert not any("(" in name for name in found) and any("weight" in text for text in told), "one row was asked for"


@pytest.mark.parametrize("metrics", [None, [], "x", 5])
def test_metrics_that_are_no_mapping_cost_their_host_alone(metrics: Any) -> None:
    found, _ = measure(lambda asked: metrics)
    assert 0 < len(found) < len(CLIENTS)


# --- reasons

TEXTS: list[Any] = [
    "x" * 3_000_035, ESCAPES * 1000, ESCAPES, "a\nb\nc", "\x00", "\x7f\x85", "\u2028\u2029", "\u202eabc", "\ud800", "",
    None, 5, [], {}, b"bytes", "\u200b" * 400, " " * 10**6 + "end",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_reasons_are_one_short_printable_line_everywhere(text: Any) -> None:
    def fails(reply: HostReply, request: HostRequest) -> HostReply:
        if request.kind != "train":
            return reply
        asked = [t.client_id for cohort in request.cohorts for t in cohort]
        return HostReply(host=request.host, failures=dict.fromkeys(asked, text))

    made, ledger, events = federation(TwoHosts(fails), **{"federation.quorum": 0.1})
    record = made.run_round("main")
    kept = [*record.failed.values(), *(why for o in ledger.outcomes("main", 1) for why in o.failed.values())]
    kept += [event["reason"] for event in events if event["event"] == "client.failed"]
    assert len(record.failed) >= 1 and all(is_safe(why) and len(why) <= LONGEST_REASON for why in kept)
    strict, _, _ = federation(TwoHosts(fails), **{"federation.quorum": 1.0})
    with pytest.raises(FederationError) as caught:
        strict.run_round("main")
    assert str(caught.value).isprintable() and len(str(caught.value)) < LONGEST_REASON * 10


def test_failures_of_others_are_nobodys() -> None:
    def blames(reply: HostReply, request: HostRequest) -> HostReply:
        return dataclasses.replace(reply, failures={**dict.fromkeys(CLIENTS, "down"), **dict.fromkeys(NAMES, ESCAPES)})

    made, _, events = federation(TwoHosts(blames), known=None, **{"federation.quorum": 0.1})
    record = made.run_round("main")
    assert not any(name in record.failed for name in NAMES) and OTHERS not in record.failed
    assert all(is_safe(text) for text in warnings(events))
    assert record.accepted and "down" not in record.failed.values()


@pytest.mark.parametrize("failures", [None, [], "x", 5])
def test_failures_that_are_no_mapping(failures: Any) -> None:
    made, _, _ = federation(TwoHosts(lambda reply, request: dataclasses.replace(reply, failures=failures)))
    assert set(made.run_round("main").accepted) == set(CLIENTS)


def test_one_line() -> None:
    assert one_line("no reply\tfrom  its\nhost") == "no reply from its host"
    assert one_line("été 漢字 ✓") == "été 漢字 ✓"
    assert len(one_line("x" * 301)) == LONGEST_REASON and one_line("x" * 300) == "x" * 300


# --- over the wire

FINE = {"host": "h", "updates": [], "failures": {}, "metrics": {}, "clients": {}}
MALFORMED: list[dict[str, Any]] = [
    *({"clients": {"a": {"samples": value}}} for value in ("5", True, False, 1.5, None, [], {}, "x", 5.0)),
    *({"clients": value} for value in (None, [1], "x", 5, {"a": None}, {"a": 5}, {"a": [1]})),
    *({"failures": {"a": value}} for value in (None, 5, True, [], {}, 1.5)),
    *({"failures": value} for value in (None, "x", 5, [1])),
    *({"metrics": {"a": {"loss": value}}} for value in (None, 5, [], [1], [1, 2, 3], ["1", 1], [True, 1], [1, None])),
    *({"metrics": {"a": {"loss": value}}} for value in ([1, {}], [[], 1], {"x": 1, "y": 2}, "12", ["inf", 1])),
    *({"metrics": value} for value in (None, "x", 5, {"a": 5}, {"a": [1]}, [1])),
    *({"host": value} for value in (None, 5, True, [], {})),
]


def wired(text: str) -> RecordDict:
    records = pack_reply(HostReply(host="h"))
    records.config_records["message"] = ConfigRecord({"json": text})
    return records


@pytest.mark.parametrize("change", MALFORMED, ids=range(len(MALFORMED)))
def test_a_reply_is_read_strictly(change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="not of the form that both sides agree on"):
        unpack_reply(wired(json.dumps({**FINE, **change})))


@pytest.mark.parametrize(
    "text",
    [
        "NaN", "[]", "5", "null", "{", '"x"', "[" * 100_000, '{"host":' * 3000,
        json.dumps({**FINE, "metrics": {"a": {"loss": [math.nan, 1]}}}),
        json.dumps({**FINE, "metrics": {"a": {"loss": [1, math.inf]}}}),
        json.dumps({**FINE, "metrics": {"a": {"loss": [-math.inf, 1]}}}),
        json.dumps({**FINE, "clients": {"a": {"samples": 10**30}}}),
        json.dumps(FINE)[:-1] + ', "host": "other"}',
        json.dumps(FINE).replace('"h"', "1e999"),
    ],
    ids=range(14),
)  # fmt: skip
def test_json_that_is_none_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        unpack_reply(wired(text))
    assert is_safe(str(caught.value)) and len(str(caught.value)) < 120


def test_numbers_that_are_none_travel_and_are_dropped() -> None:
    sent = HostReply(host="h", metrics={"a": {"loss": (math.nan, 1.0), "probability": (0.5, 1.0)}})
    back = unpack_reply(pack_reply(sent))
    assert measured(back.metrics, {"a": 1}, 10, BOUNDS)[0] == {"a": {"probability": (0.5, 1.0)}}


def test_a_description_of_everything_is_bounded_before_it_is_read() -> None:
    request = DescribeRequest(host="h", config={})
    many = {f"client-{k}": {"samples": 1} for k in range(200_000)}
    with pytest.raises(IntegrityError, match="no text of at most"):
        check_reply(pack_reply(HostReply(host="h", clients=many)), request)
