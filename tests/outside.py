"""Packages as other people install them: a module, entry points, and a note of what was installed."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from oblivion.parts import REGISTRIES
from oblivion.provenance import _package

Install = Callable[..., Path]
PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def example(name: str) -> str:
    """The block of docs/extending.md that defines the class `name`, whole."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    (code,) = [block for block in blocks if f"class {name}" in block]
    return str(code)


def install_example(install: Install, group: str, part: str, name: str) -> str:
    """Install a package whose one part, called `part`, is the class `name` of docs/extending.md; return its code."""
    code = example(name)
    module = f"package_of_{part}"
    install(part, "1", {group: {part: f"{module}:{name}"}}, {f"{module}.py": code})
    return code


RULE = '''
"""A rule of another package."""
from oblivion.aggregation.rules.fedavg import FedAvg


class Mine(FedAvg):
    """Average the updates, {how}."""
'''


def _look_again() -> None:
    for registry in REGISTRIES:
        registry.__dict__.pop("_outside", None)
    _package.cache_clear()
    importlib.invalidate_caches()


def uninstall(site: Path) -> None:
    """Take a package off the path again, and what was imported of it out of memory."""
    for folder in (site, site / "elsewhere"):
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
    for module in [name for name in sys.modules if name.startswith("my_fed")]:
        del sys.modules[module]
    _look_again()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(name, version, {group: {part: value}}, {file: text})` puts a package on the path."""
    known = set(sys.modules)

    def installed(
        name: str, version: str, parts: Mapping[str, Mapping[str, str]], files: Mapping[str, str], edited: bool = False
    ) -> Path:
        site = tmp_path / f"site-{len(list(tmp_path.glob('site-*')))}"
        source = site / "elsewhere" if edited else site
        for path, text in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_text(text)
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        groups = [
            f"[oblivion.{group}]\n" + "".join(f"{k} = {v}\n" for k, v in of.items()) for group, of in parts.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups))
        listed = ["__editable___finder.py"] if edited else [*files]
        (site / "__editable___finder.py").write_text(f"PLACE = {str(source)!r}\n")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in [*listed, f"{info.name}/METADATA"]))
        for folder in {str(site), str(source)}:
            monkeypatch.syspath_prepend(folder)
        _look_again()
        return site

    yield installed
    for module in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]
    monkeypatch.undo()
    _look_again()
