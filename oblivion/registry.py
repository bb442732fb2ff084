"""Tables of named parts, which say where each implementation lives, and to which other packages add theirs.

Names travel over the network, import paths never do. An implementation is imported only when it is asked for,
so that listing names costs nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from oblivion.errors import ConfigError, InputError, OblivionError, nearest

_NAME = re.compile(r"\w[\w.-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class Registry:
    """A table from names to implementations.

    Parameters
    ----------
    kind : str
        What the table holds, in the singular ("objective"), for error messages.
    table : mapping of str to str
        Name to ``"module:attribute"``.
    needs : tuple of str, optional
        Attributes that whatever an implementation makes must have; see `oblivion.parameters.build`.

    Notes
    -----
    Other distributions add to a table through the entry point group ``oblivion.<kind>s``. A name that two of them
    give, or that is built in, cannot be used until one is uninstalled, so that installing a package can never change
    what a scenario means. All other names can: what is wrong with a part is reported when that part is used.
    """

    def __init__(self, kind: str, table: Mapping[str, str], needs: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._builtin = dict(table)
        self.needs = needs

    @cached_property
    def _outside(self) -> Mapping[str, list[EntryPoint]]:
        """Return the entry points of other packages, looked up once, because every message asks for parts."""
        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=f"oblivion.{self.kind}s"):
            found.setdefault(entry.name, []).append(entry)
        return found

    def names(self) -> list[str]:
        """Return all known names, sorted."""
        return sorted({*self._builtin, *self._outside})

    def outside(self) -> list[EntryPoint]:
        """Return every part that another package brings, sorted by name."""
        return [entry for _, entries in sorted(self._outside.items()) for entry in entries]

    def entries(self, name: str) -> list[EntryPoint]:
        """Return the entry points of other packages for the part called `name`; a built-in part has none."""
        return list(self._outside.get(name, ()))

    def check(self, name: str) -> None:
        """Check that `get` can give the implementation called `name`, without importing one that is built in.

        Raises
        ------
        ConfigError
            If there is no such name; the message lists the known ones and the nearest. Also if two packages give it.
        InputError
            If it comes from another package and cannot be loaded, or is no such part.
        """
        if name not in self._builtin and name not in self._outside:
            raise ConfigError(f"unknown {self.kind} '{name}'; {nearest(name, self.names())}")
        entries = self._outside.get(name, [])
        if not entries:
            return
        self._check_name(name, entries)
        try:
            part = entries[0].load()
        except (Exception, SystemExit) as error:  # the code of another package may raise anything
            raise InputError(
                f"{self.kind} '{name}' cannot be loaded: {_one_line(error)}, from {package_of(entries[0])}"
            ) from error
        if not callable(part):
            raise InputError(
                f"{self.kind} '{name}' is not valid: {_printable(entries[0].value)} is neither a class nor a function, "
                f"from {package_of(entries[0])}"
            )

    def get(self, name: str) -> Any:
        """Import and return the implementation called `name`; raises as `check` does."""
        self.check(name)
        if name in self._outside:
            return self._outside[name][0].load()
        module, _, attribute = self._builtin[name].partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise InputError(
                f"{self.kind} '{name}' cannot be loaded: {_one_line(error)}; `oblivion doctor` says what is missing"
            ) from error

    def check_has(self, name: str, made: Any, needs: Iterable[str]) -> None:
        """Refuse what the part called `name` gave if it lacks attributes that such a thing has.

        Raises
        ------
        InputError
            Naming the part and every attribute that is missing.
        """
        known = set(dir(made))  # `hasattr` would compute properties
        lacks = [attribute for attribute in needs if attribute not in known and not hasattr(made, attribute)]
        if lacks:
            raise InputError(f"{self.kind} '{name}' is not valid: it has no {', no '.join(lacks)}")

    @contextlib.contextmanager
    def calling(self, name: str, what: str) -> Iterator[None]:
        """Run code of the part called `name`; what another package does wrong in it becomes one line with its name.

        Parameters
        ----------
        name : str
            The part.
        what : str
            What it fails to do, such as "cannot make a plan".

        Raises
        ------
        InputError
            Naming the part, its package, the mistake and its place. Errors of this library, and whatever a built-in
            part raises, stay what they are.
        """
        try:
            yield
        except OblivionError:
            raise
        except Exception as error:  # whatever the code of another package does
            entries = self.entries(name)
            if not entries:
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise InputError(
                f"{self.kind} '{name}' {what}: {_one_line(error)} ({last.filename.rpartition('/')[2]}, line "
                f"{last.lineno}), from {package_of(entries[0])}"
            ) from error

    def having(self, attribute: str, value: Any = True) -> list[str]:
        """Return the names of the parts whose class has an attribute of this value, of those that can be loaded."""
        names = []
        for name in self.names():
            with contextlib.suppress(ConfigError, InputError):
                if getattr(self.get(name), attribute, None) == value:
                    names.append(name)
        return names

    def _check_name(self, name: str, entries: list[EntryPoint]) -> None:
        by = [package_of(entry) for entry in entries]
        if name in self._builtin:
            by.insert(0, "this distribution")
        if len(by) > 1:
            raise ConfigError(
                f"{self.kind} '{name}' is registered twice, by {' and by '.join(by)}; uninstall one of the packages"
            )
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{self.kind} {name!a} of {by[0]}: a name is up to 64 letters, digits, '_', '-' and '.', "
                "and begins with a letter, a digit or '_'"
            )

    def describe(self) -> dict[str, str]:
        """Return what ``oblivion list`` says of each name: its docstring's first line, or why it cannot be used."""
        described = {}
        for name in self.names():
            try:
                said = _first_line(str(self.get(name).__doc__ or ""))
            except (ConfigError, InputError) as error:
                said = f"cannot be used: {error}" if isinstance(error, ConfigError) else str(error)
            else:
                entries = self._outside.get(name)
                said = f"{said} (from {package_of(entries[0])})".strip() if entries else said
            described[_printable(name)] = said
        return described


def package_of(entry: EntryPoint) -> str:
    """Return the distribution that brings an entry point, with its version, for messages."""
    if entry.dist is None:
        return _printable(f"an unnamed package with {entry.value}")
    return _printable(f"package {entry.dist.name} {entry.dist.version}")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(str(error))}".removesuffix(": ")


def _first_line(text: str) -> str:
    return _printable((text.strip().splitlines() or [""])[0])


def _printable(text: str) -> str:
    """Return the text of another package as a terminal may show it."""
    return _CONTROL.sub("\ufffd", text)
