"""What clients keep for themselves: written and read by client, branch and round, and erased."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from oblivion.errors import IntegrityError, OblivionError
from oblivion.federation.client_store import ClientStore, personal
from oblivion.federation.erasing import private_to_erase
from oblivion.files import watch_steps
from oblivion.ledger.rounds import Branch
from oblivion.run_format import CLIENT_STORE
from oblivion.types import ForgetRequest

A = {"x": torch.tensor([1.0, 2.0])}
B = {"x": torch.tensor([3.0, 4.0]), "a.b": torch.ones(2, 2)}


@pytest.fixture
def store(tmp_path: Path) -> ClientStore:
    made = ClientStore(tmp_path / "run" / CLIENT_STORE)
    made.prepare()
    return made


def test_the_newest_on_the_line_is_read(store: ClientStore) -> None:
    store.write("a", "main", 2, A)
    store.write("a", "req-1/soft", 4, B)
    line = [("main", 0, 3), ("req-1/soft", 4, 9)]
    assert store.newest("a", line).keys() == B.keys() and torch.equal(store.newest("a", line)["x"], B["x"])
    assert torch.equal(store.newest("a", [("main", 0, 3), ("req-1/soft", 4, 3)])["x"], A["x"])
    assert torch.equal(store.newest("a", [("main", 0, 3), ("req-1/other", 4, 9)])["x"], A["x"])
    assert store.newest("a", [("main", 0, 1)]) == {} == store.newest("b", line)
    store.forget_branch("req-1/soft")
    assert [(kept.client, kept.branch, kept.round) for kept in store.kept()] == [("a", "main", 2)]


def test_the_same_round_written_again_has_the_same_bytes_and_is_durable(store: ClientStore) -> None:
    steps: list[str] = []
    watch_steps(lambda when, step: steps.append(step) if when == "after" else None)
    try:
        store.write("a", "main", 1, B)
    finally:
        watch_steps(None)
    assert steps[-4:] == ["write", "fsync", "rename", "fsync"]
    path = store.folder / "a" / "main" / "1.safetensors"
    before = path.read_bytes()
    store.write("a", "main", 1, dict(reversed(B.items())))
    assert path.read_bytes() == before
    assert all(p.stat().st_mode & 0o077 == 0 for p in [store.folder, *store.folder.rglob("*")])


def test_own_tensors_stand_in_the_place_of_shared_ones() -> None:
    shared = {"w": torch.zeros(2), "x": torch.zeros(2)}
    assert personal(shared, {}) is shared and personal(shared, {"other": torch.ones(9)}) is shared
    own = personal(shared, A)
    assert list(own) == ["w", "x"] and torch.equal(own["x"], A["x"]) and torch.equal(own["w"], torch.zeros(2))
    with pytest.raises(IntegrityError, match="another shape"):
        personal(shared, {"x": torch.zeros(3)})


@pytest.mark.parametrize(
    ("client", "branch"),
    [("../x", "main"), ("a", "../../x"), ("a", "/etc"), ("a", "x/../y"), ("a", "a/b/c"), ("a", "")],
)
def test_no_name_leads_out_of_the_store(store: ClientStore, client: str, branch: str) -> None:
    for act in (lambda: store.write(client, branch, 1, A), lambda: store.newest(client, [(branch, 0, 9)])):
        with pytest.raises(OblivionError):
            act()
    assert list(store.folder.iterdir()) == []


def test_links_and_what_no_visit_wrote_are_refused(store: ClientStore, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (store.folder / "a").symlink_to(tmp_path / "else")
    with pytest.raises(OblivionError, match="is a link"):
        store.write("a", "main", 1, A)
    (store.folder / "b" / "main").mkdir(parents=True)
    (store.folder / "b" / "main" / "1.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(IntegrityError, match="is not what a visit wrote"):
        store.newest("b", [("main", 0, 9)])
    for tensor in (torch.tensor([float("nan")]), torch.ones(1, dtype=torch.float64)):
        with pytest.raises(OblivionError, match="fp32"):
            store.write("c", "main", 1, {"x": tensor})


def test_a_message_names_only_the_store_of_a_run(store: ClientStore, tmp_path: Path) -> None:
    assert ClientStore.of_message(str(store.folder)).folder == store.folder
    (tmp_path / "other").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / CLIENT_STORE).symlink_to(tmp_path / "other")
    for place in (
        "",
        CLIENT_STORE,
        str(tmp_path / "other"),
        str(tmp_path / "linked" / CLIENT_STORE),
        f"/nowhere/{CLIENT_STORE}",
    ):
        with pytest.raises(OblivionError, match="its clients can keep nothing"):
            ClientStore.of_message(place)


def erased(store: ClientStore, samples: tuple[str, ...] | None, exact: bool) -> list[str]:
    """What a commit of `req-1/t` erases: rounds 1 to 3 of main, data of `a` from round 2 on, the trial from 3 on."""
    fork = 1 if exact else 3
    branches = [Branch(name="main", seed=0, rounds=3), Branch(name="req-1/other", seed=0, rounds=4)]
    branches.append(Branch(name="req-1/t", seed=0, rounds=4, parent="main", fork=fork))
    for client in ("a", "b"):
        for round in (1, 2, 3):
            store.write(client, "main", round, A)
    store.write("a", "req-1/other", 4, A)
    if samples:
        store.write("a", "req-1/t", 4, A)
    opened: Any = SimpleNamespace(
        run=SimpleNamespace(root=store.folder.parent), ledger=SimpleNamespace(branches=lambda: branches)
    )
    asked: Any = SimpleNamespace(request=ForgetRequest(id="req-1", client_id="a", sample_ids=samples))
    found = private_to_erase(opened, asked, "req-1/t", 2, exact)
    return [name.removeprefix(f"{CLIENT_STORE}/").removesuffix(".safetensors") for name in found]


def test_a_client_that_leaves_goes_whole(store: ClientStore) -> None:
    # b's state of round 3 is what the head goes on from; an exact removal forks at round 1, so round 1 alone stays.
    assert erased(store, None, exact=False) == ["a", "b/main/2"]
    assert erased(store, None, exact=True) == ["a", "b/main/2", "b/main/3"]


def test_of_forgotten_samples_only_what_the_removal_made_stays(store: ClientStore) -> None:
    assert erased(store, ("s",), exact=False) == ["a/main/2", "a/main/3", "a/req-1/other/4", "b/main/2"]
    assert erased(store, ("s",), exact=True) == ["a/main/2", "a/main/3", "a/req-1/other/4", "b/main/2", "b/main/3"]
