"""The stored ledger and the one in memory, side by side: they agree, whatever is done, and whenever it is reopened."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from oblivion.aggregation.gate import GateState
from oblivion.aggregation.round import RoundState
from oblivion.config import LedgerConfig
from oblivion.errors import IntegrityError
from oblivion.ledger import schema
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.rounds import Absence, Branch, CohortOutcome, Ledger, RoundRecord, Selection
from oblivion.ledger.store import StoredLedger
from oblivion.types import ClientUpdate, Cost, GlobalState

CLIENTS = ("a", "b", "c", "d")
MEMORY = Path("/dev/shm")
values = st.floats(-1e6, 1e6, width=32)
branches = st.integers(0, 10**6)
"""Which of the branches that there are, counted round."""


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([value, -value, value / 3]), "y": torch.full((1, 2), value)}


def plain(adapter: Any) -> dict[str, Any]:
    return {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in sorted(adapter.items())}


def plain_state(state: RoundState) -> tuple[Any, ...]:
    parts = (state.state.adapter, state.state.residual, state.rule_state)
    return (state.round, state.gate_state, *map(plain, parts))


def plain_update(update: ClientUpdate) -> tuple[Any, ...]:
    said = (update.client_id, update.round, update.num_examples, update.steps, update.fingerprint)
    return (*said, plain(update.delta), dict(update.metrics), dict(update.norms))


def outcome_of(call: Callable[[], Any]) -> Any:
    """What a call gives, or that it was refused."""
    try:
        return call()
    except IntegrityError:
        return IntegrityError


def line_of(ledger: Ledger, name: str, rounds: range) -> dict[str, Any]:
    """All that can be asked of a branch."""
    return {
        "branch": ledger.branch(name),
        "records": ledger.records(name),
        "restorable": ledger.restorable(name),
        "states": [outcome_of(lambda r=r: plain_state(ledger.last_state(name, r))) for r in rounds],  # type: ignore[misc]
        "contributions": [[plain_update(update) for update in ledger.contributions(name, r)] for r in rounds],
        "selections": [ledger.selection(name, r) for r in rounds],
        "outcomes": [ledger.outcomes(name, r) for r in rounds],
    }


@functools.cache
def empty_database() -> bytes:
    """A ledger's database as the migration makes it, which takes longer than everything else here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        schema.create(path)
        return path.read_bytes()


