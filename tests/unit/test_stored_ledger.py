"""The ledger on disk: what comes back after reopening, who may open it, and what it refuses to believe."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from oblivion.aggregation.gate import GateState, tensor_norms
from oblivion.aggregation.round import RoundState
from oblivion.config import LedgerConfig
from oblivion.errors import InputError, IntegrityError, OblivionError
from oblivion.ledger.blobs import FolderBlobs, pack, seal, unpack, unseal
from oblivion.ledger.book import ranges
from oblivion.ledger.erasure import commit_removal
from oblivion.ledger.keys import Keys, contribution_key, state_key
from oblivion.ledger.opening import check_ledger_exists, open_ledger
from oblivion.ledger.requests import issue
from oblivion.ledger.rounds import Absence, Branch, CohortOutcome, RoundRecord, Selection
from oblivion.ledger.store import StoredLedger
from oblivion.types import Adapter, ClientUpdate, Cost, GlobalState

MAIN = Branch(name="main", seed=7, rounds=9)
HOSTILE = ["../x", "a/../../x", "a\0b", "x" * 4096, "\u202etxt.exe", "/etc/passwd", "~", ".", "..", "a b", "A", "", "é"]


def shown(name: str) -> str:
    return ascii(name[:12])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(round: int, value: float = 0.0) -> RoundState:
    adapter = {"x": torch.full((2,), value)}
    return RoundState(round=round, state=GlobalState(adapter=adapter), rule_state={}, gate_state=GateState())


def update(client: str, round: int = 1, **changes: Any) -> ClientUpdate:
    delta = {"x.lora_A": randn(2, 3, seed=round), "x.lora_B": randn(3, 2, seed=round + 1)}
    made = ClientUpdate(client_id=client, round=round, delta=delta, num_examples=3, steps=2, fingerprint="f")
    made = dataclasses.replace(made, **changes)
    return dataclasses.replace(made, norms=tensor_norms(made.delta))


def cohort(round: int, place: int, *updates: ClientUpdate, branch: str = "main") -> CohortOutcome:
    return CohortOutcome(branch=branch, round=round, cohort=place, updates=updates)


def run_round(ledger: StoredLedger, round: int, branch: str = "main", keep: bool = False) -> None:
    ledger.begin(Selection(branch=branch, round=round, selected=("a", "b"), cohorts=(("a",), ("b",))))
    for place, client in enumerate("ab"):
        ledger.append(cohort(round, place, update(client, round), branch=branch))
    record = RoundRecord(branch=branch, round=round, selected=("a", "b"), accepted=("a", "b"), loss=0.5)
    ledger.commit(record, state(round, float(round)), keep)


def same(one: Adapter, other: Adapter) -> bool:
    return list(one) == sorted(other) and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].contiguous().numpy().tobytes() == other[name].contiguous().numpy().tobytes()
        for name in other
    )


class Opened:
    """The ledger of a folder; `again` closes and opens it, as the next process would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ledger: StoredLedger | None = None

    def __call__(self, **settings: Any) -> StoredLedger:
        self.close()
        self._ledger, self.register = open_ledger(self.root, LedgerConfig(**settings))
        return self._ledger

    again = __call__

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    made = Opened(tmp_path / "run")  # below a folder that no other test writes to
    yield made
    made.close()


def learned(opened: Opened, rounds: int = 3, keep: tuple[int, ...] = (2,), **settings: Any) -> StoredLedger:
    ledger = opened(**settings)
    ledger.open_branch(MAIN, state(0))
    for round in range(1, rounds + 1):
        run_round(ledger, round, keep=round in keep)
    return ledger


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def blobs(root: Path) -> list[Path]:
    return sorted(path for path in (root / "ledger" / "blobs").rglob("*") if path.is_file())


# What comes back


