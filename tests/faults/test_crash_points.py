"""SIGKILL before and after every durable step of a run, and at random times: nothing is lost, nothing is left over.

What is run is in `crash_scenario`, how it is killed and goes on in `crash_points`, what is looked at in `crash_state`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("crash_points.py")
KINDS = {
    "learn": {"write", "fsync", "rename", "unlink", "commit", "checkpoint"},
    "removal": {"write", "fsync", "rename", "unlink", "commit", "checkpoint"},
    "commit": {"write", "fsync", "rename", "unlink", "commit", "checkpoint"},
    "erasure": {"write", "fsync", "rename", "unlink", "commit", "checkpoint"},
}


def crash(*points: str) -> dict[str, Any]:
    """Make the crashes in a process of their own, which has one thread and so can fork."""
    command = [sys.executable, str(PROGRAM), "--points", *points]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def check(made: dict[str, Any]) -> None:
    """Every kind of step must have been there in every phase, and no crash may have done harm."""
    seen = Counter((step["phase"], step["kind"]) for step in made["steps"])
    assert seen.keys() == {(phase, kind) for phase, kinds in KINDS.items() for kind in kinds}, seen
    bad = [crash for crash in made["crashes"] if crash["wrong"]]
    lines = [
        f"{crash['name']}: {crash['moment']} {crash['kind']} in {crash['phase']} ({crash['stack']}), then "
        f"{crash['then']}:\n    " + "\n    ".join(crash["wrong"][:5])
        for crash in bad[:20]
    ]
    how = f"repeat one with: python {PROGRAM} --points NAME"
    assert not bad, f"{len(bad)} of {len(made['crashes'])} crashes did harm; {how}\n" + "\n".join(lines)


def test_a_crash_at_each_kind_of_step_in_each_phase() -> None:
    made = crash("few")
    check(made)
    hit = {(crash["phase"], crash["kind"], crash["moment"]) for crash in made["crashes"]}
    assert hit == {(p, kind, m) for p, kinds in KINDS.items() for kind in kinds for m in ("before", "after")}


@pytest.mark.slow
def test_a_crash_before_and_after_every_step_and_at_random_times() -> None:
    made = crash("all", "random")
    check(made)
    repeated = [crash for crash in made["crashes"] if crash["then"] != "skip" and crash["moment"]]
    assert len(repeated) == 2 * len(made["steps"]) > 2000
    assert sum(not crash["moment"] for crash in made["crashes"]) == 50
