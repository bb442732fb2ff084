"""Who takes part, who asked, what became of it, and what a commit erases."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oblivion.aggregation.gate import GateState
from oblivion.aggregation.round import RoundState
from oblivion.config import LedgerConfig
from oblivion.errors import ConfigError, IntegrityError
from oblivion.files import remove
from oblivion.ledger.erasure import commit_removal, finish_erasure
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.register import EXCLUSIONS, MAIN, SIMULATED, RequestStatus
from oblivion.ledger.requests import issue
from oblivion.ledger.rounds import Absence, Branch, CohortOutcome, RoundRecord, Selection
from oblivion.ledger.store import StoredLedger
from oblivion.types import ClientUpdate, GlobalState

CLIENTS = ("a", "b", "c")
"""`c` joins at round 3 of 4."""


class Run:
    """A ledger and its register; `again` opens both anew."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ledger, self.register = open_ledger(root, LedgerConfig())

    def again(self) -> Run:
        self.ledger.close()
        self.ledger, self.register = open_ledger(self.root, LedgerConfig())
        return self

    def ask(self, client: str, samples: tuple[str, ...] | None = None) -> RequestStatus:
        key = self.register.simulated_key(client)
        now = self.ledger.book.now()
        return self.register.receive(issue(client, samples, key, self.register.federation, now))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    made.register.enrol_simulated(dict.fromkeys(CLIENTS))
    yield made
    made.ledger.close()


def state(round: int) -> RoundState:
    adapter = {"x": torch.full((2,), float(round))}
    return RoundState(round=round, state=GlobalState(adapter=adapter), rule_state={}, gate_state=GateState())


def rounds(ledger: StoredLedger, name: str, first: int, last: int, gone: str = "") -> None:
    for round in range(first, last + 1):
        clients = tuple(c for c in CLIENTS if c != gone and (c != "c" or round > 2))
        cohorts = tuple((client,) for client in clients)
        ledger.begin(Selection(branch=name, round=round, selected=clients, cohorts=cohorts))
        for place, client in enumerate(clients):
            delta = {"x": torch.ones(2)}
            update = ClientUpdate(client_id=client, round=round, delta=delta, num_examples=1, steps=1)
            ledger.append(CohortOutcome(branch=name, round=round, cohort=place, updates=(update,)))
        record = RoundRecord(branch=name, round=round, selected=clients, accepted=clients, loss=1.0)
        ledger.commit(record, state(round), keep=round == last)


def learn(run: Run) -> None:
    run.ledger.open_branch(Branch(name=MAIN, seed=0, rounds=4), state(0))
    rounds(run.ledger, MAIN, 1, 4)


def try_removal(run: Run, asked: RequestStatus, name: str, fork: int, last: int) -> str:
    branch, client = f"{asked.request.id}/{name}", asked.request.client_id
    absent = (*run.register.exclusions(), asked.absence)
    run.ledger.open_branch(
        Branch(name=branch, seed=0, rounds=last, parent=run.register.head(), fork=fork, absent=absent)
    )
    rounds(run.ledger, branch, fork + 1, last, client if asked.request.whole_client else "")
    return branch


def facts(asked: RequestStatus, guarantee: str = "exact", from_round: int = 3) -> dict[str, Any]:
    return {
        "trial": "x",
        "whole_client": asked.request.whole_client,
        "guarantee": guarantee,
        "from_round": from_round,
        "before": {},
        "after": {},
    }


def held(run: Run, kind: str) -> set[tuple[str, int]]:
    """The branch and round of every record of a kind."""
    names = {run.ledger.number(branch.name): branch.name.split("/")[-1] for branch in run.ledger.branches()}
    return {(names[record.branch], record.round) for record in run.ledger.book.find(kind)}


# Clients


def test_a_run_has_one_id_for_ever(run: Run, tmp_path: Path) -> None:
    federation = run.register.federation
    assert len(federation) == 32 and run.again().register.federation == federation
    other = Run(tmp_path / "other")
    assert other.register.federation != federation
    other.ledger.close()


