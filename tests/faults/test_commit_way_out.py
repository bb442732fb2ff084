"""A commit checks what it needs before its point of no return; after it, it can always be finished."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("small_commit.py")
TESTS = (
    "missing_original",
    "link",
    "lost_afterwards",
    "stuck_blocks_nobody",
    "guarantee",
    "incomplete",
    "folders_of_others",
)


@pytest.mark.parametrize("name", TESTS)
def test_commit(name: str) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
