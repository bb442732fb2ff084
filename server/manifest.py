"""What a run was made with: versions, code, data, model, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.federation import client_digests
from oblivion.fingerprint import code_fingerprint
from oblivion.models.loading import model_digest

_PACKAGES = ("oblivion-fl", "flwr", "ray", "torch", "transformers", "peft", "opacus", "numpy", "scipy", "scikit-learn")


def package_version(package: str) -> str:
    """The installed version of a distribution, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def describe_clients(data: FederatedData) -> dict[str, dict[str, Any]]:
    """The part of a manifest that is about clients: how many rows each has, and their digest."""
    return {
        "clients": {client: len(rows) for client, rows in data.clients.items()},
        "client_digests": client_digests(data),
    }


def make_manifest(config: RunConfig, data: FederatedData) -> dict[str, Any]:
    """Describe a run so that somebody else can repeat it.

    Returns
    -------
    dict
        Versions, commit, code fingerprint, digests of data and base model, seed, rows per client, kind of machine.
    """
    import torch

    return {
        "versions": {"python": platform.python_version(), **{name: package_version(name) for name in _PACKAGES}},
        "commit": _commit(),
        "code_fingerprint": code_fingerprint(),
        "data_digest": data.digest,
        "model": config.model.name,
        "model_digest": model_digest(config.model),
        "seed": config.seed,
        "engine": config.engine,
        **describe_clients(data),
        "evaluation_rows": {group: len(rows) for group, rows in data.groups.items()},
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": config.train.threads,
        },
    }