def test_a_client_keeps_the_key_of_its_own_that_it_was_enrolled_with(run: Run) -> None:
    mine, other = (Ed25519PrivateKey.generate().public_key() for _ in range(2))
    for _ in range(2):  # the second time nothing happens
        run.register.enrol({"silo-1": mine.public_bytes_raw(), "a": other.public_bytes_raw()})
    assert run.register.clients() == ("a", "b", "c", "silo-1") and run.register.public_key("nobody") is None
    with pytest.raises(ConfigError, match="'a' is enrolled with another key, and only that one counts"):
        run.register.enrol({"a": Ed25519PrivateKey.generate().public_key().public_bytes_raw()})
    run.again()
    run.register.enrol_simulated(dict.fromkeys((*CLIENTS, "silo-1")))
    known = run.register.public_key("a")
    assert known is not None and known.public_bytes_raw() == other.public_bytes_raw()
    for client in ("a", "silo-1"):
        with pytest.raises(ConfigError, match=f"'{client}' has no key here; it signs its request itself"):
            run.register.simulated_key(client)


def test_simulated_clients_are_enrolled_once(run: Run) -> None:
    entries = len(run.ledger.book.entries())
    run.register.enrol_simulated(dict.fromkeys(CLIENTS))
    assert len(run.ledger.book.entries()) == entries
    run.register.enrol_simulated(dict.fromkeys((*CLIENTS, "d")))
    assert run.register.clients() == ("a", "b", "c", "d")


def test_a_crash_between_key_and_enrolment_is_made_good(run: Run) -> None:
    own = run.ledger.keys.read_json(SIMULATED)
    run.ledger.keys.write_json(SIMULATED, {**own, "d": Ed25519PrivateKey.generate().private_bytes_raw().hex()})
    run.register.enrol_simulated(dict.fromkeys((*CLIENTS, "d")))
    known = run.register.public_key("d")
    assert known is not None
    assert known.public_bytes_raw() == run.register.simulated_key("d").public_key().public_bytes_raw()


# Requests


def test_a_request_goes_from_state_to_state(run: Run) -> None:
    asked = run.ask("c")
    assert asked.state == "received" and asked.open and asked.absence == Absence(client="c")
    for word in ("planned", "running", "running", "verified", "running", "verified"):
        run.register.move(asked.request.id, word)  # type: ignore[arg-type]
        assert run.again().register.asked(asked.request.id).state == word
    moves = [record.content["state"] for record in run.ledger.book.find("request.state")]
    assert moves == ["received", "planned", "running", "verified", "running", "verified"], "staying is not written"
    run.register.move(asked.request.id, "refused", "a ground")
    end = run.register.asked(asked.request.id)
    assert (end.state, end.ground, end.open) == ("refused", "a ground", False)
    with pytest.raises(ConfigError, match=f"{asked.request.id} is refused already"):
        run.register.move(asked.request.id, "running")


def test_a_request_is_due_a_month_after_its_receipt(run: Run) -> None:
    asked = run.ask("c")
    assert asked.received_at < asked.due_at and asked.received_at[:8] != asked.due_at[:8]
    assert asked.received_at[11:] == asked.due_at[11:]


def test_an_open_request_for_the_same_is_found(run: Run) -> None:
    whole, some = run.ask("c"), run.ask("c", ("s2", "s1"))
    assert run.register.open_request("c", None) == whole
    assert run.register.open_request("c", ("s1", "s2")) == some == run.register.open_request("c", ("s2", "s1"))
    for client, samples in (("c", ("s1",)), ("b", None), ("b", ("s1", "s2"))):
        assert run.register.open_request(client, samples) is None
    run.register.move(whole.request.id, "refused", "x")
    assert run.register.open_request("c", None) is None
    assert [asked.request.id for asked in run.register.all_asked()] == [whole.request.id, some.request.id]


def test_an_unknown_request_is_named_with_the_known_ones(run: Run) -> None:
    asked = run.ask("c")
    with pytest.raises(ConfigError, match=f"there is no request 'req-x'.*{asked.request.id}"):
        run.register.asked("req-x")


