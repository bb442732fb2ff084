"""Ray with a long TMPDIR; and a failure under Ray says what it came from."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from oblivion.config import load_config
from oblivion.errors import FederationError
from server import doctor, ray_folder
from simulations.engines import ray as ray_engine
from strategies.grid_hosts import _cause

LONG = Path("a_rather_long_directory_name_as_clusters_like_them/slurm_jobdir_1355700/tmp.node0016/scratch")


@pytest.fixture
def long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / LONG
    folder.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    return folder


def test_a_short_place_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(place))
    assert (ray_folder.describe() or "").startswith(f"a private one in {place} for every run")
    with ray_folder.ray_folder() as (folder, _):
        assert folder.parent.parent == place and folder.parent.stat().st_mode & 0o077 == 0
    assert not list(place.iterdir())
    place.rmdir()
    most = 107 - len(f"//{ray_folder._EXAMPLE}/{ray_folder._INSIDE}/{ray_folder._SOCKET}")
    assert ray_folder.fits(Path("/" + "x" * most))
    assert not ray_folder.fits(Path("/" + "x" * (most + 1)))
    assert not ray_folder.fits(Path("/" + "ü" * (most // 2 + 1))), "bytes count, not letters"


def test_a_long_one_is_replaced_by_a_short_one(long: Path) -> None:
    with ray_folder.ray_folder() as (folder, _):
        private = folder.parent
        assert ray_folder.fits(private.parent) and private.stat().st_mode & 0o077 == 0
        folder.mkdir()
        (folder / "session").mkdir()
    assert not private.exists()
    assert "too long for sockets of 107 bytes" in doctor.examine()["ray folder"]


def test_without_a_place_one_line_says_so(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_folder, "_PLACES", ("/nowhere",))
    with pytest.raises(FederationError, match=r"TMPDIR or RAY_TMPDIR") as error, ray_folder.ray_folder():
        pass
    assert str(long) in str(error.value) and "107 bytes" in str(error.value) and "\n" not in str(error.value)
    assert "a short folder for Ray's sockets" in doctor.examine()["missing"]


def test_the_engine_tells_ray_where(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def failing(server_app: Any, client_app: Any, num_supernodes: int, backend_config: dict[str, Any]) -> None:
        told.update(backend_config["init_args"])
        try:
            try:
                raise OSError("no room\nin /dev/shm")
            except OSError as error:
                raise RuntimeError("Simulation Runtime crashed.") from error
        except RuntimeError as error:
            raise RuntimeError("An error was encountered. Ending simulation.") from error

    monkeypatch.setattr("flwr.simulation.run_simulation", failing)
    config = load_config(None, {"simulation.hosts": 1})
    with pytest.raises(FederationError, match=r"failed: OSError: no room in /dev/shm; `oblivion doctor`"):
        ray_engine.run(config, lambda hosts: None)
    private = Path(told["_temp_dir"]).parent
    assert not private.exists() and ray_folder.fits(private.parent)


def test_a_hosts_failure_is_one_line_with_its_cause() -> None:
    ray = (
        "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'"
        "\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=1)\n"
        'Traceback (most recent call last):\n  File "x.py", line 1\nClientAppException: out of memory\'>'
    )
    assert _cause(ray) == "ClientAppException: out of memory"
    assert _cause("Node Unavailable") == "Node Unavailable"
    assert _cause("<class 'X'>:<'the actor died\nfor some reason'>") == "<class 'X'>:<'the actor died for some reason"


@pytest.mark.slow
def test_a_run_on_ray(long: Path, micro_model: Path, tmp_path: Path) -> None:
    settings = {
        "model.name": str(micro_model), "lora.rank": 2, "federation.clients": 2, "federation.rounds": 1,
        "train.local-epochs": 1, "data.parameters.rows_per_client": 4, "data.parameters.holdout_authors": 1,
        "evaluate.max-new-tokens": 2, "evaluate.oracle-seeds": 0, "evaluate.limit": 2, "simulation.hosts": 1,
    }  # fmt: skip
    scenario = tmp_path / "x.toml"
    scenario.write_text("\n".join(f"{key} = {value!r}" for key, value in settings.items()))
    before = set(Path("/tmp").glob("oblivion-*"))
    done = subprocess.run(
        [sys.executable, "-m", "oblivion.cli", "run", str(scenario), "--engine", "ray", "--out", str(tmp_path / "run")],
        env=os.environ, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    assert set(Path("/tmp").glob("oblivion-*")) <= before, "its folder is gone"
