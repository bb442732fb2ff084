"""Hosts that are plain functions, and a federation with them: rounds without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from oblivion.config import RunConfig, load_config
from oblivion.federation.rounds import Federation
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.rounds import Absence, Branch
from oblivion.provenance import code_fingerprint
from oblivion.run.events import Event, Observer
from oblivion.seeding import torch_generator
from oblivion.types import ClientTask, ClientUpdate, HostReply, HostRequest, RoundInfo, TrainRequest, VisitRequest

SIZES = {"a": 4, "b": 3, "c": 2, "d": 1}
INITIAL = {"x.lora_A": torch.zeros(2, 3), "x.lora_B": torch.zeros(3, 2)}
Change = Callable[[ClientUpdate], ClientUpdate | None]


def visit(task: ClientTask, info: RoundInfo, size: int, steps: int = 4) -> ClientUpdate:
    """A stand-in for training: an update that depends on seed, round, client and excluded rows alone."""
    generator = torch_generator(info.seed, "fake", info.round, task.client_id)
    left = len(task.forget) if task.forget else size - len(task.excluded)
    return ClientUpdate(
        client_id=task.client_id,
        round=info.round,
        delta={name: left * torch.randn(t.shape, generator=generator) for name, t in INITIAL.items()},
        num_examples=left,
        steps=steps,
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

    def ask(self, requests: Sequence[HostRequest]) -> Iterator[HostReply]:
        self.asked += requests
        replies = [self._answer(request) for request in requests if request.host not in self.silent]
        yield from replies[::-1] if self.turned else replies

    def _answer(self, request: HostRequest) -> HostReply:
        if request.kind == "query.describe":
            return HostReply(host=request.host, clients={c: {"samples": n} for c, n in self.sizes.items()})
        assert isinstance(request, TrainRequest)
        updates, failures = [], {}
        for task in (task for cohort in request.cohorts for task in cohort):
            client = task.client_id
            steps = request.local_epochs if isinstance(request, VisitRequest) else 4
            update = self.changes.get(client, lambda u: u)(visit(task, request.info, self.sizes[client], steps))
            if client in self.fails_once or update is None:
                self.fails_once.discard(client)
                failures[client] = "it crashed"
            else:
                updates.append(update)
        return HostReply(host=request.host, updates=tuple(updates[::-1] if self.turned else updates), failures=failures)


def config(**changes: Any) -> RunConfig:
    far = {"federation.rounds": 3, "train.learning-rate": 100.0}  # the stand-ins for updates are large
    return load_config(None, far | {k.replace("__", "."): v for k, v in changes.items()})


MAIN = Branch(name="main", seed=0, rounds=3)
B_LEFT = dataclasses.replace(MAIN, absent=(Absence(client="b"),))


def federation(
    hosts: FakeHosts, settings: RunConfig | None = None, branch: Branch = MAIN, ledger: MemoryLedger | None = None
) -> tuple[Federation, MemoryLedger, list[Event]]:
    """A federation at the beginning of a branch, or where the given ledger left it."""
    kept = ledger or MemoryLedger()
    events: list[Event] = []
    made = Federation(settings or config(), hosts, kept, INITIAL, Observer(events.append))
    made.describe()
    made.begin(branch, INITIAL)
    return made, kept, events


def bits(made: Federation, branch: str = "main") -> list[bytes]:
    head = made.head(branch)
    return [t.numpy().tobytes() for t in (*head.state.adapter.values(), *head.rule_state.values())]
