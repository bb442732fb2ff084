"""Suites: what one has to say, what a report makes of it, and that nothing else knows the name of a metric."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from oblivion.config import RunConfig
from oblivion.data.datasets import datasets
from oblivion.errors import ConfigError, InputError
from oblivion.metrics import metrics
from oblivion.metrics.engine.context import MergeableMetric, Metric
from oblivion.metrics.engine.suite import Column, FileRows, Headline, Number, Suite
from oblivion.metrics.probability import Probability
from oblivion.metrics.suites import make_suite, suites
from oblivion.report.comparison import Comparison, compare
from oblivion.report.picture_tradeoff import tradeoff_picture
from oblivion.report.tables import methods_table, runs_head
from oblivion.report.wording import answer
from oblivion.run.records import RequestRecord

ROOT = Path(__file__).parents[2]
KNOW = {"oblivion/config.py", "oblivion/data/datasets", "oblivion/metrics/suites"}
"""The defaults, the data sets and the suites: other code may know no metric and no data set, except a metric's file."""
SPLIT = ("oblivion", "oblivion/data", "oblivion/metrics")
"""Folders of which each part counts by itself."""
PLACES = {path.relative_to(ROOT).as_posix(): path for folder in SPLIT for path in (ROOT / folder).iterdir()}
BLIND = (
    *sorted(
        name
        for name, path in PLACES.items()
        if name not in {*KNOW, *SPLIT} and (path.suffix == ".py" or any(path.rglob("*.py")))
        if path.parent.name != "metrics" or path.is_dir()
    ),
    *("simulations", "server", "clients", "strategies"),
)
OTHER = {"loss", "gaussian", "sklearn"}
"""Names that also name something else: the loss of training, a noise, a package."""
COMMON = OTHER | {"probability", "rouge", "authors", "vectors"}
"""Names that are also words: these may stand in a sentence, but not alone."""


@dataclass(frozen=True)
class Surprise(Suite):
    """Answers that surprise the model: high for a model that forgot."""

    headline: ClassVar[Headline] = Headline(
        forget=Number(metric="forget_surprise", noun="surprise", higher_remembers=False),
        own=Number(metric="calm", noun="calm"),
        membership=Number(metric="attack", noun="attack’s AUC", higher_remembers=False),
        overdone="finds the answers more surprising",
        overdone_short="is too surprised",
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column(metric="forget_surprise", title="Surprise", meaning="as the oracle"),
    )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {"forget_surprise": Probability("forget"), "attack": Probability("forget")}

    @property
    def client_metrics(self) -> Mapping[str, MergeableMetric]:
        return {"calm": Probability("own")}


def request(**values: float) -> RequestRecord:
    """A request with the forget number of each model; the clients that stay have 0.5."""
    models = {
        name: {
            "central": {
                "forget_surprise": {"value": value, "interval": [value - 0.05, value + 0.05], "n": 9},
                "attack": {"value": 0.5 - value / 2, "interval": [0.2, 0.3]},
            },
            "clients": {"b": {"calm": {"value": 0.5, "n": 4}}},
        }
        for name, value in values.items()
    }
    return RequestRecord.model_validate({"id": "r", "client": "a", "models": models})


@pytest.fixture
def comparison() -> Comparison:
    # The oracle is surprised (0.8), the original is not (0.2): the gap is 0.6, and 0.5 has closed half of it.
    return compare(request(original=0.2, oracle=0.8, half=0.5, far=0.95), Surprise())


def test_a_number_that_rises_with_forgetting_counts_the_other_way_round(comparison: Comparison) -> None:
    half, far = comparison.methods
    assert comparison.measurable and comparison.gap == pytest.approx(0.6)
    assert half.closed == pytest.approx(0.5) and not half.passed
    assert half.distance == pytest.approx(-0.3) and far.distance == pytest.approx(0.15)
    assert far.passed and far.closed == pytest.approx(1.25)


def test_sentences_tables_and_pictures_use_the_words_of_the_suite(comparison: Comparison) -> None:
    said = str(answer(comparison))
    assert "with surprise 0.20" in said and "<code>far</code> went above the oracle, to 0.95" in said
    assert "while the other clients’ calm moved from 0.50" in said and "probability" not in said
    titles = [row.title for row in methods_table(comparison)]
    assert titles == ["Surprise", "Other clients’ calm", "Cost", "Guarantee"]
    picture = str(tradeoff_picture(comparison, "k"))
    assert "← still remembers" in picture and "is too surprised →" in picture
    assert runs_head([Surprise()])[0] == "Forget surprise"
    assert runs_head([Surprise(), make_suite("tofu")])[0] == "Forgetting"


