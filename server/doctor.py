"""Say what this machine and installation look like to a run."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
from pathlib import Path

import oblivion
from oblivion.errors import OblivionError
from oblivion.models.loading import TINY
from oblivion.parts import REGISTRIES
from oblivion.provenance import code_fingerprint
from oblivion.registry import package_of
from oblivion.run.manifest import package_version
from server import ray_folder

_NEEDED = ("flwr", "ray", "torch", "transformers", "peft", "numpy", "scipy", "sklearn", "rouge_score", "safetensors")
_SUPERLINK_PORT = 39091


def examine() -> dict[str, str]:
    """Return facts by name; ``missing`` is ``"nothing"`` if a run can start."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if not (TINY / "model.safetensors").is_file():
        missing.append("the built-in model (rebuild it: python -m tools.tiny_recipe)")
    folder = ray_folder.describe()
    if folder is None:
        missing.append("a short folder for Ray's sockets (TMPDIR is too long; set RAY_TMPDIR, or use --engine inline)")
    names = ("oblivion-fl", "flwr", "ray", "torch", "transformers", "peft")
    return {
        "python": platform.python_version(),
        **{name: package_version(name) for name in names},
        "code": str(Path(oblivion.__file__).parent),
        "fingerprint": code_fingerprint(),
        "outside parts": _outside() or "none",
        "cores": str(len(os.sched_getaffinity(0))),
        "device": "unknown" if "torch" in missing else _device(),
        "free disk": f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB",
        "ray folder": folder or "none",
        "ray closed": _ray_closed(),
        "flower home": os.environ.get("FLWR_HOME", str(Path.home() / ".flwr")),
        f"port {_SUPERLINK_PORT}": _port(_SUPERLINK_PORT),
        "missing": ", ".join(missing) or "nothing",
    }


def _ray_closed() -> str:
    """Say how a run keeps others from its Ray."""
    if os.environ.get("RAY_ADDRESS", "local") in ("", "local"):
        return "a new token for every run, without which no call is served; listens on the loopback alone"
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return f"joins the cluster of RAY_ADDRESS {'with its token' if given else 'without a token: set RAY_AUTH_TOKEN'}"


def _outside() -> str:
    """Return the parts that other packages bring, by package, and why one cannot be used."""
    brought: dict[str, list[str]] = {}
    for registry in REGISTRIES:
        for entry in registry.outside():
            said = f"{registry.kind} {entry.name}"
            try:
                registry.check(entry.name)
            except OblivionError as error:
                said = str(error)
            brought.setdefault(package_of(entry), []).append(said)
    return "; ".join(f"{package}: {', '.join(dict.fromkeys(parts))}" for package, parts in sorted(brought.items()))


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _port(number: int) -> str:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        taken = probe.connect_ex(("127.0.0.1", number)) == 0
    if taken:
        return "in use; `flwr run` would attach to a SuperLink there, so set FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
    return "free (Flower's default for `flwr run`)"
