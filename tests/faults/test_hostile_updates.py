"""Hosts that speak for others' clients, and claims that would let one client move the model or a shown number.

Each host has one client of its own, as a silo has. What an honest client sends depends on round and client alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from oblivion.aggregation.gate import FOR_OTHERS
from oblivion.aggregation.rules import aggregators
from oblivion.config import RunConfig, load_config
from oblivion.federation.rounds import Federation
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.rounds import Absence, Branch
from oblivion.provenance import code_fingerprint
from oblivion.run.events import Observer
from oblivion.seeding import torch_generator
from oblivion.training.reach import reach
from oblivion.types import ClientUpdate, HostReply, HostRequest, RoundInfo, TrainRequest
from oblivion.visit_steps import steps_per_visit

ROWS = 40
SHAPES = {"x.lora_A.weight": (2, 3), "x.lora_B.weight": (3, 2)}
INITIAL = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
EVE = "client-2"
Change = Callable[[HostReply], HostReply]


def visit(client: str, info: RoundInfo, names: Sequence[str]) -> ClientUpdate:
    generator = torch_generator(0, "honest", info.round, client)
    return ClientUpdate(
        client_id=client,
        round=info.round,
        delta={name: 0.02 * torch.randn(SHAPES[name], generator=generator) for name in names},
        num_examples=ROWS,
        steps=steps_per_visit(ROWS, 8, 4),
        metrics={"loss": 2.0, "tokens": 10.0},
        fingerprint=code_fingerprint(),
    )


class Silos:
    """As many hosts as clients, each with its own; the replies of some are bent on the way."""

    def __init__(self, clients: int = 5, **changes: Change) -> None:
        self.clients = [f"client-{k}" for k in range(clients)]
        self.changes = {name.replace("_", "-"): change for name, change in changes.items()}
        self.trained: Sequence[str] = tuple(SHAPES)

    def names(self) -> tuple[str, ...]:
        return tuple(f"host-{client}" for client in self.clients)

    def ask(self, requests: Sequence[HostRequest]) -> Iterator[HostReply]:
        for request in requests:
            client = request.host.removeprefix("host-")
            if request.kind == "query.describe":
                yield HostReply(host=request.host, clients={client: {"samples": ROWS}})
                continue
            assert isinstance(request, TrainRequest)
            names = self.trained
            if request.config["lora"]["scheme"] == "rolora":
                names = [name for name in names if ("lora_B" in name) == bool(request.info.round % 2)]
            reply = HostReply(host=request.host, updates=(visit(client, request.info, names),))
            yield self.changes.get(client, lambda it: it)(reply)


def settings(rounds: int = 60, **changes: Any) -> RunConfig:
    defaults: dict[str, Any] = {"federation.rounds": rounds}
    if changes.get("train__optimizer") == "sgd":
        defaults["train.learning-rate"] = 0.01
    return load_config(None, defaults | {k.replace("__", "."): v for k, v in changes.items()})


def learn(hosts: Silos, config: RunConfig, branch: Branch | None = None) -> Federation:
    made = Federation(config, hosts, MemoryLedger(), INITIAL, Observer())
    made.describe()
    made.begin(branch or Branch(name="main", seed=0, rounds=config.federation.rounds), INITIAL)
    for _ in range(config.federation.rounds):
        made.run_round("main")
    return made


def own(**changes: Any) -> Change:
    """The client's own update with other claims."""
    return lambda reply: dataclasses.replace(reply, updates=(dataclasses.replace(reply.updates[0], **changes),))


def scaled(factor: float) -> Change:
    def change(reply: HostReply) -> HostReply:
        (update,) = reply.updates
        return own(delta={name: factor * tensor for name, tensor in update.delta.items()})(reply)

    return change


