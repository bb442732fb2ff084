"""What was erased and is there again is found by `oblivion ledger verify`, wherever it lies and whatever its name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from command_line import oblivion
from safetensors.torch import load, save
from small_ledger import SETTINGS, ask, commit, learned, tensors, trial

from oblivion.ledger.adapters import WEIGHTS, note_adapter, tensors_digest
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.verify import verify_ledger
from oblivion.models.resident import weight_bytes

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