def test_a_nonce_counts_once(run: Run) -> None:
    asked = run.ask("c")
    entries = len(run.ledger.book.entries())
    assert run.register.receive(asked.request) == asked and len(run.ledger.book.entries()) == entries
    with pytest.raises(IntegrityError, match="its nonce was used before"):
        run.register.receive(dataclasses.replace(asked.request, sample_ids=("s1",)))


# What a commit erases


def test_an_exact_removal_keeps_its_own_line_alone(run: Run) -> None:
    learn(run)
    asked = run.ask("c")
    try_removal(run, asked, "exclude", fork=4, last=5)
    branch = try_removal(run, asked, "rollback", fork=2, last=4)
    erased = commit_removal(run.ledger, run.register, asked, branch, facts(asked))
    line = {("main", 1), ("main", 2), ("rollback", 3), ("rollback", 4)}
    for again in (run, run.again()):
        assert again.register.head() == branch and again.register.asked(asked.request.id).state == "committed"
        assert held(again, "round") == held(again, "contribution") == held(again, "selection") == line
        assert held(again, "state") == {("main", 0), ("rollback", 4)}
        assert again.ledger.restorable(branch) == (0, 1, 2, 3, 4)
        assert again.register.exclusions() == (Absence(client="c"),) and again.register.clients() == ("a", "b")
    # main: rounds 3 and 4 of three clients and a state; exclude: round 5 of two and a state
    assert erased == {
        "branch": 1,
        "selection": 3,
        "cohort": 8,
        "contribution": 8,
        "round": 3,
        "state": 2,
        "client": 1,
        "key": 5,
    }
    assert sorted(run.ledger.keys.names()) == sorted(
        [
            *(f"contributions/{c}/{run.ledger.number(name)}" for c in "ab" for name in (MAIN, branch)),
            f"states/{run.ledger.number(MAIN)}/0",
            f"states/{run.ledger.number(branch)}/4",
        ]
    )
    assert "c" not in run.ledger.keys.read_json(SIMULATED)
    assert run.ledger.keys.read_json(EXCLUSIONS) == [{"client": "c", "samples": None}]


@pytest.mark.parametrize("guarantee", ["none", "approximate"])
def test_of_an_approximate_removal_the_head_alone_stays_from_t_u_on(run: Run, guarantee: str) -> None:
    learn(run)
    asked = run.ask("c")
    branch = try_removal(run, asked, "exclude", fork=4, last=6)
    commit_removal(run.ledger, run.register, asked, branch, facts(asked, guarantee))
    assert held(run, "state") == {("main", 0), ("exclude", 6)}
    assert held(run, "contribution") == {("main", 1), ("main", 2)}
    assert held(run, "round") == {*(("main", n) for n in range(1, 5)), ("exclude", 5), ("exclude", 6)}
    assert run.ledger.restorable(branch) == (0, 1, 2, 6)
    for record in run.again().ledger.records(branch):
        assert "c" not in record.selected and "c" not in record.accepted
    assert [record.round for record in run.ledger.records(branch)] == [1, 2, 3, 4, 5, 6]


def test_samples_go_and_their_client_stays(run: Run) -> None:
    learn(run)
    asked, other = run.ask("c", ("s1", "s2")), run.ask("c")
    branch = try_removal(run, asked, "rollback", fork=2, last=4)
    commit_removal(run.ledger, run.register, asked, branch, facts(asked))
    assert run.register.exclusions() == (Absence(client="c", samples=("s1", "s2")),)
    assert run.register.clients() == CLIENTS and run.register.simulated_key("c")
    assert all("c" in record.selected for record in run.ledger.records(branch) if record.round > 2)
    assert run.register.asked(other.request.id).open, "its other request still waits"
    whole = try_removal(run, other, "rollback", fork=2, last=4)
    commit_removal(run.ledger, run.register, other, whole, facts(other))
    assert run.register.head() == whole
    assert run.register.exclusions() == (other.absence,), "the ids of its samples need not be known any more"
    assert run.ledger.keys.read_json(EXCLUSIONS) == [{"client": "c", "samples": None}]
    assert run.again().register.exclusions() == (other.absence,)


