"""What was erased and is there again is found by `oblivion ledger verify`, wherever it lies and whatever its name."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import oblivion
from safetensors.torch import load, save
from small_ledger import CLIENTS, SETTINGS, ask, begun, commit, learned, run_round, state, tensors, trial, update

from oblivion.errors import IntegrityError
from oblivion.ledger import erasure
from oblivion.ledger.adapters import WEIGHTS, note_adapter, tensors_digest
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.register import Register
from oblivion.ledger.rounds import CohortOutcome, RoundRecord, Selection
from oblivion.ledger.store import StoredLedger
from oblivion.ledger.verify import verify_ledger
from oblivion.models.resident import weight_bytes
from oblivion.run_format import PUBLIC_KEY

PLACES = (
    f"adapters/copy/{WEIGHTS}",
    f"adapters/original/{WEIGHTS}",
    f"evaluations/{WEIGHTS}",
    "evaluations/learned/renamed.bin",
    f"forgets/REQUEST/exclude/adapters/{WEIGHTS}",
    "my notes/.hidden/model.safetensors",
    "adapter",
)


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A run with a committed removal, and the adapters that the program made, by their place."""
    root = tmp_path_factory.mktemp("finds") / "run"
    ledger, register = learned(root)
    asked = ask(register, "eve")
    trial(ledger, register, asked, "exclude", fork=4, last=4)
    branch = trial(ledger, register, asked, "rollback", fork=1, last=4)
    made = {
        place: weight_bytes(tensors(place))
        for place in (
            "adapters/original",
            "adapters/oracle.1-req-000000000000",
            f"adapters/oracle.2-{asked.request.id}",
        )
    }
    made |= {
        f"forgets/{asked.request.id}/{name}/adapters": weight_bytes(tensors(name)) for name in ("exclude", "rollback")
    }
    for place, weights in made.items():
        note_adapter(ledger.book, place, weights)
        note_adapter(ledger.book, place, weights)
    noted = [entry for entry in map(json.loads, ledger.book.entries()) if entry["kind"] == "adapter"]
    assert len(noted) == len(made), "each is noted once"
    commit(ledger, register, asked, branch, after=made[f"forgets/{asked.request.id}/rollback/adapters"])
    ledger.close()
    return root, made


