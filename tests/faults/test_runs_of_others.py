"""A run that somebody else made or edited: what goes on with it touches nothing outside, and ends in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oblivion.errors import InputError
from server.numbers import read_metrics
from server.run_directory import RunDirectory

PROGRAM = Path(__file__).with_name("small_commit.py")


@pytest.mark.parametrize("name", ["leads_outside", "says_to_erase_elsewhere"])
def test_commit(name: str) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


REQUEST = {"id": "req-0123456789ab", "client": "a", "models": {"original": {"adapter": None, "central": {}}}}


@pytest.mark.parametrize(
    "edited",
    [
        {},
        {"requests": 1, "history": []},
        {"requests": [{}], "history": []},
        {"requests": [], "history": [[]]},
        {"requests": [{**REQUEST, "models": {"original": 1}}], "history": []},
        *({"requests": [{**REQUEST, "id": name}], "history": []} for name in ("../../home", "*", "req-*", "", 7)),
    ],
)
def test_edited_numbers_are_refused_in_one_line(edited: Any, tmp_path: Path) -> None:
    """Ids in them were looked for as patterns, and what was found was erased."""
    run = RunDirectory(tmp_path)
    for said, refused in (({"requests": [REQUEST], "history": []}, False), (edited, True)):
        (tmp_path / "metrics.json").write_text(json.dumps(said))
        if not refused:
            assert read_metrics(run) == said
            continue
        with pytest.raises(InputError, match=r"metrics\.json: .*restore the file") as error:
            read_metrics(run)
        assert "\n" not in str(error.value)
