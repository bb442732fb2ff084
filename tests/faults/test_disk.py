"""A disk that is full, a directory that is taken: nothing is lost, nothing is half there, and the message helps.

Faults come in two ways: `watch_steps` lets every single durable step fail, and the system's own calls are made to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from oblivion import files
from oblivion.aggregation.gate import GateState
from oblivion.aggregation.round import RoundState
from oblivion.config import LedgerConfig, RunConfig
from oblivion.errors import ConfigError, IntegrityError, OblivionError
from oblivion.files import Step, make_folder, remove, remove_partial, watch_steps, write_atomically, write_folder
from oblivion.ledger import schema
from oblivion.ledger.erasure import commit_removal
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.register import Register
from oblivion.ledger.requests import issue
from oblivion.ledger.rounds import Absence, Branch, CohortOutcome, RoundRecord, Selection
from oblivion.ledger.store import StoredLedger
from oblivion.run.directory import RunDirectory
from oblivion.types import ClientUpdate, GlobalState

FULL = "No space left on device"


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk:
    """A watch that lets one durable step fail, as a full disk would: the `at`-th, counted from 1."""

    def __init__(self, at: int, when: Literal["before", "after"] = "before") -> None:
        self.at, self.when = at, when
        self.seen: list[Step] = []

    def __call__(self, when: Literal["before", "after"], step: Step) -> None:
        if when == self.when:
            self.seen.append(step)
            if len(self.seen) == self.at:
                full()

    @property
    def struck(self) -> bool:
        return len(self.seen) >= self.at


@contextlib.contextmanager
def watched(watch: files.Watch) -> Iterator[None]:
    watch_steps(watch)
    try:
        yield
    finally:
        watch_steps(None)


@pytest.fixture(autouse=True)
def unwatched() -> Iterator[None]:
    yield
    watch_steps(None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# One file


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "os.open", "pathlib.Path.mkdir"])
def test_a_full_disk_leaves_the_old_file_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(where, full)
    with pytest.raises(OblivionError, match=f"{FULL}; free some space or choose another --out") as caught:
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert str(path) in str(caught.value) and caught.value.exit_code == 1
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_disk_that_fills_up_in_the_middle_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def short(name: Path, *arguments: Any, **options: Any) -> Any:
        file = open(name, *arguments, **options)  # noqa: SIM115

        class Full:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                file.write(data[: len(data) // 2])
                full()

        return Full()

    monkeypatch.setattr(files, "open", short, raising=False)
    with pytest.raises(OblivionError, match=FULL):
        write_atomically(path, b"new and longer")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_every_step_of_a_file_can_fail(tmp_path: Path, when: Literal["before", "after"]) -> None:
    expected: list[Step] = ["write", "fsync", "rename", "fsync"]
    for at in range(1, len(expected) + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        (folder / "file").write_bytes(b"old")
        disk = FullDisk(at, when)
        with watched(disk), pytest.raises(OblivionError, match=FULL):
            write_atomically(folder / "file", b"new")
        assert disk.seen == expected[:at]
        renamed = at == 4 or (at == 3 and when == "after")
        assert (folder / "file").read_bytes() == (b"new" if renamed else b"old") and names(folder) == ["file"]
        write_atomically(folder / "file", b"new")
        assert (folder / "file").read_bytes() == b"new"


def test_new_folders_are_made_durable_from_the_top(tmp_path: Path) -> None:
    disk = FullDisk(99)
    with watched(disk):
        write_atomically(tmp_path / "a" / "b" / "file", b"x")
    assert disk.seen == ["fsync", "fsync", "write", "fsync", "rename", "fsync"]
    for at in (1, 2):
        with watched(FullDisk(at)), pytest.raises(OblivionError, match=FULL):
            write_atomically(tmp_path / str(at) / "b" / "file", b"x")
        write_atomically(tmp_path / str(at) / "b" / "file", b"x")
        assert (tmp_path / str(at) / "b" / "file").read_bytes() == b"x"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path, when: Literal["before", "after"]) -> None:
    contents = {"one": b"1", "two": b"22"}
    counting = FullDisk(99, when)
    with watched(counting):
        write_folder(tmp_path / "whole", contents)
    assert counting.seen.count("write") == 2 and counting.seen.count("rename") == 1
    for at in range(1, len(counting.seen) + 1):
        folder = tmp_path / str(at)
        with watched(FullDisk(at, when)), pytest.raises(OblivionError, match=f"{folder} could not be written: {FULL}"):
            write_folder(folder, contents)
        assert names(tmp_path) == ["whole"]
    write_folder(tmp_path / "again", contents)
    for name in ("whole", "again"):
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == contents


def test_what_interrupted_writes_left_is_removed(tmp_path: Path) -> None:
    half = f".run.{'0' * 16}.oblivion-partial"
    (tmp_path / half).mkdir()
    (tmp_path / half / "old").write_bytes(b"half")
    write_folder(tmp_path / "run", {"below": b"x"})
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["below"]
    (tmp_path / "run" / "deep").mkdir()
    for path in (half, f"deep/.ledger.db.{'0' * 16}.oblivion-partial-journal", "deep/kept"):
        (tmp_path / "run" / path).write_bytes(b"x")
    remove_partial(tmp_path / "run", ["deep", "missing"])
    assert names(tmp_path / "run") == ["below", "deep"] and names(tmp_path / "run" / "deep") == ["kept"]


def test_removing_can_fail_and_be_repeated(tmp_path: Path) -> None:
    def make() -> list[Path]:
        make_folder(tmp_path / "folder" / "below")
        for path in (tmp_path / "file", tmp_path / "folder" / "below" / "file"):
            path.write_bytes(b"x")
        return [tmp_path / "file", tmp_path / "folder"]

    for at in (1, 2):
        for path in make():
            with watched(FullDisk(at)), pytest.raises(OblivionError, match=f"{path} could not be removed: {FULL}"):
                remove(path)
            assert path.exists() == (at == 1)
            remove(path)
            assert not path.exists()
    remove(tmp_path / "nothing")


def test_a_path_that_goes_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OblivionError, match="could not be written"):
        write_atomically(tmp_path / "file" / "below", b"new")


@pytest.mark.parametrize("kind", ["empty", "full", "file"])
def test_an_existing_run_directory_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "run"
    if kind == "file":
        root.write_text("mine")
    else:
        root.mkdir()
        if kind == "full":
            (root / "config.toml").write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="exists already; choose another --out") as caught:
        RunDirectory.create(root, RunConfig(), {})
    assert caught.value.exit_code == 2
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# The ledger: every step of everything that it does


def state(round: int) -> RoundState:
    return RoundState(
        round=round,
        state=GlobalState(adapter={"x": torch.arange(8.0) + round}),
        rule_state={"m/x": torch.full((8,), float(round))},
        gate_state=GateState(norms=((("a", 1.0 / 3),),) * round),
    )


def outcome(branch: str, round: int, place: int, client: str) -> CohortOutcome:
    delta = {"x": torch.linspace(0.0, 1.0, 8) * (round + place)}
    update = ClientUpdate(client_id=client, round=round, delta=delta, num_examples=2, steps=1, metrics={"loss": 0.5})
    return CohortOutcome(branch=branch, round=round, cohort=place, updates=(update,))


def go_on(ledger: StoredLedger, name: str, last: int, clients: tuple[str, ...]) -> None:
    """What a federation does: whatever of a branch's rounds is not there yet."""
    for round in range(ledger.branch(name).fork + 1, last + 1):
        if round in {done.round for done in ledger.records(name) if done.branch == name}:
            continue
        if ledger.selection(name, round) is None:
            cohorts = tuple((client,) for client in clients)
            ledger.begin(Selection(branch=name, round=round, selected=clients, cohorts=cohorts))
        there = {done.cohort for done in ledger.outcomes(name, round)}
        for place, client in enumerate(clients):
            if place not in there:
                ledger.append(outcome(name, round, place, client))
        record = RoundRecord(branch=name, round=round, selected=clients, accepted=clients, loss=0.5)
        ledger.commit(record, state(round), keep=round == last)


