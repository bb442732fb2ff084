"""A run directory with a small but complete ledger, made without a model: for tests that look at the ledger alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oblivion import run_format
from oblivion.aggregation.gate import GateState
from oblivion.aggregation.round import RoundState
from oblivion.config import LedgerConfig, RunConfig
from oblivion.ledger.book import Record
from oblivion.ledger.erasure import commit_removal
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.register import Register, RequestStatus
from oblivion.ledger.requests import issue
from oblivion.ledger.rounds import Absence, Branch, CohortOutcome, RoundRecord, Selection
from oblivion.ledger.store import StoredLedger
from oblivion.types import ClientUpdate, GlobalState

CLIENTS = ("ana", "ben", "cem", "dov", "eve")
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
SETTINGS = LedgerConfig(checkpoint_every=2)


class Clock:
    """A clock that a test sets; every look at it takes a second."""

    def __init__(self, time: datetime = START) -> None:
        self.time = time

    def __call__(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time


def tensors(*parts: object) -> dict[str, torch.Tensor]:
    """An adapter of two tensors, other values for other words."""
    generator = torch.Generator().manual_seed(sum(map(ord, repr(parts))))
    return {name: torch.randn(4, 3, generator=generator) for name in ("layer.lora_A", "layer.lora_B")}


def update(client: str, round: int, branch: str = "main") -> ClientUpdate:
    norms = {"layer.lora_A": 1.5 + round, "layer.lora_B": 0.25}
    return ClientUpdate(
        client_id=client,
        round=round,
        delta=tensors(branch, round, client),
        num_examples=7 + len(client),
        steps=3,
        metrics={"loss": 2.5, "tokens": 96.0},
        fingerprint="f" * 16,
        norms=norms,
    )


def state(branch: str, round: int, clients: tuple[str, ...] = ()) -> RoundState:
    norms = tuple(tuple((client, 1.5) for client in clients) for _ in range(round))
    adapter = tensors(branch, round, "state")
    return RoundState(round=round, state=GlobalState(adapter=adapter), rule_state={}, gate_state=GateState(norms=norms))


def run_round(ledger: StoredLedger, branch: str, round: int, clients: tuple[str, ...], keep: bool = False) -> None:
    """One round in two cohorts, as the server stores it."""
    middle = len(clients) // 2
    cohorts = tuple(cohort for cohort in (clients[:middle], clients[middle:]) if cohort)
    ledger.begin(Selection(branch=branch, round=round, selected=clients, cohorts=cohorts))
    for place, cohort in enumerate(cohorts):
        updates = tuple(update(client, round, branch) for client in cohort)
        ledger.append(CohortOutcome(branch=branch, round=round, cohort=place, updates=updates))
    record = RoundRecord(branch=branch, round=round, selected=clients, accepted=clients, loss=2.5)
    ledger.commit(record, state(branch, round, clients), keep=keep or round % SETTINGS.checkpoint_every == 0)


def ask(register: Register, client: str, samples: tuple[str, ...] | None = None) -> RequestStatus:
    """A request that the client's simulated key signs."""
    key = register.simulated_key(client)
    return register.receive(issue(client, samples, key, register.federation, register.book.now()))


@dataclass
class World:
    """A run directory and what was in its ledger before a removal was committed.

    Attributes
    ----------
    root : Path
        The run directory; nobody has it open.
    erased : list of (Record, bytes)
        The records that the commit erased, with their salts.
    erased_blobs : mapping of str to bytes
        The blobs that went with them.
    request : str
        The id of the committed request.
    gone_key : Ed25519PrivateKey
        The request key of the client that was forgotten.
    """

    root: Path
    erased: list[tuple[Record, bytes]]
    erased_blobs: Mapping[str, bytes]
    request: str
    gone_key: Ed25519PrivateKey


def salts(ledger: StoredLedger) -> dict[int, bytes]:
    with ledger.book._engine.connect() as connection:
        return dict(connection.exec_driver_sql("SELECT seq, salt FROM records").all())