def test_a_state_comes_back_bit_for_bit(opened: Opened) -> None:
    whole = RoundState(
        round=0,
        state=GlobalState(
            adapter={"x.lora_A": randn(2, 3), "x|odd": torch.tensor([-0.0, 1e-45, 1 / 3, 3.4e38])},
            residual={"x.down": randn(4, 2, seed=1), "empty": torch.zeros(0, 3)},
        ),
        rule_state={
            "m/x.lora_A": randn(3, 2, seed=3).t(),
            "v/x.lora_A": randn(2, 3, seed=4).double(),
            "count": torch.tensor(7),
        },
        gate_state=GateState(norms=((("a", 0.1), ("b", 1 / 3)), (), (("a", 1e-300),)), trained=("B", "", "A")),
    )
    opened().open_branch(MAIN, whole)
    for ledger in (opened._ledger, opened.again()):
        assert ledger is not None
        back = ledger.last_state("main", 9)
        assert back.round == 0 and back.gate_state == whole.gate_state
        for mine, other in (
            (back.state.adapter, whole.state.adapter),
            (back.state.residual, whole.state.residual),
            (back.rule_state, whole.rule_state),
        ):
            assert same(mine, other)


def test_a_contribution_comes_back_bit_for_bit(opened: Opened) -> None:
    given = update(
        "client-0",
        metrics={"loss": 1 / 3, "tokens": 1e15, "odd": math.nan},
        delta={"x.lora_A": randn(3, 2).t(), "z": torch.tensor(-0.0), "a|b": torch.zeros(0)},
    )
    ledger = opened()
    ledger.open_branch(MAIN, state(0))
    ledger.append(cohort(1, 0, given))
    for back in (ledger.contributions("main", 1)[0], opened.again().contributions("main", 1)[0]):
        assert same(dict(sorted(back.delta.items())), given.delta)
        assert math.isnan(back.metrics["odd"])
        assert {**back.metrics, "odd": 0} == {**given.metrics, "odd": 0}
        assert dict(back.norms) == dict(given.norms)
        for name in ("client_id", "round", "num_examples", "steps", "fingerprint"):
            assert getattr(back, name) == getattr(given, name)


def test_numbers_that_json_does_not_have_are_the_same_before_and_after_reopening(opened: Opened) -> None:
    """A client may send any metric, and what is handed out is what was stored."""
    ledger = opened()
    ledger.open_branch(MAIN, state(0))
    ledger.append(cohort(1, 0, update("a", metrics={"loss": math.inf, "tokens": -math.inf, "x": math.nan})))
    for back in (ledger.contributions("main", 1)[0], opened.again().contributions("main", 1)[0]):
        assert set(back.metrics) == {"loss", "tokens", "x"} and all(map(math.isnan, back.metrics.values()))


def test_bfloat16_is_what_is_aggregated_too(opened: Opened) -> None:
    given = update("a", delta={"x": torch.tensor([1 / 3, 1e-3, -65535.0, 0.0])})
    rounded = {"x": given.delta["x"].to(torch.bfloat16).to(torch.float32)}
    assert not torch.equal(rounded["x"], given.delta["x"])
    ledger = opened(precision="bfloat16")
    ledger.open_branch(MAIN, state(0, 1 / 3))
    ledger.append(cohort(1, 0, given))
    before = ledger.contributions("main", 1)[0]
    after = opened.again(precision="bfloat16").contributions("main", 1)[0]
    assert same(before.delta, rounded) and same(after.delta, rounded)
    assert given.delta["x"][0] == torch.tensor(1 / 3), "what was given is not changed"
    assert opened.again().last_state("main", 0).state.adapter["x"][0] == torch.tensor(1 / 3), "states are kept whole"


def test_bfloat16_takes_half_the_room(tmp_path: Path) -> None:
    size = {}
    for precision in ("float32", "bfloat16"):
        opened = Opened(tmp_path / precision)
        ledger = opened(precision=precision)
        ledger.open_branch(MAIN)
        ledger.append(cohort(1, 0, update("a", delta={"x": randn(100, 100)})))
        opened.close()
        size[precision] = blobs(opened.root)[0].stat().st_size
    assert 19_000 < size["bfloat16"] < size["float32"] / 1.9


def test_a_record_of_a_round_comes_back(opened: Opened) -> None:
    ledger = opened()
    ledger.open_branch(MAIN, state(0))
    whole = RoundRecord(
        branch="main",
        round=1,
        selected=("a", "b", "c"),
        accepted=("a",),
        refused={"b": "tensor 'x' is too large"},
        failed={"c": "no reply from its host"},
        loss=1 / 3,
        cost=Cost(client_steps=3, tokens=40, bytes_up=2**60, bytes_down=6),
        seconds=0.25,
        unlearned=True,
    )
    ledger.commit(whole, state(1), keep=False)
    ledger.commit(dataclasses.replace(whole, round=2, loss=math.nan), state(2), keep=False)
    for again in (ledger, opened.again()):
        one, two = again.records("main")
        assert one == whole and math.isnan(two.loss) and dataclasses.replace(two, round=1, loss=whole.loss) == whole