def known(ledger: StoredLedger) -> set[str]:
    return {branch.name for branch in ledger.branches()}


def learn(ledger: StoredLedger, register: Register) -> None:
    register.enrol_simulated({"a": 1, "b": 1})
    if "main" not in known(ledger):
        ledger.open_branch(Branch(name="main", seed=0, rounds=3), state(0))
    go_on(ledger, "main", 3, ("a", "b"))


def try_removal(ledger: StoredLedger, register: Register) -> None:
    asked = register.open_request("b", None)
    if asked is None:
        signed = issue("b", None, register.simulated_key("b"), register.federation, ledger.book.now())
        asked = register.receive(signed)
    if asked.state == "received":
        register.move(asked.request.id, "running")
    if "oracle" not in known(ledger):
        ledger.open_branch(Branch(name="oracle", seed=0, rounds=3, history=False), state(0))
    go_on(ledger, "oracle", 3, ("a",))
    if "r/rollback" not in known(ledger):
        absent = (Absence(client="b"),)
        ledger.open_branch(Branch(name="r/rollback", seed=0, rounds=3, parent="main", fork=1, absent=absent))
    go_on(ledger, "r/rollback", 3, ("a",))
    register.move(asked.request.id, "verified")


def commit(ledger: StoredLedger, register: Register) -> None:
    if not register.removals():
        (asked,) = register.all_asked()
        facts = {
            "trial": "rollback",
            "whole_client": True,
            "guarantee": "exact",
            "from_round": 1,
            "before": {},
            "after": {},
        }
        commit_removal(ledger, register, asked, "r/rollback", facts)


