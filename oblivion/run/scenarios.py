"""Where scenarios are found and runs are put."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from oblivion.errors import ConfigError, nearest


def scenario_path(name: str) -> Path:
    """The file of a scenario: a path, or a name among those of the installed distribution.

    Raises
    ------
    ConfigError
        If there is none; the message lists the known names.
    """
    if name.endswith(".toml"):
        return Path(name)
    found = find_spec("simulations")  # it is not imported: that would load the engines
    assert found is not None
    folder = Path(*(found.submodule_search_locations or ())) / "scenarios"
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = [p.stem for p in folder.glob("*.toml")]
        raise ConfigError(f"unknown scenario '{name}'; {nearest(name, known)}, or give a path that ends in .toml")
    return path


def free_directory(name: str, parent: Path) -> Path:
    """The first of ``name``, ``name-2``, ... that does not exist in `parent`."""
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        if not path.exists():
            return path
        number += 1