def test_a_round_under_way_is_there_after_reopening(opened: Opened) -> None:
    ledger = learned(opened, rounds=1)
    selection = Selection(branch="main", round=2, selected=("a", "b", "c"), cohorts=(("b", "a"), ("c",)))
    said = CohortOutcome(
        branch="main", round=2, cohort=1, updates=(update("c", 2),), refused={"b": "no"}, failed={"a": "it crashed"}
    )
    ledger.begin(selection)
    ledger.append(said)
    again = opened.again()
    assert again.selection("main", 2) == selection
    assert again.outcomes("main", 2) == (dataclasses.replace(said, updates=()),)
    assert [u.client_id for u in again.contributions("main", 2)] == ["c"]
    with pytest.raises(IntegrityError, match="is in the ledger already"):
        again.append(said)


def test_lines_over_two_forks_are_the_same_after_reopening(opened: Opened) -> None:
    ledger = learned(opened, rounds=4, keep=(2, 4))
    absent = (Absence(client="c"), Absence(client="b", samples=("s2", "s1")))
    ledger.open_branch(Branch(name="r/one", seed=1, rounds=4, parent="main", fork=3, absent=absent[:1]))
    run_round(ledger, 4, "r/one")
    ledger.open_branch(Branch(name="r/two", seed=2, rounds=5, parent="r/one", fork=4, absent=absent))
    run_round(ledger, 5, "r/two", keep=True)
    names = [branch.name for branch in ledger.branches()]
    before = {name: told(ledger, name) for name in names}
    again = opened.again()
    assert {name: told(again, name) for name in names} == before
    assert again.branch("r/two").absent == absent and again.restorable("r/two") == (0, 1, 2, 3, 4, 5)
    assert [r.branch for r in again.records("r/two")] == ["main"] * 3 + ["r/one", "r/two"]
    assert again.last_state("r/two", 4).round == 2


def told(ledger: StoredLedger, name: str) -> dict[str, Any]:
    kept = ledger.last_state(name, 99)
    return {
        "branch": ledger.branch(name),
        "records": ledger.records(name),
        "restorable": ledger.restorable(name),
        "state": (kept.round, {n: t.tolist() for n, t in kept.state.adapter.items()}),
        "contributions": [
            (u.client_id, r, {n: t.tolist() for n, t in u.delta.items()})
            for r in range(1, 6)
            for u in ledger.contributions(name, r)
        ],
    }


def test_records_are_in_the_order_of_rounds_also_where_one_was_written_again(opened: Opened) -> None:
    """A commit writes the records that named the client anew, so that they come later in the log than others."""
    ledger = opened()
    opened.register.enrol_simulated({"a": 1, "b": 1, "c": 1})
    ledger.open_branch(MAIN, state(0))
    for round, clients in enumerate((("a", "b"), ("b", "c"), ("a", "b"), ("b", "c")), start=1):
        record = RoundRecord(branch="main", round=round, selected=clients, accepted=())
        ledger.commit(record, state(round), keep=True)
    ledger.open_branch(Branch(name="r/exclude", seed=0, rounds=4, parent="main", fork=4))
    request = issue("a", None, opened.register.simulated_key("a"), opened.register.federation, ledger.book.now())
    facts = {"trial": "exclude", "whole_client": True, "guarantee": "none", "from_round": 1, "before": {}, "after": {}}
    commit_removal(ledger, opened.register, opened.register.receive(request), "r/exclude", facts)
    for again in (ledger, opened.again()):
        assert [(r.round, r.selected) for r in again.records("r/exclude")] == [
            (1, ("b",)),
            (2, ("b", "c")),
            (3, ("b",)),
            (4, ("b", "c")),
        ]


# What goes