class Ledgers(RuleBasedStateMachine):
    """Two ledgers of one federation."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = contextlib.ExitStack()
        self.ends.enter_context(patch.object(os, "fsync", lambda handle: None))  # a test of what is said, not of disks
        empty = empty_database()
        self.ends.enter_context(patch.object(schema, "create", lambda path: path.write_bytes(empty)))
        folder = tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
        self.root = Path(self.ends.enter_context(folder))
        self.memory = MemoryLedger()
        self.count = 0

    @initialize(precision=st.sampled_from(["float32", "bfloat16"]), value=values)
    def begin_main(self, precision: Any, value: float) -> None:
        self.settings = LedgerConfig(precision=precision)
        self.stored: StoredLedger = open_ledger(self.root, self.settings)[0]
        self._both(lambda ledger: ledger.open_branch(Branch(name="main", seed=0, rounds=9), self._state(0, value)))

    def teardown(self) -> None:
        if hasattr(self, "stored"):
            self.agree()
            self.open_again()
            self.agree()
            self.stored.close()
        self.ends.close()

    def _both(self, do: Callable[[Any], Any]) -> Any:
        """Do the same to both; they refuse alike."""
        one, other = (outcome_of(lambda ledger=ledger: do(ledger)) for ledger in (self.memory, self.stored))  # type: ignore[misc]
        assert one == other
        return one

    def _pick(self, number: int) -> Branch:
        known = self.memory.branches()
        return known[number % len(known)]

    def _next_round(self, name: str) -> int:
        own = [record.round for record in self.memory.records(name) if record.branch == name]
        return max(own, default=self.memory.branch(name).fork) + 1

    @staticmethod
    def _state(round: int, value: float) -> RoundState:
        state = GlobalState(adapter=tensors(value), residual={"r": torch.tensor(value)})
        norms = tuple((("a", abs(value) / 3),) for _ in range(round))
        return RoundState(
            round=round, state=state, rule_state={"m/x": torch.ones(2)}, gate_state=GateState(norms=norms)
        )

    def _under_way(self) -> list[tuple[Selection, list[int]]]:
        """Rounds that were begun and are not over, each with the cohorts that are not stored."""
        found = []
        for branch in self.memory.branches():
            selection = self.memory.selection(branch.name, self._next_round(branch.name))
            if selection is not None:
                there = {outcome.cohort for outcome in self.memory.outcomes(branch.name, selection.round)}
                found.append((selection, [i for i in range(len(selection.cohorts)) if i not in there]))
        return found

    def _waiting(self) -> list[tuple[Selection, list[int]]]:
        return [(selection, places) for selection, places in self._under_way() if places]

    @precondition(lambda self: len(self.memory.branches()) < 6)
    @rule(parent=branches, back=st.integers(0, 3), seed=st.integers(0, 9), absent=st.sets(st.sampled_from(CLIENTS)))
    def open_fork(self, parent: int, back: int, seed: int, absent: set[str]) -> None:
        origin = self._pick(parent)
        fork = max(0, self._next_round(origin.name) - 1 - back)
        gone = tuple(Absence(client=c, samples=None if c < "c" else ("s", c)) for c in sorted(absent))
        self.count += 1
        name = f"r/{self.count}"
        branch = Branch(name=name, seed=seed, rounds=9, parent=origin.name, fork=fork, absent=gone)
        self._both(lambda ledger: ledger.open_branch(branch))

    @precondition(lambda self: len(self.memory.branches()) < 3)
    @rule(value=values)
    def open_root(self, value: float) -> None:
        self.count += 1
        branch = Branch(name=f"r/{self.count}", seed=1, rounds=9)
        self._both(lambda ledger: ledger.open_branch(branch, self._state(0, value)))

    @precondition(lambda self: len(self._under_way()) < len(self.memory.branches()))
    @rule(number=branches, order=st.permutations(CLIENTS), size=st.integers(1, 3))
    def begin(self, number: int, order: list[str], size: int) -> None:
        begun = {selection.branch for selection, _ in self._under_way()}
        idle = [branch.name for branch in self.memory.branches() if branch.name not in begun]
        name = idle[number % len(idle)]
        cohorts = tuple(tuple(order[i : i + size]) for i in range(0, len(order), size))
        selected = tuple(sorted(order))
        selection = Selection(branch=name, round=self._next_round(name), selected=selected, cohorts=cohorts)
        assert self._both(lambda ledger: ledger.begin(selection)) is None

    @precondition(lambda self: self._waiting())
    @rule(number=branches, place=branches, value=values, split=st.integers(0, 3), reason=st.text(max_size=9))
    def append(self, number: int, place: int, value: float, split: int, reason: str) -> None:
        waiting = self._waiting()
        selection, places = waiting[number % len(waiting)]
        outcome = self._outcome(selection, places[place % len(places)], value, split, reason)
        assert self._append(outcome) is None

    def _outcome(self, selection: Selection, place: int, value: float, split: int, reason: str) -> CohortOutcome:
        cohort = selection.cohorts[place]
        return CohortOutcome(
            branch=selection.branch,
            round=selection.round,
            cohort=place,
            updates=tuple(self._update(client, selection.round, value) for client in cohort[split:]),
            refused=dict.fromkeys(cohort[:split][:1], reason),
            failed=dict.fromkeys(cohort[:split][1:], reason),
        )

    def _append(self, outcome: CohortOutcome) -> Any:
        rounded = dataclasses.replace(outcome, updates=tuple(map(self._as_stored, outcome.updates)))
        both = [outcome_of(lambda: self.memory.append(rounded)), outcome_of(lambda: self.stored.append(outcome))]
        assert both[0] == both[1]
        return both[0]

    @staticmethod
    def _update(client: str, round: int, value: float) -> ClientUpdate:
        return ClientUpdate(
            client_id=client,
            round=round,
            delta=tensors(value + ord(client)),
            num_examples=3,
            steps=2,
            metrics={"loss": value / 7},
            norms={"x": abs(value) / 3},
        )

    def _as_stored(self, update: ClientUpdate) -> ClientUpdate:
        kind = getattr(torch, self.settings.precision)
        return dataclasses.replace(update, delta={n: t.to(kind).float() for n, t in update.delta.items()})

    def _record(self, name: str, round: int, value: float, unlearned: bool) -> RoundRecord:
        there = tuple(update.client_id for update in self.memory.contributions(name, round))
        unlearned = unlearned and not there
        return RoundRecord(
            branch=name,
            round=round,
            selected=CLIENTS,
            accepted=("a",) if unlearned else there,
            failed=dict.fromkeys(sorted(set(CLIENTS) - set(there)), "no reply"),
            loss=value / 3,
            cost=Cost(client_steps=len(there)),
            unlearned=unlearned,
        )

    @rule(number=branches, keep=st.booleans(), value=values, unlearned=st.booleans())
    def commit(self, number: int, keep: bool, value: float, unlearned: bool) -> None:
        name = self._pick(number).name
        record = self._record(name, self._next_round(name), value, unlearned)
        done = self._both(lambda ledger: ledger.commit(record, self._state(record.round, value), keep))
        assert done is None

    @precondition(lambda self: len(self.memory.branches()) > 3)
    @rule(number=branches)
    def drop(self, number: int) -> None:
        parents = {branch.parent for branch in self.memory.branches()}
        leaves = [branch.name for branch in self.memory.branches() if branch.name not in parents]
        name = leaves[number % len(leaves)]
        assert self._both(lambda ledger: ledger.drop(name)) is None

    @rule(number=branches, off=st.sampled_from([-1, 1, 2]))
    def what_is_out_of_order_is_refused(self, number: int, off: int) -> None:
        branch = self._pick(number)
        round = self._next_round(branch.name) + off
        record, state = self._record(branch.name, round, 0.0, False), self._state(0, 0.0)
        selection = Selection(branch=branch.name, round=round, selected=(), cohorts=())
        for refused in (
            lambda ledger: ledger.open_branch(branch),
            lambda ledger: ledger.begin(selection),
            lambda ledger: ledger.commit(record, state, True),
        ):
            assert self._both(refused) is IntegrityError
        for begun, places in self._under_way():
            for place in sorted(set(range(len(begun.cohorts))) - set(places)):
                assert self._append(self._outcome(begun, place, 1.0, 0, "")) is IntegrityError
            assert self._both(lambda ledger, again=begun: ledger.begin(again)) is IntegrityError  # type: ignore[misc]

    @rule()
    def open_again(self) -> None:
        self.stored.close()
        self.stored = open_ledger(self.root, self.settings)[0]

    @rule(number=branches)
    def look(self, number: int) -> None:
        name = self._pick(number).name
        rounds = range(-1, self._next_round(name) + 2)
        assert line_of(self.stored, name, rounds) == line_of(self.memory, name, rounds)

    @invariant()
    def the_same_branches(self) -> None:
        if hasattr(self, "stored"):
            assert self.stored.branches() == self.memory.branches()

    def agree(self) -> None:
        for number in range(len(self.memory.branches())):
            self.look(number)
        needed = {record.blob for record in self.stored.book.find("contribution", "state")}
        assert needed <= self.stored.blobs.names()


Ledgers.TestCase.settings = settings(max_examples=24, stateful_step_count=40, suppress_health_check=list(HealthCheck))
TestLedgers = Ledgers.TestCase


def test_the_machine_does_what_it_is_for() -> None:
    """By hand, through every rule once: else a rule that always returns early would find nothing."""
    machine = Ledgers()
    machine.begin_main("bfloat16", 1.5)
    machine.begin(0, list(CLIENTS), 2)
    machine.append(0, 0, 1 / 3, 0, "")
    machine.open_again()
    machine.what_is_out_of_order_is_refused(0, 1)
    machine.append(0, 0, 2 / 3, 1, "no")
    machine.commit(0, False, 0.1, False)
    machine.open_fork(0, 1, 3, {"a", "d"})
    machine.open_root(2.0)
    machine.commit(1, True, 0.2, True)
    machine.look(0)
    machine.drop(1)
    (main, fork) = machine.memory.branches()
    assert machine.stored.records("main")[0].accepted == ("a", "b", "d")
    assert machine.stored.restorable("main") == (0, 1) and machine.stored.restorable(fork.name) == (0, 1)
    assert main.name == "main" and fork.fork == 0 and machine.memory.records(fork.name)[0].unlearned
    machine.teardown()
