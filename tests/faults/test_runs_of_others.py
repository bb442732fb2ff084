"""A run that somebody else made or edited: what goes on with it touches nothing outside, and ends in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_ledger import SETTINGS, learned

from oblivion.errors import InputError, IntegrityError, OblivionError
from oblivion.federation.results import Results
from oblivion.ledger import blobs
from oblivion.ledger.blobs import FolderBlobs
from oblivion.ledger.keys import Keys
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.verify import verify_ledger
from oblivion.run.directory import RunDirectory

PROGRAM = Path(__file__).with_name("small_commit.py")


@pytest.mark.parametrize("name", ["leads_outside", "says_to_erase_elsewhere"])
def test_commit(name: str) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


REQUEST = {"id": "req-0123456789ab", "client": "a", "models": {"original": {"adapter": None, "central": {}}}}


@pytest.mark.parametrize(
    "edited",
    [
        {"requests": 1, "history": []},
        {"requests": [{}], "history": []},
        {"requests": [], "history": [[]]},
        {"requests": [{**REQUEST, "models": {"original": 1}}], "history": []},
        *({"requests": [{**REQUEST, "id": name}], "history": []} for name in ("../../home", "*", "req-*", "", 7)),
    ],
)
def test_edited_numbers_are_refused_in_one_line(edited: Any, tmp_path: Path) -> None:
    """Ids in them were looked for as patterns, and what was found was erased."""
    results = Results(SimpleNamespace(run=RunDirectory(tmp_path)))  # type: ignore[arg-type]
    for said, refused in (({"requests": [REQUEST], "history": []}, False), (edited, True)):
        (tmp_path / "metrics.json").write_text(json.dumps(said))
        if not refused:
            assert results.record().to_json() == said
            continue
        with pytest.raises(InputError, match=r"metrics\.json: .*restore the file") as error:
            results.record()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["lock", "blob"])
@pytest.mark.parametrize("look", [True, False])
def test_a_pipe_in_a_ledger_is_waited_for_by_nobody(place: str, look: bool, tmp_path: Path) -> None:
    ledger, _ = learned(tmp_path / "run")
    ledger.close()
    folder = tmp_path / "run/ledger"
    path = folder / "lock" if place == "lock" else next(p for p in sorted(folder.glob("blobs/*/*")))
    path.unlink()
    os.mkfifo(path)
    if place == "blob":
        assert any("is no file" in finding.what for finding in verify_ledger(tmp_path / "run").findings)
        return
    with pytest.raises(OblivionError, match="is no file"):
        verify_ledger(tmp_path / "run") if look else open_ledger(tmp_path / "run", SETTINGS)


def test_keys_and_blobs_of_any_size_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a hole takes nothing on the disk; it was read whole."""
    ledger, _ = learned(tmp_path / "run")
    ledger.close()
    monkeypatch.setattr(blobs, "_LARGE", 2**20)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read whole"))
    blob, key = (next(iter(sorted((tmp_path / "run").glob(p)))) for p in ("ledger/blobs/*/*", "keys/states/*/*.key"))
    os.truncate(blob, 2**21)
    with pytest.raises(IntegrityError, match="was changed"):
        FolderBlobs(tmp_path / "run/ledger/blobs").get(blob.name)
    os.truncate(key, 2**40)
    with pytest.raises(IntegrityError, match="is not a key of 32 bytes"):
        Keys(tmp_path / "run/keys").get(key.relative_to(tmp_path / "run/keys").as_posix().removesuffix(".key"))