def drop(ledger: StoredLedger, register: Register) -> None:
    if "oracle" in known(ledger):
        ledger.drop("oracle")


Work = Callable[[StoredLedger, Register], None]
STAGES: dict[str, tuple[Work, ...]] = {
    "open": (),
    "learn": (learn,),
    "try": (learn, try_removal),
    "drop": (learn, try_removal, drop),
    "commit": (learn, try_removal, commit),
}


def content(ledger: StoredLedger, register: Register) -> dict[str, Any]:
    """Everything that a ledger tells, as plain values; request ids, nonces and times left out."""

    def plain(tensors: Any) -> dict[str, list[float]]:
        return {name: tensor.tolist() for name, tensor in tensors.items()}

    told: dict[str, Any] = {
        "head": register.head(),
        "clients": register.clients(),
        "asked": [(asked.request.client_id, asked.state) for asked in register.all_asked()],
        "exclusions": register.exclusions(),
        "records": len(ledger.book.find()),
    }
    for branch in ledger.branches():
        kept = ledger.last_state(branch.name, 99)
        told[branch.name] = {
            "records": ledger.records(branch.name),
            "restorable": ledger.restorable(branch.name),
            "state": (kept.round, plain(kept.state.adapter), plain(kept.rule_state), kept.gate_state),
            "contributions": [
                (update.client_id, round, plain(update.delta), update.metrics)
                for round in range(1, 4)
                for update in ledger.contributions(branch.name, round)
            ],
        }
    return told


def disk(root: Path) -> dict[str, int]:
    """How many blobs and keys there are, and that nothing is half there."""
    assert not list(root.rglob("*oblivion-partial*"))
    return {
        "blobs": len([p for p in (root / "ledger" / "blobs").rglob("*") if p.is_file()]),
        "keys": len(list((root / "keys").rglob("*.key"))),
    }


def attempt(root: Path, last: Work | None) -> None:
    """Open, do the last stage, close: the call that fails, and that is given again."""
    ledger, register = open_ledger(root, LedgerConfig())
    try:
        if last is not None:
            last(ledger, register)
    finally:
        ledger.close()


def prepare(root: Path, works: tuple[Work, ...]) -> None:
    for work in works:
        attempt(root, work)


def outcome_of(root: Path) -> tuple[dict[str, Any], dict[str, int]]:
    ledger, register = open_ledger(root, LedgerConfig())
    try:
        return content(ledger, register), disk(root)
    finally:
        ledger.close()


def failure_of(root: Path, last: Work | None, broken: FullDisk) -> OblivionError | None:
    with watched(broken):
        try:
            attempt(root, last)
        except OblivionError as error:
            return error
    return None


def places(steps: list[Step]) -> list[int]:
    """Where to fail, counted from 1: the first and the last step of every kind, and some of the others."""
    kinds = set(steps)
    first = {steps.index(kind) + 1 for kind in kinds}
    last = {len(steps) - steps[::-1].index(kind) for kind in kinds}
    return sorted(first | last | set(range(1, len(steps) + 1, 16)))


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in memory where there is one: these tests look at what fails, not at what survives a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    shared_memory = Path("/dev/shm")
    inside = shared_memory if os.access(shared_memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=inside) as folder:
        yield Path(folder)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_durable_step_of_the_ledger_can_fail(quick: Path, stage: str, when: Literal["before", "after"]) -> None:
    """And the same call works afterwards, with what it would have left at once."""
    works = STAGES[stage]
    last = works[-1] if works else None
    start, reference = quick / "start", quick / "reference"
    start.mkdir()
    prepare(start, works[:-1])
    shutil.copytree(start, reference)
    counting = FullDisk(10**9, when)
    with watched(counting):
        attempt(reference, last)
    expected = outcome_of(reference)
    assert len(counting.seen) >= 5
    for at in places(counting.seen):
        root = quick / str(at)
        shutil.copytree(start, root)
        broken = FullDisk(at, when)
        error = failure_of(root, last, broken)
        if error is None:
            assert not broken.struck  # names of blobs are random, and so is how many folders they need
            continue
        message = str(error)
        assert FULL in message and str(root) in message and error.exit_code == 1, (at, broken.seen[-1], message)
        assert "free some space" in message or "make it writable" in message, message
        left = [path for path in root.rglob("*oblivion-partial*") if ".json." not in path.name]
        assert not left, (at, broken.seen[-1])  # what a list held before stays until it can be overwritten
        attempt(root, last)
        assert not list(root.rglob("*oblivion-partial*")), (at, broken.seen[-1])
        assert outcome_of(root) == expected, (at, broken.seen[-1])


