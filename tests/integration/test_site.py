"""The documentation as a site: every page is in its navigation, every name on an API page exists, and it builds."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import oblivion
from oblivion.parts import REGISTRIES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAVIGATION = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
FROM_ELSEWHERE = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>""", re.I)
STYLE_FROM_ELSEWHERE = re.compile(
    r"""<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload))[^>]*//[^>]*>""", re.I
)


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"[\w/.-]+\.md$", NAVIGATION, re.M)
    assert sorted(named) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def test_every_name_on_an_api_page_exists() -> None:
    names = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.M)]
    assert len(names) > 10
    for name in names:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_lists_mean_the_same_in_both_kinds_of_markdown(page: Path) -> None:
    """Python-Markdown needs four spaces before a nested item and an empty line before a list."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    item = r"(?:[-*]|\d+\.) "
    assert re.findall(rf"^ {{1,3}}{item}.*$", text, re.M) == []
    assert re.findall(rf"^(?!{item}|\s|\n).+\n{item}.*$", text, re.M) == []


def test_the_front_door_says_one_thing_in_its_three_lists() -> None:
    """The names for users, for type checkers and for `__getattr__` are the same, from the same modules."""
    tree = ast.parse(Path(oblivion.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: one.module for one in block.body if isinstance(one, ast.ImportFrom) for alias in one.names}
    assert typed == oblivion._LAZY
    assert sorted(typed) == sorted(oblivion.__all__)


@pytest.mark.parametrize("name", sorted(f"{registry.kind}s" for registry in REGISTRIES))
def test_a_table_of_the_front_door_can_be_asked_also_after_its_package_was_imported(name: str) -> None:
    importlib.import_module(oblivion._LAZY[name])
    table = getattr(oblivion, name)
    assert table.get(table.names()[0])
    assert callable(table.describe)


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs the extra `docs` (oblivion-fl[docs]), which is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)  # every page, and the one for an address that does not exist
    for page in pages:
        text = page.read_text("utf-8")
        assert FROM_ELSEWHERE.findall(text) + STYLE_FROM_ELSEWHERE.findall(text) == [], page.name
    front_door = (tmp_path / "site" / "api" / "index.html").read_text("utf-8")
    described = sorted(set(oblivion.__all__) - {f"{registry.kind}s" for registry in REGISTRIES})
    assert [name for name in described if f'id="oblivion.{name}"' not in front_door] == []
    rules = (tmp_path / "site" / "api" / "aggregation.html").read_text("utf-8")
    assert 'id="oblivion.aggregation.rules.fedavg.FedAvg"' in rules
    assert (tmp_path / "site" / "search" / "search_index.js").is_file()  # what the search reads from the disk
