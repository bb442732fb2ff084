"""Find scenarios, and choose where runs are put."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from oblivion import config
from oblivion.config import RunConfig
from oblivion.errors import ConfigError, nearest


def scenario_path(name: str) -> Path:
    """Return the file of a scenario: a path, or a name among those of the installed distribution.

    Raises
    ------
    ConfigError
        If there is none; the message lists the known names.
    """
    if name.endswith(".toml"):
        return Path(name)
    folder = _folder()
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = [p.stem for p in folder.glob("*.toml")]
        raise ConfigError(f"unknown scenario '{name}'; {nearest(name, known)}, or give a path that ends in .toml")
    return path


def _folder() -> Path:
    found = find_spec("simulations")  # it is not imported, which would load the engines
    assert found is not None
    return Path(*(found.submodule_search_locations or ())) / "scenarios"


def describe_scenarios() -> dict[str, str]:
    """Return the names of the installed scenarios, each with the first sentence of its file."""
    described = {}
    for path in sorted(_folder().glob("*.toml")):
        lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
        text = " ".join(line.removeprefix("#").strip() for line in lines)
        described[path.stem] = re.split(r"[.:] ", text)[0].removesuffix(".")
    return described


def load_config(scenario: str | Path | None = None, overrides: Mapping[str, Any] | Sequence[str] = ()) -> RunConfig:
    """Read a scenario by its path or its name, apply overrides on top, and validate the whole.

    Parameters
    ----------
    scenario : str or Path, optional
        A TOML file, or the name of a scenario of the installed distribution; None for the defaults alone.
    overrides : mapping of str to value, or sequence of "key=value"
        Dotted keys, such as ``{"federation.rounds": 5}``.

    Returns
    -------
    RunConfig
        Frozen and complete.

    Raises
    ------
    OblivionError
        If there is no such scenario, it cannot be read, or a key or value in it is wrong.
    """
    return config.load_config(None if scenario is None else scenario_path(str(scenario)), overrides)


def free_directory(name: str, parent: Path) -> Path:
    """Return the first of ``name``, ``name-2``, ... that does not exist in `parent`."""
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        if not path.exists():
            return path
        number += 1