@pytest.mark.parametrize("stage", ["learn", "try", "drop"])
def test_the_same_ledger_goes_on_after_a_full_disk(quick: Path, stage: str) -> None:
    """A process that frees some space does not need to open it again: a step that failed did not happen."""
    *before, last = STAGES[stage]
    start, reference = quick / "start", quick / "reference"
    start.mkdir()
    prepare(start, tuple(before))
    shutil.copytree(start, reference)
    counting = FullDisk(10**9)
    with watched(counting):
        attempt(reference, last)
    expected, _ = outcome_of(reference)
    for at in places(counting.seen):
        root = quick / str(at)
        shutil.copytree(start, root)
        ledger, register = open_ledger(root, LedgerConfig())
        broken = FullDisk(at)
        with watched(broken), contextlib.suppress(OblivionError):
            last(ledger, register)
        last(ledger, register)
        assert content(ledger, register) == expected, (at, broken.seen[-1])
        ledger.close()
        assert outcome_of(root)[0] == expected


def test_a_database_that_cannot_grow(tmp_path: Path) -> None:
    """Not a fault of ours: SQLite itself says that the disk is full."""
    ledger, register = open_ledger(tmp_path, LedgerConfig())
    learn(ledger, register)
    before = content(ledger, register)
    with ledger.book._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(OblivionError, match="database or disk is full; nothing is lost: free some space") as caught:
        for number in range(100):
            ledger.open_branch(Branch(name=f"r/{number}" + "x" * 400, seed=0, rounds=3), state(0))
    assert str(tmp_path / "ledger/ledger.db") in str(caught.value)
    with ledger.book._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=100000")
    for name in [branch.name for branch in ledger.branches() if branch.name != "main"]:
        ledger.drop(name)
    assert {**content(ledger, register), "records": 0} == {**before, "records": 0}
    ledger.open_branch(Branch(name="r/1", seed=0, rounds=3), state(0))
    ledger.close()
    assert set(outcome_of(tmp_path)[0]) == {*before, "r/1"}


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "os.open", "pathlib.Path.mkdir"])
def test_a_ledger_on_a_full_disk_cannot_be_made_and_then_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(where, full)
    with pytest.raises(OblivionError, match=FULL):
        open_ledger(tmp_path, LedgerConfig())
    monkeypatch.undo()
    attempt(tmp_path, learn)
    assert "main" in outcome_of(tmp_path)[0]


@pytest.mark.parametrize("call", ["ftruncate", "pwrite"])
def test_a_lock_that_cannot_be_written_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    attempt(tmp_path, learn)
    monkeypatch.setattr(schema.os, call, full)
    with pytest.raises(OblivionError, match=FULL):
        open_ledger(tmp_path, LedgerConfig())
    monkeypatch.undo()
    assert "main" in outcome_of(tmp_path)[0]


def test_a_crash_right_before_the_anchor_lets_no_older_copy_in(tmp_path: Path) -> None:
    """The commit stands when keys/ does not know of it yet; whoever opens the ledger next makes that good."""
    (tmp_path / "run").mkdir()
    prepare(tmp_path / "run", (learn, try_removal))
    shutil.copytree(tmp_path / "run" / "ledger", tmp_path / "older")

    class Killed(BaseException):
        pass

    def right_before_the_anchor(when: str, step: Step) -> None:
        if when == "after" and step == "commit":
            raise Killed

    with watched(right_before_the_anchor), pytest.raises(Killed):
        attempt(tmp_path / "run", commit)
    assert outcome_of(tmp_path / "run")[0]["head"] == "r/rollback"
    shutil.rmtree(tmp_path / "run" / "ledger")
    shutil.copytree(tmp_path / "older", tmp_path / "run" / "ledger")
    with pytest.raises(IntegrityError, match="is an older copy"):
        open_ledger(tmp_path / "run", LedgerConfig())