def forging(victims: Sequence[str], how: str) -> Change:
    """Besides its own update, something in the name of others."""

    def change(reply: HostReply) -> HostReply:
        (update,) = reply.updates
        own_name = update.client_id
        others = [victim for victim in victims if victim != own_name]
        if how == "a failure":
            return dataclasses.replace(reply, failures=dict.fromkeys(others, "it crashed"))
        delta = {} if how == "no tensors" else update.delta
        forged = [dataclasses.replace(update, client_id=victim, delta=delta) for victim in others]
        return dataclasses.replace(reply, updates=(update, *forged))

    return change


# A host speaks for itself


@pytest.mark.parametrize("how", ["no tensors", "a valid update", "a failure"])
@pytest.mark.parametrize("asked", [2, 3, 4, 5])
def test_a_host_that_speaks_for_others_harms_itself_alone(asked: int, how: str) -> None:
    hosts = Silos()
    hosts.changes[EVE] = forging(hosts.clients, how)
    made = learn(hosts, settings(federation__clients_per_round=asked))
    for record in made.ledger.records("main"):
        assert set(record.refused) <= {EVE} and not record.failed
        assert not {*record.accepted} & {*record.refused, *record.failed}
        for outcome in made.ledger.outcomes("main", record.round):
            assert {*outcome.refused, *outcome.failed} <= {EVE}
    assert list(made.head("main").gate_state.quarantined(3)) == [EVE]
    assert FOR_OTHERS in made.head("main").gate_state.quarantined(3)[EVE]


def test_two_hosts_that_name_a_third_do_not_harm_it() -> None:
    hosts = Silos()
    for name in (EVE, "client-3"):
        hosts.changes[name] = forging(["client-0"], "no tensors")
    made = learn(hosts, settings(20, federation__clients_per_round=4))
    assert list(made.head("main").gate_state.quarantined(3)) == [EVE, "client-3"]
    assert all(set(record.refused) <= {EVE, "client-3"} for record in made.ledger.records("main"))
    assert all("client-0" in record.accepted for record in made.ledger.records("main") if "client-0" in record.selected)


@pytest.mark.parametrize("name", ["../x", "\x1b[2J", "", "CLIENT-1", "client-9", None, 3, "A" * 99])
def test_a_name_that_nobody_asked_for_stands_nowhere(name: Any) -> None:
    hosts = Silos()
    hosts.changes[EVE] = lambda reply: dataclasses.replace(
        reply, updates=(*reply.updates, dataclasses.replace(reply.updates[0], client_id=name))
    )
    (record,) = learn(hosts, settings(1)).ledger.records("main")
    assert record.refused == {EVE: FOR_OTHERS} and len(record.accepted) == 4


# The number of steps and of examples


@pytest.mark.parametrize("steps", [0, 1, 19, 21, 10**9])
@pytest.mark.parametrize("rule", ["fednova", "scaffold"])
def test_steps_are_those_that_the_examples_take(rule: str, steps: int) -> None:
    hosts = Silos(client_2=own(steps=steps))
    config = settings(1, federation__aggregator=rule, train__optimizer="sgd")
    (record,) = learn(hosts, config).ledger.records("main")
    assert "number of steps" in record.refused[EVE] and len(record.accepted) == 4


def test_fewer_examples_take_fewer_steps_and_reach_less_far() -> None:
    """With one example claimed, a step counts as much as ten would; so its update may have a tenth of the length."""
    few = own(num_examples=1, steps=4)
    config = settings(1, federation__aggregator="fednova", train__optimizer="sgd")
    (record,) = learn(Silos(client_2=few), config).ledger.records("main")
    assert "above the bound of 0.04" in record.refused[EVE], "honest with forty examples, and impossible with one"


def test_forgotten_rows_are_no_examples() -> None:
    branch = Branch(name="main", seed=0, rounds=1, absent=(Absence(client=EVE, samples=("one", "two")),))
    (record,) = learn(Silos(), settings(1), branch).ledger.records("main")
    assert f"from 1 to {ROWS - 2}" in record.refused[EVE]
    with_less = own(num_examples=ROWS - 2)
    (record,) = learn(Silos(client_2=with_less), settings(1), branch).ledger.records("main")
    assert EVE in record.accepted, "five batches as before"