def test_other_requests_wait_for_the_new_head_and_those_of_the_client_go(run: Run) -> None:
    learn(run)
    asked, same, other, idle, done = (
        run.ask("c"),
        run.ask("c", ("s1",)),
        run.ask("b"),
        run.ask("a"),
        run.ask("a", ("s",)),
    )
    run.register.move(other.request.id, "verified")
    run.register.move(done.request.id, "refused", "no")
    trial = try_removal(run, other, "exclude", fork=4, last=5)
    branch = try_removal(run, asked, "rollback", fork=2, last=4)
    commit_removal(run.ledger, run.register, asked, branch, facts(asked))
    states = {asked.request.id: (asked.state, asked.ground) for asked in run.again().register.all_asked()}
    assert states == {
        asked.request.id: ("committed", ""),
        other.request.id: ("received", "another removal was committed since; try one for it again"),
        idle.request.id: ("received", ""),
        done.request.id: ("refused", "no"),
    }
    with pytest.raises(ConfigError, match="there is no request"):
        run.register.asked(same.request.id)
    assert trial not in {known.name for known in run.ledger.branches()}


def test_a_client_that_was_never_selected_takes_nothing_with_it(run: Run) -> None:
    run.register.enrol_simulated(dict.fromkeys((*CLIENTS, "d")))
    learn(run)
    asked = run.ask("d")
    branch = try_removal(run, asked, "rollback", fork=4, last=4)
    erased = commit_removal(run.ledger, run.register, asked, branch, facts(asked, from_round=0))
    assert erased == {"client": 1, "key": 0}
    assert run.ledger.restorable(branch) == (0, 1, 2, 3, 4) and run.ledger.last_state(branch, 4).round == 4


def test_who_was_forgotten_is_not_enrolled_again(run: Run) -> None:
    learn(run)
    asked = run.ask("c")
    branch = try_removal(run, asked, "rollback", fork=2, last=4)
    commit_removal(run.ledger, run.register, asked, branch, facts(asked))
    run.register.enrol_simulated(dict.fromkeys(CLIENTS))
    assert run.again().register.clients() == ("a", "b")
    with pytest.raises(ConfigError, match="'c' has no key here"):
        run.register.simulated_key("c")


@pytest.mark.parametrize("samples", [None, ("s1", "s2")])
def test_an_older_ledger_put_back_with_an_older_anchor_is_refused(
    run: Run, tmp_path: Path, samples: tuple[str, ...] | None
) -> None:
    """The anchor knows no better then, but the list of who was forgotten does."""
    learn(run)
    asked = run.ask("c", samples)
    branch = try_removal(run, asked, "rollback", fork=2, last=4)
    run.ledger.close()
    kept = {path: tmp_path / f"kept-{path.name}" for path in (run.root / "ledger", run.root / "keys/checkpoint.json")}
    for path, copy in kept.items():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    run.again()
    commit_removal(run.ledger, run.register, asked, branch, facts(asked))
    run.ledger.close()
    for path, copy in kept.items():
        remove(path)
        copy.rename(path)
    with pytest.raises(IntegrityError, match=r"older copy: it does not know that c .* forgotten; restore the newer"):
        open_ledger(run.root, LedgerConfig())


def test_erasing_is_finished_once_and_can_be_repeated(run: Run) -> None:
    learn(run)
    asked = run.ask("c")
    branch = try_removal(run, asked, "rollback", fork=2, last=4)
    commit_removal(run.ledger, run.register, asked, branch, facts(asked))

    def everything() -> dict[str, bytes]:
        paths = (path for path in run.root.rglob("*") if path.is_file() and path.name != "ledger.db-shm")
        return {str(path.relative_to(run.root)): path.read_bytes() for path in paths}

    before = everything()
    finish_erasure(run.ledger, run.register)
    assert everything() == before
    run.again()
    assert everything() == before
