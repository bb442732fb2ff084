"""The project as a whole: every module imports, every scenario loads, what is shipped is there, house rules hold."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from oblivion.config import load_config
from server.prepare import check_names

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("oblivion", "clients", "server", "strategies", "simulations")
MAX_FILE, MAX_FUNCTION = 400, 60
CODE = (".py", ".toml", ".sh", ".cfg", ".html", ".yml", ".yaml")
TEXT = (*CODE, ".md", ".txt", ".css", "", ".jinja")
# What no source file may hold, and why; this file is left out because it names them.
FORBIDDEN = {
    r"trust_remote_code\s*=\s*True": "runs code from a model's folder",
    r"\btorch\.load\b": "unpickles",
    r"\bpickle\.loads?\b": "unpickles",
    r"\byaml\.load\b": "makes objects from text",
    r"(?<![\w.])eval\(": "runs text",
}
# alembic runs its environment inside a migration; imported by itself it has no connection to work on.
RUN_BY_OTHERS = {"oblivion.ledger.migrations.env"}
# Text from outside is read by one reader. These read their own text, or say here why not.
PARSERS = {
    "oblivion/untrusted.py": "the reader",
    "oblivion/data/chat_rendering.py": "a line that its own other half wrote",
    "oblivion/data/json_rows.py": "rows: numbers stay as they are written, and files may be large",
    "oblivion/data/rows.py": "a list inside a row, as above",
    "oblivion/data/federation.py": "a key that it wrote itself",
    "oblivion/ledger/book.py": "content that was compared with the authenticated log",
    "oblivion/ledger/reading.py": "every entry of a log, fast; what is no object counts as nothing",
    "oblivion/ledger/evidence.py": "a copy of what it wrote itself",
    "oblivion/ledger/verify_evidence.py": "stands alone, without the library",
    "oblivion/models/adapter_folder.py": "settings that it checked and wrote itself",
    "oblivion/models/resident.py": "the same settings",
    "tools/tiny_recipe.py": "what a tokenizer just said",
    "oblivion/federation/erasing.py": "a copy of what it wrote itself",
    "oblivion/federation/carrying_out.py": "a copy of what it wrote itself",
    "oblivion/federation/trials.py": "a copy of what it wrote itself",
    "oblivion/wire.py": "a message, whose size Flower bounds and whose kinds are checked field by field",
}
NOWHERE = {r"/work/": "a path of one machine", r"\bTODO\b": "unfinished work has no place in a release"}


def sources() -> list[Path]:
    """Python files of the five packages."""
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def tracked() -> list[Path]:
    """Files of the repository, those not yet committed too; without git, those of the known folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
        paths = [ROOT / line for line in done.stdout.splitlines()]
    except (OSError, subprocess.SubprocessError):
        paths = [
            p for folder in (*PACKAGES, "tests", "docs", "benchmarks", "docker") for p in (ROOT / folder).rglob("*")
        ]
    return [path for path in paths if path.is_file() and path != Path(__file__).resolve()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_every_module_imports_and_says_what_it_is(path: Path) -> None:
    if module_of(path) in RUN_BY_OTHERS:
        said = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    else:
        said = importlib.import_module(module_of(path)).__doc__
    assert (said or "").strip(), f"{name_of(path)} has no docstring"


def test_alembic_runs_what_only_it_can_run(tmp_path: Path) -> None:
    """Its environment makes a ledger's database, and what comes out is what the code expects to find."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    from oblivion.ledger import schema

    assert {module_of(path) for path in sources()} >= RUN_BY_OTHERS
    schema.create(tmp_path / "ledger.db")
    with create_engine(f"sqlite:///{tmp_path / 'ledger.db'}").connect() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == schema.VERSION
        assert compare_metadata(context, schema.metadata) == []


def test_there_are_five_packages_of_modules() -> None:
    folders = {name_of(path).split("/")[0] for path in sources()}
    assert folders == set(PACKAGES) and len(sources()) > 80


@pytest.mark.parametrize("path", sorted((ROOT / "simulations/scenarios").glob("*.toml")), ids=lambda path: path.stem)
def test_every_scenario_loads_and_its_names_are_known(path: Path) -> None:
    config = load_config(path)
    check_names(config)
    assert config.forget.client and config.forget.methods, "a scenario of this project forgets somebody"
    assert path.read_text("utf-8").startswith("#"), "the first line says what the scenario is"


def test_the_default_scenario_exists() -> None:
    assert (ROOT / "simulations/scenarios/demo.toml").is_file()


def test_package_data_is_declared_and_there(project: dict[str, Any]) -> None:
    declared = project["tool"]["setuptools"]["package-data"]
    found = {
        package: {path.relative_to(ROOT / package).as_posix() for p in patterns for path in (ROOT / package).glob(p)}
        for package, patterns in declared.items()
    }
    needed = {"py.typed", "models/tiny/model.safetensors", "models/tiny/config.json", "models/tiny/tokenizer.json"}
    assert needed | {"report/report.html", "report/report.css"} <= found["oblivion"]
    assert "scenarios/demo.toml" in found["simulations"]
    for package in PACKAGES:  # whatever is no Python file is declared, or an installation lacks it
        others = {
            path.relative_to(ROOT / package).as_posix()
            for path in (ROOT / package).rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc")
        }
        assert others <= found.get(package, set())
    assert (Path(str(files("oblivion"))) / "models/tiny/model.safetensors").stat().st_size > 100_000


def test_the_flower_bundle_holds_code_and_the_license_only(project: dict[str, Any]) -> None:
    app = project["tool"]["flwr"]["app"]
    expected = {"/LICENSE", "server/**/*.py", "clients/**/*.py", "strategies/**/*.py"}
    assert set(app["fab-include"]) == expected and (ROOT / "LICENSE").is_file()
    for reference in app["components"].values():
        module, _, attribute = reference.partition(":")
        assert hasattr(importlib.import_module(module), attribute)


def test_the_command_is_the_one_that_the_project_declares(project: dict[str, Any]) -> None:
    module, _, attribute = project["project"]["scripts"]["oblivion"].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("pattern", FORBIDDEN, ids=list(FORBIDDEN.values()))
def test_no_code_does_what_is_forbidden(pattern: str) -> None:
    expression = re.compile(pattern)
    found = [name_of(p) for p in tracked() if p.suffix in CODE and expression.search(p.read_text("utf-8"))]
    assert not found


@pytest.mark.parametrize("pattern", NOWHERE, ids=list(NOWHERE.values()))
def test_no_file_holds(pattern: str) -> None:
    expression = re.compile(pattern)
    found = [name_of(p) for p in tracked() if p.suffix in TEXT and expression.search(p.read_text("utf-8", "replace"))]
    assert not found


def test_one_reader_reads_what_comes_from_outside() -> None:
    parses = re.compile(r"\bjson\.loads?\(|JSONDecoder\(|\btomllib\.loads?\(|model_validate_json")
    found = {name_of(path) for path in sources() if parses.search(path.read_text("utf-8"))}
    assert found <= PARSERS.keys()


def test_the_patterns_find_what_they_are_for() -> None:
    caught = ["x(trust_remote_code=True)", "torch.load(f)", "pickle.load(f)", "yaml.load(f)", "y = eval(text)"]
    for pattern, text in zip(FORBIDDEN, caught, strict=True):
        assert re.search(pattern, text)
    assert not re.search(list(FORBIDDEN)[-1], "model.eval()\nevaluate(x)\n_eval(x)")


LOADERS = ("AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoModel", "AutoImageProcessor", "AutoFeatureExtractor")
"""Classes, by how their names begin, that ask a person about code in a folder unless they are told."""


def untrusting(call: ast.Call) -> bool:
    """Whether a call that may load code from a folder says that it does not; other calls count as such."""
    named = ast.unparse(call.func).split(".")
    loads = named[-1] in ("from_pretrained", "from_config") and len(named) > 1 and named[-2].startswith(LOADERS)
    loads = loads or named[-1] in ("load_dataset", "load_dataset_builder", "pipeline", "get_class_from_dynamic_module")
    said = {word.arg: word.value for word in call.keywords}.get("trust_remote_code")
    return not loads or (isinstance(said, ast.Constant) and said.value is False)


def test_every_call_that_could_load_code_from_a_folder_says_that_it_does_not() -> None:
    calls = [
        (path, node)
        for path in tracked()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert not [f"{name_of(path)}:{call.lineno}" for path, call in calls if not untrusting(call)]
    for text in ("AutoConfig.from_pretrained(x)", "a.AutoModelForCausalLM.from_config(x, trust_remote_code=y)"):
        (node,) = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
        assert not untrusting(node)


TEXT_ROOMS = ("datasets", "metrics", "models", "objectives", "tasks", "templates")
"""Rooms of the library whose files may know what a row is made of, each for its own kind of task."""
KNOW_TEXT = {
    "oblivion/config.py": "the settings of all tasks in one tree",
    "oblivion/data/chat_rendering.py": "chat formats, which templates use",
    "oblivion/data/federation.py": "copies of a row: two rows with one question and answer",
    "oblivion/data/groups.py": "copies of a row",
    "oblivion/data/tokens.py": "how `causal_lm` makes token ids",
    "oblivion/data/vectors.py": "rows of `linear`",
    "oblivion/learners.py": "the table of tasks, and the models of one of them",
    "oblivion/evaluation.py": "language models that no run made",
    "oblivion/training/fused.py": "cohorts in one pass through LoRA layers",
    "oblivion/run/manifest.py": "versions of packages",
    "server/doctor.py": "versions of packages",
}
OF_TEXT = re.compile(
    r"tokenizer|\btransformers\b|\bpeft\b|CausalLM|ResidentModel|TokenRow|\.prompt\b|\.answer\b(?!\()"
    r"|LinearModel|VectorClasses|['\"]causal_lm['\"]"
)
"""Words by which code shows that it knows text, or one kind of model."""


def test_only_tasks_and_what_belongs_to_them_know_text_or_a_kind_of_model() -> None:
    others = [path for path in sources() if path.parts[-2] not in TEXT_ROOMS and path.parts[-3] not in TEXT_ROOMS]
    knowing = {name_of(path) for path in others if OF_TEXT.search(path.read_text("utf-8"))}
    assert knowing <= KNOW_TEXT.keys()
    assert len(others) > 100 and OF_TEXT.search("row.prompt") and not OF_TEXT.search("host.answer(request)")


def test_files_are_short() -> None:
    long = {name_of(p): n for p in sources() if (n := len(p.read_text("utf-8").splitlines())) > MAX_FILE}
    long.pop("oblivion/ledger/verify_evidence.py", None)  # outsiders read it by itself, so it is one file
    assert not long


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` to its end, its docstring left out."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        first = function.body[0]
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_functions_are_short() -> None:
    long = {
        f"{name_of(path)}:{function.lineno} {function.name}": body_lines(function)
        for path in sources()
        for function in functions(path)
        if body_lines(function) > MAX_FUNCTION
    }
    assert not long


def test_a_docstring_is_not_counted() -> None:
    (function,) = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n').body
    assert isinstance(function, ast.FunctionDef) and body_lines(function) == 2


def test_no_file_is_called_after_nothing() -> None:
    assert not [name_of(p) for p in sources() if p.stem in ("utils", "misc", "helpers", "common")]


def test_the_gate_runs_every_test() -> None:
    gate, makefile = (ROOT / ".ci" / "run").read_text("utf-8"), (ROOT / "Makefile").read_text("utf-8")
    assert re.findall(r"make (\w+)", gate) == ["check", "test", "slow"] and "40m make slow" in gate
    assert "pytest -m slow -n 2" in makefile
