"""After a commit no number that is left depends on the losses and tokens of the erased updates.

So no combination of those numbers, linear or not, gives an erased one back.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("small_commit.py")


def test_what_is_left_does_not_depend_on_what_was_erased() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), "erased_numbers"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