# What an update does, from the first round on


@pytest.mark.parametrize("scheme", ["fedit", "ffa", "rolora"])
@pytest.mark.parametrize("asked", [2, 5])
def test_the_first_rounds_have_a_bound(asked: int, scheme: str) -> None:
    hosts = Silos()
    hosts.changes[EVE] = scaled(1000.0)
    if scheme == "ffa":
        hosts.trained = [name for name in SHAPES if "lora_B" in name]
    made = learn(hosts, settings(6, federation__clients_per_round=asked, lora__scheme=scheme))
    records = made.ledger.records("main")
    assert any(EVE in record.selected for record in records)
    assert all(EVE not in record.accepted for record in records)
    assert all("above the bound" in why for record in records for why in record.refused.values())


def test_without_a_norm_factor_the_absolute_bound_alone_holds() -> None:
    config = settings(1, federation__norm_factor=0.0)
    assert EVE in learn(Silos(client_2=scaled(1000.0)), config).ledger.records("main")[0].accepted
    assert EVE in learn(Silos(client_2=scaled(1e6)), config).ledger.records("main")[0].refused


def rule_settings(rule: str) -> RunConfig:
    more: dict[str, Any] = {"train__optimizer": "sgd"} if rule in ("fednova", "scaffold", "feddyn") else {}
    if rule == "flower":
        more["federation__parameters"] = {"strategy": "FedAvg"}
    return settings(1, federation__aggregator=rule, federation__clients_per_round=8, **more)


CLAIMS: dict[str, Change] = {
    "a thousand times": scaled(1000.0),
    "as far as a visit goes": lambda reply: scaled(0.999 * REACH / length(reply.updates[0].delta))(reply),
    "no step": own(steps=0),
    "one step": own(steps=1),
    "one example": own(num_examples=1, steps=4),
    "many examples": own(num_examples=10**9, steps=10**9),
}
TRAIN = settings().train
REACH = reach(TRAIN, settings().privacy, ROWS, 12, 0.0)


def length(tensors: Any) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


@pytest.mark.parametrize("rule", aggregators.names())
def test_one_client_moves_the_model_at_most_as_far_as_a_visit_goes(rule: str) -> None:
    """What each rule makes of one of eight: see the table in docs/aggregation.md."""
    config = rule_settings(rule)
    honest = learn(Silos(8), config).head("main").state.adapter
    far = reach(config.train, config.privacy, ROWS, 12, 0.0)
    server = 12**0.5 * 2 * config_rate(rule)  # FedAdam and its kin step by their own rate, whatever is sent
    share = {"feddyn": 2 / 8}.get(rule, 1 / 8)
    for name, change in CLAIMS.items():
        model = learn(Silos(8, client_2=change), config).head("main").state.adapter
        moved = length({n: model[n] - honest[n] for n in model})
        usual = 0.1  # no honest update is longer, and a robust rule may follow another of them
        assert moved <= max(server, share * far + usual), name


def config_rate(rule: str) -> float:
    return float(getattr(aggregators.get(rule)(), "learning_rate", 0.0)) if rule in ADAPTIVE else 0.0


ADAPTIVE = ("fedadagrad", "fedadam", "fedyogi")


# What is shown


@pytest.mark.parametrize("claim", [1e12, -1e12, 1e6, math.inf, math.nan, -5.0])
def test_the_loss_of_a_round_does_not_follow_one_claim(claim: float) -> None:
    hosts = Silos(client_2=own(metrics={"loss": claim, "tokens": -1e9}))
    (record,) = learn(hosts, settings(1)).ledger.records("main")
    assert EVE in record.accepted
    assert 1.6 <= record.loss <= 0.8 * 2 + 0.2 * 20
    assert record.cost.tokens == 40
