"""The run directory: everything a run leaves on disk, each file whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oblivion.config import RunConfig
from oblivion.errors import ConfigError, InputError, OblivionError
from oblivion.files import write_atomically, write_folder
from oblivion.run_format import FILE, format_file, open_run
from oblivion.untrusted import read_json, shown


def to_json(value: Any) -> bytes:
    """Return JSON text; a float that is not finite becomes null, because JSON has no such numbers."""
    return (json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


class RunDirectory:
    """The paths and files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(
        cls, root: Path, config: RunConfig, manifest: Mapping[str, Any], keys: Mapping[str, bytes] | None = None
    ) -> RunDirectory:
        """Begin a run: the directory appears with its config and manifest, so that it can be resumed from then on.

        `keys` are the clients' keys (`oblivion.data.keyed_ids.key_files`).

        Raises
        ------
        ConfigError
            If the directory exists already; a run is never overwritten.
        """
        if root.exists():
            raise ConfigError(f"{root} exists already; choose another --out, or remove it")
        contents = {
            FILE: format_file(),
            "config.toml": config.to_toml().encode(),
            "manifest.json": to_json(manifest),
            **(keys or {}),
        }
        write_folder(root, contents, mode=0o700)  # its numbers and ids may be about people
        return cls(root)

    @classmethod
    def open(cls, root: Path) -> tuple[RunDirectory, RunConfig]:
        """Open a run.

        Raises
        ------
        InputError
            If it is no run directory, or one of another version's layout.
        """
        return cls(root), open_run(root)

    def log(self, event: Mapping[str, Any]) -> None:
        """Append one event to ``events.jsonl``."""
        path = self.root / "events.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(event), ensure_ascii=False) + "\n")
        except OSError as error:
            raise OblivionError(f"{path} could not be written: {error.strerror}; free some space") from None

    def read_json(self, name: str, default: Any) -> Any:
        """Read one of the run's JSON files; `default` where there is none.

        Raises
        ------
        InputError
            If the file is not JSON, or of another kind than `default` (an object for None).
        """
        path = self.root / name
        if not path.exists():
            return default
        value = read_json(path, "the file that the run wrote: restore it")
        kind = dict if default is None else type(default)
        if not isinstance(value, kind):
            raise InputError(f"{path}: is {shown(value)}; expected the file that the run wrote: restore it")
        return value

    def write_json(self, name: str, value: Any) -> None:
        """Write one of the run's JSON files."""
        write_atomically(self.root / name, to_json(value))