def learned(root: Path, now: Callable[[], datetime] | None = None) -> tuple[StoredLedger, Register]:
    """Four rounds of five clients, the last of which joins at round 2; both parts are open."""
    ledger, register = begun(root, now)
    for round in range(1, 5):
        run_round(ledger, "main", round, CLIENTS if round > 1 else CLIENTS[:-1])
    return ledger, register


def begun(root: Path, now: Callable[[], datetime] | None = None) -> tuple[StoredLedger, Register]:
    """A ledger before its first round; both parts are open."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.toml").write_text(RunConfig(ledger=SETTINGS).to_toml())
    (root / run_format.FILE).write_bytes(run_format.format_file())
    ledger, register = open_ledger(root, SETTINGS, now=now or Clock())
    register.enrol_simulated(dict.fromkeys(CLIENTS))
    ledger.open_branch(Branch(name="main", seed=1, rounds=4), state("main", 0))
    return ledger, register


def trial(ledger: StoredLedger, register: Register, asked: RequestStatus, name: str, fork: int, last: int) -> str:
    """A removal's branch: the rounds after `fork` without the client."""
    branch, request = f"{asked.request.id}/{name}", asked.request
    parent = register.head()
    absent = (*register.exclusions(), Absence(client=request.client_id, samples=request.sample_ids))
    ledger.open_branch(Branch(name=branch, seed=1, rounds=last, parent=parent, fork=fork, absent=absent))
    clients = tuple(c for c in CLIENTS if not ledger.branch(branch).leaves(c))
    for round in range(fork + 1, last + 1):
        run_round(ledger, branch, round, clients, keep=round == last)
    return branch


def commit(
    ledger: StoredLedger,
    register: Register,
    asked: RequestStatus,
    branch: str,
    guarantee: str = "exact",
    after: bytes | None = None,
) -> None:
    facts = {
        "trial": branch.rpartition("/")[2],
        "whole_client": asked.request.whole_client,
        "guarantee": guarantee,
        "from_round": 2,
        "before": {"adapter_model.safetensors": "0" * 64},
        "after": {"adapter_model.safetensors": "1" * 64 if after is None else hashlib.sha256(after).hexdigest()},
    }
    commit_removal(ledger, register, register.asked(asked.request.id), branch, facts)


def build(root: Path, now: Callable[[], datetime] | None = None) -> World:
    """Learn, answer a request with two trials beside an oracle, commit one; then ask again and try once more."""
    ledger, register = learned(root, now)
    asked, samples = ask(register, "eve"), ask(register, "ben", ("rows/1", "rows/2"))
    register.move(asked.request.id, "running")
    oracle = f"{asked.request.id}/oracle"
    ledger.open_branch(Branch(name=oracle, seed=1, rounds=2, history=False), state(oracle, 0))
    for round in (1, 2):
        run_round(ledger, oracle, round, CLIENTS[:-1])
    ledger.drop(oracle)
    unlearned = trial(ledger, register, asked, "local", fork=4, last=4)
    record = RoundRecord(branch=unlearned, round=5, selected=("eve",), accepted=("eve",), loss=2.5, unlearned=True)
    ledger.commit(record, state(unlearned, 5), keep=True)
    branch = trial(ledger, register, asked, "rollback", fork=1, last=4)
    register.move(asked.request.id, "verified")

    gone_key = register.simulated_key("eve")
    before, own = {record.seq: record for record in ledger.book.find()}, salts(ledger)
    blobs = {name: ledger.blobs.get(name) for name in ledger.blobs.names()}
    commit(ledger, register, asked, branch)
    left = {record.seq for record in ledger.book.find()}
    erased = [(record, own[seq]) for seq, record in before.items() if seq not in left]

    trial(ledger, register, samples, "rollback", fork=2, last=4)
    register.move(samples.request.id, "running")
    gone = {record.blob: blobs[record.blob] for record, _ in erased if record.blob}
    ledger.close()
    return World(root=root, erased=erased, erased_blobs=gone, request=asked.request.id, gone_key=gone_key)
