"""A run on a Ray cluster of two nodes has the bits of one node, and joins only what is closed and with its token."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 1, "temp_dir": sys.argv[1], "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


def environment(**more: str) -> dict[str, str]:
    """Of a process that knows nothing of any Ray but what it is told."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0", **more}


@contextmanager
def cluster(**token: str) -> Iterator[str]:
    """A cluster of two nodes with one CPU each on this machine; gives its address."""
    with tempfile.TemporaryDirectory(prefix="c-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, f"{folder}/r"], text=True, env=environment(**token),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert head.stdin is not None and head.stdout is not None
        try:
            address = ""
            while not address[:1].isdigit():
                address = head.stdout.readline()
                assert address, "the cluster did not start"
            yield address.strip()
        finally:
            started = psutil.Process(head.pid).children(recursive=True)
            head.stdin.close()
            head.wait(60)
            _, alive = psutil.wait_procs(started, timeout=10)
            for process in alive:
                process.kill()
            psutil.wait_procs(alive, timeout=10)


def run(scenario: Path, out: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "oblivion.cli", "run", str(scenario), "--engine", "ray", "--out", str(out)],
        env=environment(**more), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def bits(out: Path) -> dict[str, str]:
    return {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("adapters/original/*.safetensors"))
    }


@pytest.mark.slow
def test_two_nodes_give_the_bits_of_one(micro_scenario: Path, tmp_path: Path) -> None:
    one = run(micro_scenario, tmp_path / "one")
    assert one.returncode == 0, one.stderr
    token = secrets.token_hex(32)
    with cluster(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) as address:
        two = run(micro_scenario, tmp_path / "two", RAY_ADDRESS=address, RAY_AUTH_TOKEN=token)
        assert two.returncode == 0, two.stderr
        wrong = run(micro_scenario, tmp_path / "wrong", RAY_ADDRESS=address, RAY_AUTH_TOKEN="0" * 64)
        assert "0000" not in wrong.stderr
        assert (
            wrong.returncode != 0
            and "is not the token of the Ray cluster" in wrong.stderr
            and len(wrong.stderr.splitlines()) == 1
        ), wrong.stderr
    assert bits(tmp_path / "two") == bits(tmp_path / "one") != {}
    assert token not in two.stdout + two.stderr + (tmp_path / "two/events.jsonl").read_text()


@pytest.mark.slow
def test_a_cluster_that_serves_everybody_is_refused(micro_scenario: Path, tmp_path: Path) -> None:
    with cluster() as address:
        done = run(micro_scenario, tmp_path / "run", RAY_ADDRESS=address, RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode != 0 and "serves calls without a token" in done.stderr, done.stderr
