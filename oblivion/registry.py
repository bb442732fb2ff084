"""Tables of named parts: a name, where its implementation lives, and how outside packages add theirs.

Names travel over the network, import paths never do. An implementation is imported only when it is asked for,
so that listing names costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

from oblivion.errors import ConfigError, nearest


class Registry:
    """A table from names to implementations.

    Parameters
    ----------
    kind : str
        What the table holds, in the singular ("objective"), for error messages.
    table : mapping of str to str
        Name to ``"module:attribute"``.

    Notes
    -----
    Other distributions add to a table through the entry point group ``oblivion.<kind>s``. A name that is
    already taken is refused, so that installing a package can never change what a scenario means.
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._builtin = dict(table)

    @cached_property
    def _table(self) -> Mapping[str, str]:
        """Installed packages are looked through once: parts are asked for in every message."""
        table = dict(self._builtin)
        for entry in entry_points(group=f"oblivion.{self.kind}s"):
            if entry.name in table:
                raise ConfigError(
                    f"{self.kind} '{entry.name}' is registered twice: by {table[entry.name]} and by "
                    f"{entry.value}; uninstall one of the two packages"
                )
            table[entry.name] = entry.value
        return table

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self._table)

    def get(self, name: str) -> Any:
        """Import and return the implementation called `name`.

        Raises
        ------
        ConfigError
            If there is no such name; the message lists the known ones and the nearest.
        """
        table = self._table
        if name not in table:
            raise ConfigError(f"unknown {self.kind} '{name}'; {nearest(name, table)}")
        module, _, attribute = table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def describe(self) -> dict[str, str]:
        """Name to the first line of the implementation's docstring, for ``oblivion list``."""
        return {name: (self.get(name).__doc__ or "").strip().split("\n")[0] for name in self.names()}