@pytest.fixture
def run(committed: tuple[Path, dict[str, bytes]], tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    return Path(shutil.copytree(committed[0], tmp_path / "run")), committed[1]


def put(root: Path, place: str, data: bytes) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_bytes(data)


@pytest.mark.parametrize("place", PLACES)
def test_an_erased_adapter_is_found_wherever_it_is(run: tuple[Path, dict[str, bytes]], place: str) -> None:
    """All but the new head's and those of its request's oracles were erased."""
    root, made = run
    *erased, own_oracle, head = sorted(made, key=lambda name: (name.endswith("rollback/adapters"), "oracle.2" in name))
    for name in erased:
        put(root, place, made[name])
        (finding,) = verify_ledger(root).findings
        assert finding.where == place and f"is an adapter that a removal erased ({name})" in finding.what
        assert oblivion("ledger", "verify", root)[0] == 4
    for name in (own_oracle, head):
        put(root, place, made[name])
        assert [f.where for f in verify_ledger(root).findings] == ["adapters/original"] * place.startswith("adapters/o")


def test_one_that_was_saved_anew_is_found(run: tuple[Path, dict[str, bytes]]) -> None:
    root, made = run
    weights = made["adapters/original"]
    again = save({f"z.{name}": tensor for name, tensor in load(weights).items()}, {"note": "another header"})
    assert again != weights and tensors_digest(again) == tensors_digest(weights)
    put(root, "evaluations/again", again)
    (finding,) = verify_ledger(root).findings
    assert finding.where == "evaluations/again"
    put(root, "evaluations/again", save({name: tensor + 1 for name, tensor in load(weights).items()}))
    assert verify_ledger(root).findings == [], "another model"


def test_what_was_made_after_the_removal_is_no_finding(run: tuple[Path, dict[str, bytes]]) -> None:
    """The same bits may be made again, such as by a removal of a client that was never selected."""
    root, made = run
    ledger, _ = open_ledger(root, SETTINGS)
    note_adapter(ledger.book, "forgets/later/rollback/adapters", made["adapters/original"])
    ledger.close()
    put(root, f"forgets/later/rollback/adapters/{WEIGHTS}", made["adapters/original"])
    assert verify_ledger(root).findings == []


def test_it_says_what_it_could_not_look_at(run: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    root, made = run
    put(tmp_path, f"outside/{WEIGHTS}", made["adapters/original"])
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "nowhere").symlink_to(tmp_path / "missing")
    os.mkfifo(root / "pipe")
    code, out, _ = oblivion("ledger", "verify", root)
    assert code == 0 and out.splitlines()[2:] == [
        "not searched for erased adapters: link: a link to a folder",
        "not searched for erased adapters: nowhere: No such file or directory",
        "not searched for erased adapters: pipe: no regular file",
    ]
    (root / "file link").symlink_to(tmp_path / "outside" / WEIGHTS)
    (finding,) = verify_ledger(root).findings
    assert finding.where == "file link"


@pytest.mark.parametrize("data", [b"", b"x" * 9, b"\xff" * 64, (9).to_bytes(8, "little") + b"{" * 100_000])
def test_no_file_stops_it(run: tuple[Path, dict[str, bytes]], data: bytes) -> None:
    root, _ = run
    put(root, "notes/file", data)
    done = verify_ledger(root)
    assert done.findings == [] and done.unchecked == []


def test_what_guards_against_an_older_copy_is_missed(run: tuple[Path, dict[str, bytes]]) -> None:
    """Both said "everything holds", and the first command that opened the run made a new checkpoint without a word."""
    root, _ = run
    exclusions, checkpoint = root / "keys/exclusions.json", root / "keys/checkpoint.json"
    exclusions.write_text("[]")
    assert [(f.where, f.what) for f in verify_ledger(root).findings] == [
        ("keys/exclusions.json", "does not name 'eve', as the ledger does")
    ]
    exclusions.unlink()
    assert [f.where for f in verify_ledger(root).findings] == ["keys/exclusions.json"]
    open_ledger(root, SETTINGS)[0].close()
    assert verify_ledger(root).findings == [], "the ledger knows it, and the list is written again"
    checkpoint.unlink()
    assert [f.where for f in verify_ledger(root).findings] == ["keys/checkpoint.json"]
    with pytest.raises(IntegrityError, match=r"keys/checkpoint.json is missing, .* restore keys/ from its backup"):
        open_ledger(root, SETTINGS)


@pytest.mark.parametrize("data", [b"k" * 32, b"", b"-----BEGIN PRIVATE KEY-----"])
def test_another_public_key_is_found(run: tuple[Path, dict[str, bytes]], data: bytes) -> None:
    """Evidence that somebody else had signed was good for whoever checked it with the key beside it."""
    root, _ = run
    put(root, PUBLIC_KEY, data)
    (finding,) = verify_ledger(root).findings
    assert (finding.where, finding.what) == (PUBLIC_KEY, "is not the key that this run signs with")


def test_tensors_are_told_apart() -> None:
    one = save({"a": torch.zeros(2, 3)})
    assert tensors_digest(one) == tensors_digest(save({"b": torch.zeros(2, 3)}))
    others = [
        save({"a": torch.zeros(3, 2)}),
        save({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}),
        one[:-1],
        b"",
        b"{}",
    ]
    assert tensors_digest(one) not in {tensors_digest(other) for other in others}


# Mentions of who was forgotten


def forged(ledger: StoredLedger, branch: str, round: int) -> None:
    """A round in which a host claimed updates of 'eve', who was not asked, as older versions booked them."""
    clients, claimed = CLIENTS[:-1], {"eve": "it comes from a client that was not asked"}
    ledger.begin(Selection(branch=branch, round=round, selected=clients, cohorts=(clients,)))
    updates = tuple(update(client, round, branch) for client in clients[1:])
    refused = {**claimed, "ana": "it claims to be 'eve'"}
    ledger.append(CohortOutcome(branch=branch, round=round, cohort=0, updates=updates, refused=refused))
    after = state(branch, round, clients[1:])
    strikes = (("ana", 1, round, "it claims to be 'eve'"), ("eve", 1, round, claimed["eve"]))
    after = replace(after, gate_state=replace(after.gate_state, strikes=strikes))
    record = RoundRecord(branch=branch, round=round, selected=clients, accepted=clients[1:], refused=refused, loss=2.5)
    ledger.commit(record, after, keep=True)


def named(root: Path, client: str) -> list[str]:
    """The records that name a client, but for those that must."""
    connection = sqlite3.connect(root / "ledger" / "ledger.db")
    rows = connection.execute("SELECT kind, key, client, content FROM records").fetchall()
    connection.close()
    wanted = [row for row in rows if row[0] not in ("request", "exclusion", "removal", "branch", "request.state")]
    return [f"{kind} {key}" for kind, key, owner, content in wanted if client == owner or client in content]


@pytest.fixture
def claimed(tmp_path: Path) -> tuple[StoredLedger, Register]:
    ledger, register = begun(tmp_path / "run")
    forged(ledger, "main", 1)
    for round in (2, 3, 4):
        run_round(ledger, "main", round, CLIENTS)
    return ledger, register


def test_forged_mentions_go_when_a_client_leaves(claimed: tuple[StoredLedger, Register], tmp_path: Path) -> None:
    ledger, register = claimed
    asked = ask(register, "eve")
    branch = trial(ledger, register, asked, "rollback", fork=1, last=3)
    forged(ledger, branch, 4)  # a host goes on claiming to be who has left
    commit(ledger, register, asked, branch)
    after = ledger.last_state(branch, 1)
    assert [strike[0] for strike in after.gate_state.strikes] == ["ana"]
    assert ledger.records(branch)[0].accepted == CLIENTS[1:-1]
    assert set(ledger.outcomes("main", 1)[0].refused) == {"ana"}
    ledger.close()
    assert named(tmp_path / "run", "eve") == [] and verify_ledger(tmp_path / "run").findings == []


def test_those_that_are_there_already_are_found_and_go_when_it_is_opened(
    claimed: tuple[StoredLedger, Register], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, register = claimed
    asked = ask(register, "eve")
    branch = trial(ledger, register, asked, "rollback", fork=1, last=4)
    with monkeypatch.context() as before:  # as a version did that went by who was selected
        before.setattr(erasure, "_naming", lambda *_: [])
        commit(ledger, register, asked, branch)
    ledger.close()
    there = named(tmp_path / "run", "eve")
    assert {name.split()[0] for name in there} == {"cohort", "round", "state"}
    found = verify_ledger(tmp_path / "run").findings
    assert len(found) == len(there) and all(f.what == "is about 'eve', which was forgotten" for f in found)
    open_ledger(tmp_path / "run", SETTINGS)[0].close()
    assert named(tmp_path / "run", "eve") == [] and verify_ledger(tmp_path / "run").findings == []