def test_without_history_the_last_state_is_all_that_is_kept(opened: Opened) -> None:
    ledger = opened()
    ledger.open_branch(dataclasses.replace(MAIN, history=False), state(0))
    for round in (1, 2, 3):
        run_round(ledger, round)
        assert len(blobs(opened.root)) == 1 and list(ledger.keys.names()) == [state_key(ledger.number("main"), round)]
    for again in (ledger, opened.again()):
        assert again.restorable("main") == (3,) and [r.round for r in again.records("main")] == [1, 2, 3]
        assert again.contributions("main", 3) == () and again.selection("main", 3) is None
        assert again.last_state("main", 3).state.adapter["x"].tolist() == [3.0, 3.0]
        with pytest.raises(IntegrityError, match="no state of 'main' is kept at or before round 2"):
            again.last_state("main", 2)


@pytest.mark.parametrize(("retention", "kept"), [(1, {5}), (2, {4, 5}), (9, {1, 2, 3, 4, 5}), (0, {1, 2, 3, 4, 5})])
def test_contributions_are_kept_for_so_many_rounds(opened: Opened, retention: int, kept: set[int]) -> None:
    learned(opened, rounds=5, keep=(3,), retention=retention)
    ledger = opened.again(retention=retention)
    assert {r for r in range(1, 6) if ledger.contributions("main", r)} == kept
    # states 0 and 3 are kept; from them on, as far as contributions reach
    expected = {0, 3} | {r for r in range(1, 6) if set(range(1 if r < 3 else 4, r + 1)) <= kept}
    assert set(ledger.restorable("main")) == expected
    assert len(blobs(opened.root)) == 2 * len(kept) + 2
    assert [r.round for r in ledger.records("main")] == [1, 2, 3, 4, 5]


def test_a_dropped_branch_leaves_no_file(opened: Opened) -> None:
    ledger = learned(opened)
    before = {name for name in files(opened.root) if "ledger.db" not in name}
    ledger.open_branch(Branch(name="r/x", seed=0, rounds=9, parent="main", fork=3))
    run_round(ledger, 4, "r/x", keep=True)
    run_round(ledger, 5, "r/x")
    ledger.begin(Selection(branch="r/x", round=6, selected=("a",), cohorts=(("a",),)))
    ledger.append(cohort(6, 0, update("a", 6), branch="r/x"))
    gone = {name for name in files(opened.root) if "ledger.db" not in name} - before
    assert len([name for name in gone if name.endswith(".key")]) == 3  # one for each client, one for the state
    ledger.drop("r/x")
    assert {name for name in files(opened.root) if "ledger.db" not in name} - {"keys/checkpoint.json"} == before - {
        "keys/checkpoint.json"
    }
    assert not [record for record in ledger.book.find() if record.branch not in (0, ledger.number("main"))]
    assert told(opened.again(), "main") == told(opened._ledger, "main")  # type: ignore[arg-type]
    assert any(json.loads(entry)["kind"] == "erased" for entry in opened._ledger.book.entries())  # type: ignore[union-attr]


def test_what_a_crash_left_is_swept(opened: Opened) -> None:
    ledger = learned(opened)
    needed = files(opened.root)
    ledger.blobs.put(b"a blob without a record")
    ledger.keys.make(contribution_key("nobody", 99))
    ledger.keys.make(state_key(98, 1))
    folder = blobs(opened.root)[0].parent
    (folder / f".{'0' * 64}.{'0' * 16}.oblivion-partial").write_bytes(b"half")
    before = told(ledger, "main")
    again = opened.again()
    assert {n for n in files(opened.root) if "ledger.db" not in n} == {n for n in needed if "ledger.db" not in n}
    assert told(again, "main") == before


def test_a_transaction_that_fails_writes_nothing(opened: Opened) -> None:
    ledger = learned(opened)
    before = (len(ledger.book.find()), len(ledger.book.entries()), ledger.book.checkpoint())
    with pytest.raises(KeyboardInterrupt), ledger.book.transaction() as writer:
        writer.add("branch", "x", {})
        writer.flush()
        raise KeyboardInterrupt
    with pytest.raises(IntegrityError, match="branch main"), ledger.book.transaction() as writer:
        writer.add("branch", "main", {})
    assert (len(ledger.book.find()), len(ledger.book.entries()), ledger.book.checkpoint()) == before
    run_round(ledger, 4)
    assert [r.round for r in opened.again().records("main")] == [1, 2, 3, 4]


