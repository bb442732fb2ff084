"""Digests of the code that a run is made with: this distribution's own, and that of other packages' parts.

A server compares its own with that of every update, so that a host that runs something else is noticed; a run's
manifest holds both, so that a result can be traced to the code that made it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path

OWN = ("clients", "oblivion", "server", "strategies")
"""The packages that decide what a client trains on and what becomes of it. (`simulations` only starts them.)"""
_CODE = (".py", ".so", ".pyd")


@dataclass(frozen=True, order=True)
class Package:
    """Another distribution that brings parts of a run.

    Attributes
    ----------
    name, version : str
        The name and the version of the distribution.
    digest : str
        SHA-256 over the names and contents of its code (`_CODE`), 64 hex digits.
    """

    name: str
    version: str
    digest: str


def code_fingerprint(packages: Sequence[Package] = ()) -> str:
    """Return the first 16 hex digits of SHA-256 over the code of a run.

    Parameters
    ----------
    packages : sequence of Package
        The other distributions that the run takes parts from. Without any, the code of this one alone.
    """
    digest = hashlib.sha256(_own_digest().encode())
    for package in sorted(packages):
        digest.update(f"\0{package.name}\0{package.version}\0{package.digest}".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _own_digest() -> str:
    files: dict[str, Path] = {}
    for package in OWN:
        # The packages are taken as they are imported: in a Flower app, three of them come from its bundle.
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            files |= _code_in(Path(folder), package)
    return _digest_of(files)


def _code_in(folder: Path, name: str) -> dict[str, Path]:
    """Return the code files of a package's folder under their names in the package."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for path in folder.rglob("*")
        if path.suffix in _CODE and path.is_file()
    }


def _digest_of(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        # Python reads both kinds of line ends alike, and a checkout elsewhere may have the other kind.
        content = path.read_bytes().replace(b"\r\n", b"\n") if path.suffix == ".py" else path.read_bytes()
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()


def packages_of(entries: Iterable[EntryPoint]) -> tuple[Package, ...]:
    """Return the distributions that bring these parts, sorted by name. The parts must have been loaded."""
    return tuple(sorted({_package(entry.module, entry.dist) for entry in entries}))


@functools.lru_cache
def _package(module: str, distribution: Distribution | None) -> Package:
    source = getattr(sys.modules.get(module), "__file__", None)
    files = _files_of(distribution) if distribution else {}
    # What is imported may lie elsewhere: a package that is installed to be edited lists none of its files.
    if source is None or Path(source).resolve() not in {path.resolve() for path in files.values()}:
        files = _files_beside(module, source) or files
    if distribution is None:
        return Package(module.partition(".")[0], "unknown", _digest_of(files))
    return Package(distribution.name, distribution.version, _digest_of(files))


def _files_of(distribution: Distribution) -> dict[str, Path]:
    """Return the code that a distribution says it installed, without scripts outside the folder of packages."""
    if distribution.read_text("RECORD") is None:  # it is not installed: these are sources with a note of their name
        return {}
    listed = ((str(path), path) for path in distribution.files or () if path.suffix in _CODE and ".." not in path.parts)
    return {name: found for name, path in listed if (found := Path(str(path.locate()))).is_file()}


def _files_beside(module: str, source: str | None) -> dict[str, Path]:
    """Return the code of the top package of `module`, or the one file of a module without a package."""
    top, _, inner = module.partition(".")
    if source is None:
        return {}
    path = Path(source)
    if path.stem == "__init__":
        return _code_in(path.parents[inner.count(".") + 1 if inner else 0], top)
    return _code_in(path.parents[inner.count(".")], top) if inner else {path.name: path}