def test_an_attack_that_falls_with_remembering_counts_the_other_way_round() -> None:
    models = request(original=0.2, oracle=0.8, low=0.8, high=0.8).models
    values = {"oracle": 0.25, "low": 0.1, "high": 0.9, "original": 0.1}
    changed = {
        name: model.but(central={**model.central, "attack": model.central["attack"].but(value=values[name])})
        for name, model in models.items()
    }
    low, high = compare(request(original=0.2, oracle=0.8).but(models=changed), Surprise()).methods
    assert (low.recognised, high.recognised) == ("still", "by avoidance")


def test_the_report_of_another_suite_says_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_report import write_run

    from oblivion.report import build_report

    monkeypatch.setitem(suites._builtin, "surprise", f"{__name__}:Surprise")
    content = {"requests": [request(original=0.2, oracle=0.8, half=0.5).to_json()]}
    run = write_run(tmp_path / "run", content, bare=True)
    (run / "config.toml").write_text(RunConfig.model_validate({"evaluate": {"suite": "surprise"}}).to_toml())
    page = build_report([run])
    assert "surprise" in page and "Calm of each client’s own answers" in page
    assert "robability" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)


def test_a_suite_that_lacks_something_is_refused_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suites._builtin, "old", f"{__name__}:old")
    with pytest.raises(InputError, match="suite 'old' is not valid: it has no rows, no metrics, no client_metrics"):
        make_suite("old")
    with pytest.raises(ConfigError, match=r"evaluate.parameters: 'tofu' has no parameter 'k'"):
        make_suite("tofu", {"k": 1})


@dataclass(frozen=True)
class Bare:
    """A metric that is no mean."""

    requires: frozenset[str] = frozenset({"own.answer"})

    def compute(self, context: Any) -> Any:
        return None


@dataclass(frozen=True)
class NoSum(Surprise):
    @property
    def client_metrics(self) -> Mapping[str, Any]:
        return {"calm": Bare()}


@dataclass(frozen=True)
class NoSuch(Surprise):
    headline: ClassVar[Headline] = Headline(
        forget=Number(metric="another", noun="x"), own=Number(metric="calm", noun="y")
    )


def test_a_suite_whose_numbers_do_not_fit_together_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, said in (
        ("NoSum", "clients cannot measure 'calm': it has no value_range, no over"),
        ("NoSuch", "its headline names 'another', which it does not measure"),
    ):
        monkeypatch.setitem(suites._builtin, "odd", f"{__name__}:{name}")
        with pytest.raises(InputError, match=f"suite 'odd': {said}"):
            make_suite("odd")


def old() -> dict[str, Any]:
    """What a suite was once: names with metrics."""
    return {}


def test_rows_of_single_files_stand_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text('{"question": "Who?", "answer": "Ada."}\n')
    groups = Surprise().rows(FileRows(forget=str(tmp_path / "asked.jsonl")))
    assert list(groups) == ["forget"] and [row.prompt for row in groups["forget"]] == ["Who?"]
    with pytest.raises(ConfigError, match="this suite has no files of its own"):
        Surprise().rows(FileRows(folder=str(tmp_path)))


def names() -> set[str]:
    """Every name of a metric, a result and a data set."""
    made = [make_suite(name) for name in suites.names()]
    results = {name for suite in made for name in (*suite.metrics, *suite.client_metrics)}
    return {*metrics.names(), *results, *datasets.names()}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a file with their lines, without docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    told = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value


@pytest.mark.parametrize("place", BLIND)
def test_nothing_else_knows_the_name_of_a_metric_or_a_data_set(place: str) -> None:
    known, root = names(), ROOT / place
    rare = "|".join(sorted(map(re.escape, known - COMMON)))
    files = sorted(root.rglob("*.py")) if root.is_dir() else [root]
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text[:60]!r}"
        for path in files
        for line, text in strings(path)
        if text in known - OTHER or re.search(rf"(?<![\w.-])({rare})(?![\w-])", text)
    ]
    assert found == []
    for page in root.rglob("*.html"):
        assert not re.search(rf"(?<![\w.-])({rare}|probabilit\w+)(?![\w-])", page.read_text("utf-8")), page
