"""Describe what a run was made with: versions, code, data, model, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.federation import client_digests, data_digest
from oblivion.learners import learner_of, models_of
from oblivion.parts import outside_packages, run_fingerprint
from oblivion.provenance import code_fingerprint
from oblivion.run.directory import RunDirectory
from oblivion.run.events import Observer
from oblivion.run.records import read_manifest

_PACKAGES = ("oblivion-fl", "flwr", "ray", "torch", "transformers", "peft", "opacus", "numpy", "scipy", "scikit-learn")


def package_version(package: str) -> str:
    """Return the installed version of a distribution, or "not installed"."""
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
    """Return the part of a manifest that is about clients: how many rows each has, and their digest."""
    return {
        "clients": {client: len(rows) for client, rows in data.clients.items()},
        "client_digests": client_digests(data),
    }


def note_code(run: RunDirectory, config: RunConfig, observer: Observer) -> None:
    """Compare the code with the code that a run began with, before the run goes on.

    Packages that a removal uses and the run did not are added to the manifest, as ``packages_added``. A warning says
    where code has changed: the rounds before and after are then made by different code.
    """
    manifest = read_manifest(run.root)
    began, added = list(manifest.packages), list(manifest.packages_added)
    before, now = manifest.code_fingerprint, code_fingerprint(began)
    if before != now:
        observer.event("warning", text=f"the code is not what this run began with: {before} then, {now} now")
    new = [package for package in outside_packages(config) if package not in (*began, *added)]
    for package in new:
        other = [known for known in (*began, *added) if known.name == package.name]
        if other:
            told = " then, ".join(f"{one.version} ({one.digest[:16]})" for one in (other[-1], package))
            observer.event("warning", text=f"package {package.name} is not what this run used before: {told} now")
    if new:
        values = run.read_json("manifest.json", {})
        run.write_json("manifest.json", {**values, "packages_added": [asdict(one) for one in (*added, *new)]})


def make_manifest(config: RunConfig, data: FederatedData) -> dict[str, Any]:
    """Describe a run so that somebody else can repeat it.

    Returns
    -------
    dict
        Versions, commit, fingerprint of the code, other packages that parts come from (`oblivion.provenance.Package`),
        digests of data and base model, seed, rows per client, kind of machine.
    """
    import torch

    return {
        "versions": {"python": platform.python_version(), **{name: package_version(name) for name in _PACKAGES}},
        "commit": _commit(),
        "code_fingerprint": run_fingerprint(config),
        "packages": [asdict(package) for package in outside_packages(config)],
        "data_digest": data_digest(data),
        "model": config.model.name,
        "model_digest": models_of(config.model).digest(config.model),
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
            "deterministic": learner_of(config).repeats_bits,
        },
    }