def test_ranges_by_hand() -> None:
    assert ranges([5, 1, 2, 9, 3, 10]) == [[1, 3], [5, 5], [9, 10]] and ranges([]) == []


# Who may open it


def test_a_second_handle_is_refused_with_the_pid_that_has_it(opened: Opened) -> None:
    learned(opened)
    with pytest.raises(OblivionError, match=f"is in use by process {os.getpid()}; wait until it has ended") as caught:
        open_ledger(opened.root, LedgerConfig())
    assert caught.value.exit_code == 1
    opened.close()
    assert len(opened().records("main")) == 3


HOLD = """
import sys, time
from pathlib import Path
from oblivion.config import LedgerConfig
from oblivion.ledger.opening import open_ledger
open_ledger(Path(sys.argv[1]), LedgerConfig())
print("open", flush=True)
time.sleep(60)
"""


def test_another_process_is_named_and_lets_go_when_it_is_killed(opened: Opened) -> None:
    learned(opened)
    opened.close()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(opened.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(OblivionError, match=f"is in use by process {process.pid};"):
            opened()
    finally:
        process.kill()
        process.wait(timeout=10)
    assert len(opened().records("main")) == 3


def test_one_who_waits_gets_it_when_the_other_leaves(opened: Opened) -> None:
    ledger = learned(opened)
    timer = threading.Timer(0.3, ledger.close)
    timer.start()
    waiting, _ = open_ledger(opened.root, LedgerConfig(), wait=30)
    timer.join()
    assert len(waiting.records("main")) == 3
    since = time.monotonic()
    with pytest.raises(OblivionError, match="is in use by process"):
        open_ledger(opened.root, LedgerConfig(), wait=0.2)
    assert time.monotonic() - since >= 0.2
    waiting.close()
    waiting.close()


Partition = namedtuple("Partition", "device mountpoint fstype opts")


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs", "lustre", "9p"])
def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    root = tmp_path.resolve()
    mounts = [Partition("", "/", "ext4", ""), Partition("", str(root), kind, "")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    with pytest.raises(OblivionError, match=f"lies on a network file system \\({kind}\\).*--out on a local disk"):
        open_ledger(root / "run", LedgerConfig())
    assert not [name for name in files(root) if name.endswith((".db", ".key"))]


def test_the_nearest_mount_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path.resolve()
    mounts = [("/", "ext4"), (str(root), "nfs"), (str(root / "run"), "xfs"), (str(root / "run" / "other"), "nfs")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [Partition("", m, kind, "") for m, kind in mounts])
    ledger, _ = open_ledger(root / "run", LedgerConfig())
    ledger.close()
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [])
    open_ledger(root / "elsewhere", LedgerConfig())[0].close()


def test_secrets_are_for_their_owner_alone(opened: Opened) -> None:
    learned(opened)
    for folder in ("ledger", "keys"):
        assert (opened.root / folder).stat().st_mode & 0o777 == 0o700
    secret = [*blobs(opened.root), *(opened.root / "keys").rglob("*.key"), opened.root / "keys" / "checkpoint.json"]
    assert len(secret) > 8 and {path.stat().st_mode & 0o777 for path in secret} == {0o600}


def test_an_existing_ledger_is_asked_for_by_name(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no ledger: there is no such folder"):
        check_ledger_exists(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no ledger, so nothing can be forgotten from it"):
        check_ledger_exists(tmp_path / "empty")
    learned(opened)
    check_ledger_exists(opened.root)


# What it does not believe


def changed_database(root: Path, statement: str, *values: Any) -> None:
    """Somebody who has the database and no key."""
    with sqlite3.connect(root / "ledger" / "ledger.db") as connection:
        connection.execute(statement, values)
    connection.close()


def refused(opened: Opened, words: str, error: type[OblivionError] = IntegrityError) -> None:
    opened.close()
    with pytest.raises(error, match=words):
        opened()


def test_a_database_of_another_version_is_refused(opened: Opened) -> None:
    learned(opened)
    opened.close()
    changed_database(opened.root, "UPDATE alembic_version SET version_num = 'r9999'")
    refused(opened, "has the format 'r9999', this version reads 'r0001'; use the version of oblivion")
    changed_database(opened.root, "DELETE FROM alembic_version")
    refused(opened, "has the format 'None'")
    changed_database(opened.root, "DROP TABLE alembic_version")
    refused(opened, "is not a ledger: no such table: alembic_version")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET client = 'z' WHERE kind = 'contribution'",
        "UPDATE records SET round = round + 1 WHERE kind = 'state'",
        "UPDATE records SET content = '{}' WHERE kind = 'round' AND round = 2",
        "DELETE FROM records WHERE kind = 'round' AND round = 3",
        "UPDATE log SET mac = x'00' WHERE seq = (SELECT max(seq) FROM log)",
        "UPDATE log SET entry = replace(entry, 'T', 'U') WHERE seq = 2",
    ],
)
def test_a_changed_database_is_refused(opened: Opened, statement: str) -> None:
    learned(opened)
    opened.close()
    changed_database(opened.root, statement)
    refused(opened, r"ledger\.db: .*; `oblivion ledger verify` says where, restore it from its backup")


def test_a_missing_blob_is_named(opened: Opened) -> None:
    ledger = learned(opened)
    (record,) = ledger.book.find("contribution", client="b", round=2)
    assert record.blob is not None
    path = opened.root / "ledger" / "blobs" / record.blob[:2] / record.blob
    path.unlink()
    again = opened.again()
    with pytest.raises(IntegrityError, match=f"blob {path} is missing; restore the ledger from its backup"):
        again.contributions("main", 2)
    assert len(again.contributions("main", 1)) == 2 and len(again.contributions("main", 3)) == 2


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1], lambda data: b"", lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: data + b"x"],
    ids=["cut", "empty", "one bit", "longer"],
)
def test_a_changed_blob_is_named(opened: Opened, change: Callable[[bytes], bytes]) -> None:
    ledger = learned(opened)
    (record,) = ledger.book.find("state", round=2)
    assert record.blob is not None
    path = opened.root / "ledger" / "blobs" / record.blob[:2] / record.blob
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(IntegrityError, match=f"blob {path} was changed; restore the ledger from its backup"):
        opened.again().last_state("main", 3)


