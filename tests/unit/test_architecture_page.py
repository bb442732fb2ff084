"""docs/architecture.md names files and functions that exist, where it says, and draws the layers that the code has."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def table_rows(head: str) -> list[list[str]]:
    """The cells of every row in the tables whose first heading is `head`."""
    rows = []
    for table in re.findall(rf"^\| {head} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.M):
        rows += [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return rows


def names_in(path: Path) -> set[str]:
    """What a module defines at its top, and the methods of its classes as ``Class.method``."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return names


def test_every_question_is_answered_by_a_function_in_the_file_that_is_named() -> None:
    rows = table_rows("question")
    assert len(rows) > 50
    for question, files, functions in rows:
        paths = [ROOT / name for name in re.findall(r"`([^`]+)`", files)]
        wanted = set(re.findall(r"`([^`]+)`", functions))
        assert paths and wanted and all(path.is_file() for path in paths), question
        assert wanted <= set().union(*map(names_in, paths)), question


def test_every_other_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:oblivion|clients|server|strategies|simulations)/[\w./]+)`", PAGE))
    assert len(named) > 60 and not [name for name in named if not (ROOT / name).exists()]


def test_the_layers_are_those_that_import_linter_holds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages, library = (contract["layers"] for contract in project["tool"]["importlinter"]["contracts"])
    assert f"`{' > '.join(packages)}`" in PAGE
    told = [layer for _, modules in table_rows("layer") for layer in modules.split(";")]
    drawn = [set(re.findall(r"`(\w+)`", layer)) for layer in told]
    assert drawn == [set(layer.split(" | ")) for layer in library]


def test_whatever_looks_up_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    modules = {line.split(" -> ")[0] for line in contract["ignore_imports"]}
    for module in modules:
        path = "oblivion/__init__.py" if module == "oblivion" else f"{module.replace('.', '/')}.py"
        assert f"`{path}`" in PAGE
