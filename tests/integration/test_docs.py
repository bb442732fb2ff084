"""The documentation: its code runs, its commands, keys, names and links exist, its tables are the code's.

Rules for whoever writes a page:

* a ``python`` block whose first line is ``# tested`` is run, the blocks of one page in order in one namespace, in an
  empty folder that holds the micro scenario as ``scenario.toml``; every other ``python`` block is compiled;
* a line that begins with ``oblivion`` in a ``sh`` block is parsed by the real command line, with its keys and names;
* a ``toml`` block is a scenario, unless it begins with ``[project``; ``[data]`` and the like are validated as one.
"""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from oblivion import cli
from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.schemes import schemes
from oblivion.config import RunConfig, config_from_mapping, load_config, parse_assignment
from oblivion.data.datasets import datasets
from oblivion.data.partitions import partitions
from oblivion.data.templates import templates
from oblivion.metrics import metrics
from oblivion.metrics.suites import suites
from oblivion.objectives import objectives
from oblivion.removal import phases, removals
from oblivion.removal.context import REQUIREMENTS, PlanningContext
from oblivion.removal.plan import plan_removal
from oblivion.removal.retrain import Retrain
from oblivion.run.scenarios import scenario_path
from oblivion.types import ForgetRequest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.name != "log.md")
EVERYTHING = [*PAGES, ROOT / "README.md"]
REGISTRIES = (aggregators, schemes, datasets, partitions, templates, metrics, suites, objectives, removals)
COMMANDS = typer.main.get_command(cli.app)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FREE = ("federation.joins", "federation.ranks", "federation.parameters", "forget.methods", "data.columns")
FREE += ("model.parameters", "data.parameters", "data.partition-parameters", "evaluate.parameters")
"""Settings that are tables of their own, in which any key may stand."""


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(page.read_text("utf-8")) if language in languages]


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of every command in the shell blocks, without variables set in front of it."""
    for text in blocks(page, "sh", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def keys(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to default values."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + name
        if isinstance(value, dict) and key not in FREE:
            found |= keys(value, key + ".")
        else:
            found[key] = value
    return found


KNOWN = keys(RunConfig().to_json())


def known_key(key: str) -> bool:
    return key in KNOWN or any(key.startswith(table + ".") for table in FREE)


ids = [str(page.relative_to(ROOT)) for page in EVERYTHING]
each_page = pytest.mark.parametrize("page", EVERYTHING, ids=ids)


@pytest.mark.parametrize("page", EVERYTHING, ids=ids)
def test_python_blocks(page: Path, micro_scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(micro_scenario, tmp_path / "scenario.toml")
    namespace: dict[str, Any] = {"__name__": "page"}
    for number, text in enumerate(blocks(page, "python", "py"), start=1):
        code = compile(text, f"{page.name}, block {number}", "exec", dont_inherit=True)
        if text.startswith("# tested\n"):
            before = set(namespace)
            exec(code, namespace)  # a page of this repository, not input
            assert set(namespace) > before, f"{page.name}, block {number} defines nothing"


def check_settings(assignments: list[str], scenario: str | None) -> None:
    for assignment in assignments:
        assert known_key(parse_assignment(assignment)[0]), assignment
    if scenario is not None:
        load_config(scenario_path(scenario), assignments)  # the values are allowed, too


def check_names(name: str, values: dict[str, Any]) -> None:
    if name == "run":
        scenario = values["scenario"] or "demo"
        check_settings(list(values["assignments"] or ()), None if scenario.endswith(".toml") else scenario)
    elif name == "forget":
        assert values["method"] in removals.names()
        assert all(assignment.startswith("forget.") for assignment in values["assignments"] or ())
        check_settings(list(values["assignments"] or ()), None)
    elif name == "evaluate":
        assert values["suite"] in ("", *suites.names()) and (values["template"] or "plain") in templates.names()
    elif name == "list":
        assert values["kind"] in {registry.kind + "s" for registry in REGISTRIES}


@each_page
def test_commands_exist_with_their_options_keys_and_names(page: Path) -> None:
    assert isinstance(COMMANDS, click.Group)
    for words in command_lines(page):
        if words[0] == "oblivion" and words[1:] not in (["--help"], []):
            command, rest = COMMANDS.commands[words[1]], words[2:]
            if isinstance(command, click.Group):
                command, rest = command.commands[rest[0]], rest[1:]
            check_names(words[1], command.make_context(words[1], rest).params)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.M), words
        elif words[0] == "flwr" and "-c" in words:
            settings = tomllib.loads("\n".join(re.findall(r'\w+="[^"]*"', words[words.index("-c") + 1])))
            assert settings.keys() <= {"scenario", "set"}
            scenario = settings["scenario"]
            elsewhere = scenario.endswith(".toml") or scenario.startswith("/")
            check_settings(shlex.split(settings.get("set", "")), None if elsewhere else scenario)


def test_the_checks_see_what_is_wrong() -> None:
    assert isinstance(COMMANDS, click.Group)
    with pytest.raises(click.NoSuchOption):
        COMMANDS.commands["run"].make_context("run", ["--resum"])
    with pytest.raises(AssertionError):
        check_names("run", {"scenario": "demo", "assignments": ["train.batch-sise=3"]})
    with pytest.raises(AssertionError):
        check_names("forget", {"method": "nothing", "assignments": []})


@each_page
def test_toml_blocks_are_valid(page: Path) -> None:
    for text in blocks(page, "toml"):
        values = tomllib.loads(text)
        if not text.startswith("[project"):
            config_from_mapping(values, page.name)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text("utf-8"))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(DOCS)) for page in PAGES])
def test_files_that_are_named_exist(page: Path) -> None:
    pattern = r"`((?:oblivion|clients|server|strategies|simulations|tests)/[\w/.-]+)`"
    for name in re.findall(pattern, page.read_text("utf-8")):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", ["findings.md", "threat-model.md"])
def test_tests_that_are_named_exist(page: str) -> None:
    named = re.findall(
        r"`((?:cases|faults|integration|parity|property|unit|zoo)/[\w/.-]*)(?:::(\w+))?`", (DOCS / page).read_text()
    )
    assert len(named) > 10
    for file, test in named:
        path = ROOT / "tests" / file
        assert path.exists(), file
        assert not test or f"def {test}(" in path.read_text("utf-8"), f"{file}::{test}"


def table(page: str, head: str) -> list[list[str]]:
    """The cells of the table whose first heading is `head`."""
    lines = (DOCS / page).read_text("utf-8").splitlines()
    rows: list[list[str]] = []
    inside = False
    for line in lines:
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if inside and not set(cells[0]) <= set("-: "):
            rows.append(cells)
        inside = inside or cells[0] == head
    return rows


def test_the_table_of_settings_is_the_code() -> None:
    rows = table("scenarios.md", "key")
    listed = {key.strip("`"): tomllib.loads(f"value = {default.strip('`')}")["value"] for key, default, _ in rows}
    assert len(listed) == len(rows)
    assert listed == KNOWN


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("data.name", datasets),
        ("data.partition", partitions),
        ("data.template", templates),
        ("evaluate.suite", suites),
    ],
)
def test_a_setting_that_names_a_part_lists_them_all(key: str, registry: Any) -> None:
    (meaning,) = [row[2] for row in table("scenarios.md", "key") if row[0] == f"`{key}`"]
    assert [name for name in registry.names() if f"`{name}`" not in meaning] == []


def test_the_ids_of_every_data_set_are_described() -> None:
    assert sorted(row[0].strip("`") for row in table("data.md", "data set")) == datasets.names()


def test_what_phases_take_and_removals_require_is_described() -> None:
    for call, _ in table("extending.md", "phase"):
        name, _, given = call.strip("`").rstrip(")").partition("(")
        parameters = inspect.signature(getattr(phases, name)).parameters
        needed = {one for one, parameter in parameters.items() if parameter.default is parameter.empty}
        assert needed <= set(re.findall(r"\w+", given)) <= set(parameters), name
    text = (DOCS / "extending.md").read_text("utf-8")
    assert [word for word in REQUIREMENTS if f"`{word}`" not in text] == []


@pytest.mark.parametrize(
    ("page", "registry"),
    [
        ("aggregation.md", aggregators),
        ("aggregation.md", schemes),
        ("data.md", datasets),
        ("data.md", partitions),
        ("data.md", templates),
        ("evaluation.md", metrics),
        ("evaluation.md", suites),
        ("forgetting.md", objectives),
        ("forgetting.md", removals),
    ],
)
def test_every_part_is_described(page: str, registry: Any) -> None:
    text = (DOCS / page).read_text("utf-8")
    assert [name for name in registry.names() if f"`{name}`" not in text] == []


def test_every_number_of_the_suite_is_described() -> None:
    text = (DOCS / "evaluation.md").read_text("utf-8")
    names = {name for suite in suites.names() for name in suites.get(suite)().metrics}
    named = {re.sub(r"^(forget|retain|ra|wf|shared)_(?=Q_A|TR)", "<group>_", name) for name in names}
    assert [name for name in sorted(named) if f"`{name}`" not in text] == []


def test_the_checklist_is_described() -> None:
    from oblivion.aggregation.rules.fedavg import FedAvg
    from oblivion.aggregation.schemes.fedit import FedIT

    parts = {"aggregator": FedAvg(), "scheme": FedIT()}
    context = PlanningContext(rounds=1, head=1, seed=0, clients_per_round=1, shared=("row",), private=True, **parts)
    plan = plan_removal(Retrain(), "retrain", ForgetRequest(id="r", client_id="c"), context)
    items = {row[0] for row in table("forgetting.md", "item")}
    assert items == {one.item for one in plan.checklist}


def test_entry_point_groups() -> None:
    text = (DOCS / "extending.md").read_text("utf-8")
    named = set(re.findall(r"oblivion\.([a-z]+s)\"\]", text)) | {
        row[0].strip("`") for row in table("extending.md", "group")
    }
    groups = {f"oblivion.{registry.kind}s" for registry in REGISTRIES}
    assert {name if "." in name else f"oblivion.{name}" for name in named} <= groups


def test_every_page_is_in_the_index_of_its_folder() -> None:
    for page in PAGES:
        if page.name != "README.md":
            assert f"]({page.name})" in (page.parent / "README.md").read_text("utf-8"), page.name