def test_a_wrong_a_broken_and_a_missing_key_are_named(opened: Opened) -> None:
    ledger = learned(opened)
    name = contribution_key("b", ledger.number("main"))
    path = opened.root / "keys" / f"{name}.key"
    right = path.read_bytes()
    for content, words in (
        (
            bytes(32),
            "contribution of branch .*, b cannot be opened: its key in keys/ is not the one it was sealed with",
        ),
        (right[:-1], f"{path} is not a key of 32 bytes; restore keys/ from its backup"),
        (None, f"{path} is missing: what it sealed cannot be read; restore keys/ from its backup"),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(IntegrityError, match=words):
            opened.again().contributions("main", 1)
    path.write_bytes(right)
    assert len(opened.again().contributions("main", 1)) == 2


def test_the_keys_of_another_run_open_nothing(opened: Opened, tmp_path: Path) -> None:
    learned(opened)
    opened.close()
    other = Opened(tmp_path / "other")
    learned(other)
    other.close()
    shutil.rmtree(opened.root / "keys")
    shutil.copytree(other.root / "keys", opened.root / "keys")
    refused(opened, "ledger.db|checkpoint.json")


def test_an_older_copy_beside_newer_keys_is_refused(opened: Opened, tmp_path: Path) -> None:
    ledger = learned(opened, rounds=1)
    opened.close()
    shutil.copytree(opened.root / "ledger", tmp_path / "older")
    ledger = opened()
    run_round(ledger, 2)
    opened.close()
    shutil.rmtree(opened.root / "ledger")
    shutil.copytree(tmp_path / "older", opened.root / "ledger")
    refused(opened, r"is an older copy: it has \d+ entries, keys/checkpoint.json has seen \d+. What was erased since")


def test_a_ledger_that_went_another_way_is_refused(opened: Opened, tmp_path: Path) -> None:
    """Longer than what keys/ has seen, but not a continuation of it: an older copy that was gone on from."""
    learned(opened, rounds=1)
    opened.close()
    shutil.copytree(opened.root, tmp_path / "twin")
    run_round(opened(), 2)
    opened.close()
    twin = Opened(tmp_path / "twin")
    run_round(twin(), 2)
    run_round(twin._ledger, 3)  # type: ignore[arg-type]
    twin.close()
    shutil.rmtree(opened.root / "ledger")
    shutil.copytree(twin.root / "ledger", opened.root / "ledger")
    refused(opened, "it is not the one that keys/ has seen")


def test_keys_know_of_every_round_after_the_next_opening(opened: Opened) -> None:
    ledger = learned(opened, rounds=1)
    ledger.begin(Selection(branch="main", round=2, selected=("a",), cohorts=(("a",),)))
    ledger.append(cohort(2, 0, update("a", 2)))
    size = ledger.book.checkpoint().size
    seen = json.loads((opened.root / "keys" / "checkpoint.json").read_text())["size"]
    assert seen < size, "not at every record, which would cost a file each"
    opened.again()
    assert json.loads((opened.root / "keys" / "checkpoint.json").read_text())["size"] == size


# The clock


def times(ledger: StoredLedger) -> list[str]:
    return [json.loads(entry)["time"] for entry in ledger.book.entries()]


def test_a_clock_that_goes_backwards_moves_no_time_back(tmp_path: Path) -> None:
    start = datetime(2026, 3, 1, 12, tzinfo=UTC)
    shown = [start]
    ledger, register = open_ledger(tmp_path, LedgerConfig(), now=lambda: shown[0])
    register.enrol_simulated({"a": 1})
    request = issue("a", None, register.simulated_key("a"), register.federation, start, valid_days=1)
    ledger.open_branch(MAIN, state(0))
    shown[0] = start + timedelta(days=2)
    run_round(ledger, 1)
    shown[0] = start - timedelta(days=400)
    run_round(ledger, 2)
    assert ledger.book.now() == start + timedelta(days=2)
    with pytest.raises(IntegrityError, match="expired"):
        register.receive(request)
    ledger.close()
    ledger, register = open_ledger(tmp_path, LedgerConfig(), now=lambda: shown[0])
    run_round(ledger, 3)
    assert times(ledger) == sorted(times(ledger)) and times(ledger)[0] == "2026-03-01T12:00:00Z"
    assert times(ledger)[-1] == "2026-03-03T12:00:00Z"
    with pytest.raises(IntegrityError, match="expired"):
        register.receive(request)
    ledger.close()


# Hostile names


def written(opened: Opened) -> dict[Path, int]:
    """When each file in and around the run was last written; not of SQLite's shared memory, whose time is its own."""
    files = [path for path in opened.root.parent.rglob("*") if not path.name.endswith("-shm")]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("name", HOSTILE, ids=shown)
def test_a_hostile_client_id_writes_nothing(opened: Opened, name: str) -> None:
    """The gate refuses it before; this is what is behind the gate."""
    ledger = learned(opened)
    before = written(opened)
    good = update("a", 4)
    with pytest.raises(IntegrityError, match="is not a client id") as caught:
        ledger.append(cohort(4, 0, good, dataclasses.replace(good, client_id=name)))
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable() and str(caught.value).isascii()
    assert written(opened) == before
    assert ledger.contributions("main", 4) == () == ledger.outcomes("main", 4)
    ledger.append(cohort(4, 0, good))


@pytest.mark.parametrize("name", HOSTILE, ids=shown)
def test_no_key_is_named_after_a_hostile_client(name: str) -> None:
    with pytest.raises(IntegrityError, match="is not a client id"):
        contribution_key(name, 1)


@pytest.mark.parametrize("name", [*HOSTILE, "x|y", "|", "delta|x", "__metadata__"], ids=shown)
def test_a_hostile_tensor_name_stays_inside_a_blob(opened: Opened, name: str) -> None:
    ledger = learned(opened)
    known = files(opened.root.parent)
    values = {name: torch.ones(2), f"{name}.more": torch.zeros(1)}
    given = update("a", 4, delta=values)
    ledger.append(cohort(4, 0, given))
    ledger.open_branch(
        dataclasses.replace(MAIN, name="r/x"),
        dataclasses.replace(state(0), state=GlobalState(adapter=values, residual=values), rule_state=values),
    )
    fresh = {file for file in files(opened.root.parent) - known if "ledger.db" not in file}
    assert all(Path(file).parts[-4:-2] == ("ledger", "blobs") or Path(file).suffix == ".key" for file in fresh)
    again = opened.again()
    (back,) = again.contributions("main", 4)
    kept = again.last_state("r/x", 0)
    for part in (back.delta, kept.state.adapter, kept.state.residual, kept.rule_state):
        assert same(part, values)


def test_a_record_that_names_a_hostile_client_opens_no_file(opened: Opened) -> None:
    """Whoever could write records and their log entries still reaches no file outside keys/."""
    ledger = learned(opened)
    with ledger.book.transaction(anchor=True) as writer:
        writer.add("contribution", "x", {}, branch=1, round=1, client="../../outside", blob="0" * 64)
    (opened.root / "outside").mkdir()
    (opened.root / "outside" / "1.key").write_bytes(b"mine")
    refused(opened, "'../../outside' is not a client id")
    assert (opened.root / "outside" / "1.key").read_bytes() == b"mine"


# Keys and blobs apart


def test_a_key_is_made_once_and_destroyed_for_good(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    first = keys.make("states/1/0")
    assert len(first) == 32 and keys.make("states/1/0") == first == Keys(tmp_path / "keys").get("states/1/0")
    assert keys.make("states/1/1") != first
    keys.make("contributions/client-0/1")
    keys.create()
    assert list(keys.names()) == ["contributions/client-0/1", "states/1/0", "states/1/1"]
    keys.destroy("states/1/0")
    keys.destroy("states/1/0")
    with pytest.raises(IntegrityError, match="is missing"):
        keys.get("states/1/0")
    assert keys.make("states/1/0") != first


def test_files_beside_the_keys(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    assert keys.read_json("exclusions.json") is None
    keys.write_json("exclusions.json", [{"b": 1, "a": None}])
    assert keys.read_json("exclusions.json") == [{"a": None, "b": 1}]
    (keys.folder / "exclusions.json").write_bytes(b"\xff")
    with pytest.raises(IntegrityError, match=r"exclusions.json: line 1 is not UTF-8 text.*restore keys/"):
        keys.read_json("exclusions.json")


def test_blobs_are_named_by_what_they_are(tmp_path: Path) -> None:
    store = FolderBlobs(tmp_path / "blobs")
    name = store.put(b"one")
    assert store.put(b"one") == name and store.names() == {name} and store.get(name) == b"one"
    store.delete(name)
    store.delete(name)
    assert store.names() == set()
    for wrong in ("", "../x", name[:-1], name + "0", name.upper(), "g" * 64):
        for call in (store.get, store.delete):
            with pytest.raises(IntegrityError, match="is not the name of a blob"):
                call(wrong)


def test_a_seal_opens_with_its_key_and_as_what_it_is_alone() -> None:
    key, other = bytes(range(32)), bytes(32)
    sealed = seal(key, b"content", "state of branch 1, round 2")
    assert unseal(key, sealed, "state of branch 1, round 2") == b"content"
    assert b"content" not in sealed and seal(key, b"content", "state of branch 1, round 2") != sealed
    for with_key, data, context in (
        (other, sealed, "state of branch 1, round 2"),
        (key, sealed, "state of branch 1, round 3"),
        (key, sealed[:-1], "state of branch 1, round 2"),
        (key, sealed[:5], "state of branch 1, round 2"),
        (key, b"", "state of branch 1, round 2"),
    ):
        with pytest.raises(IntegrityError, match="cannot be opened"):
            unseal(with_key, data, context)


def test_packed_tensors_come_back_sorted() -> None:
    given = {"b": randn(2, 3).t(), "a": torch.tensor(1.5), "c": torch.zeros(0, 2), "d": randn(3).to(torch.bfloat16)}
    back = unpack(pack(given))
    assert list(back) == ["a", "b", "c", "d"] and all(torch.equal(back[name], given[name]) for name in given)
    assert unpack(pack({})) == {}


def test_tensors_that_share_memory_can_be_packed() -> None:
    """A rule may begin with the adapter itself, and a client may send two views of one tensor."""
    whole = randn(4, 3)
    given = {"a": whole, "b": whole, "c": whole[1:], "d": whole.t()}
    back = unpack(pack(given))
    assert all(torch.equal(back[name], given[name]) for name in given)
