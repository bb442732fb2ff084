"""The version of a run directory's layout: one number in one file, which is checked whenever a run is opened."""

from __future__ import annotations

from pathlib import Path

from oblivion.config import RunConfig, config_from_mapping
from oblivion.errors import InputError
from oblivion.untrusted import read, read_toml, shown

FORMAT = 3
"""The format that this version writes and reads. Runs of format 1 have no such file."""
FILE = "format"
PUBLIC_KEY = "public-key.pem"
"""The file of a run directory that holds the key with which its evidence is checked."""
CLIENT_STORE = "client-store"
"""The folder of a run with what its clients keep for themselves."""
ORIGINAL = "adapters/original"
"""The folder of a run directory that holds the adapter that was learned."""
_LONGEST = 64
_OLDER = (
    "was made by an older version of oblivion (0.1.0, or before the file `{file}` was written), whose privacy charges "
    "and ids were others, so it is not read; run its config.toml again (`oblivion run {root}/config.toml --out NEW`), "
    "or use that version"
)


def format_file() -> bytes:
    """Return the content of the file."""
    return f"{FORMAT}\n".encode()


def _lacks(root: Path) -> str:
    return "it has no config.toml" if root.is_dir() else "there is no such folder"


def check_format(root: Path) -> None:
    """Refuse a run directory of another layout, before anything else of it is read.

    Raises
    ------
    InputError
        Saying which layout it has, and the way out.
    """
    path = root / FILE
    if path.is_symlink():
        raise InputError(f"{path}: is a link; expected the file that the run wrote: restore it")
    if not path.exists():
        if not any((root / name).exists() for name in ("config.toml", "metrics.json")):
            raise InputError(f"{root} is not a run directory: {_lacks(root)}; give the directory of a run")
        raise InputError(f"{root} {_OLDER.format(file=FILE, root=root)}")
    data = read(path, "the number that the run wrote: restore it", most=_LONGEST)
    if data == format_file():
        return
    found = data.decode("ascii", "replace").removesuffix("\n")
    if not (found.isascii() and found.isdigit()):
        raise InputError(f"{path}: holds {shown(found)}, which is no format; restore the file that the run wrote")
    raise InputError(
        f"{path}: the run has format {found[:20]}, this version reads format {FORMAT}; use the version of oblivion "
        "that manifest.json of the run names, or run its config.toml again"
    )


def open_run(root: Path) -> RunConfig:
    """Return the resolved config of a run, once its layout is known to be this version's.

    Raises
    ------
    InputError
        If it is no run directory, or one of another layout.
    ConfigError
        If a setting in it is wrong.
    """
    path = root / "config.toml"
    if not path.exists():
        raise InputError(f"{root} is not a run directory: {_lacks(root)}")
    check_format(root)
    return config_from_mapping(read_toml(path, "the settings that the run wrote: restore it"), str(path))
