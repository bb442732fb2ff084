"""Every number of a report says on how many rows it stands, and a page with several runs knows each of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from metric_rows import TOFU
from test_removal import WHOLE, situation
from test_report import _Page, metrics, write_run

from oblivion.removal.exclude import Exclude
from oblivion.removal.local import Local
from oblivion.report import build_report
from oblivion.report.comparison import compare
from oblivion.report.drawing import left_margin, text_width, tick_label, ticks
from oblivion.report.picture_clients import clients_picture
from oblivion.report.tables import clients_table, everything_table, methods_table
from oblivion.report.wording import measured_on
from oblivion.run.records import RunRecord


def page(folder: Path, content: dict[str, Any], **more: Any) -> str:
    return _Page(build_report([write_run(folder, content, **more)])).text


def limited(n: int, rows: int = 20, samples: int | None = None) -> dict[str, Any]:
    """As a run writes it that measured `n` of `rows` questions."""
    content = metrics(("original", "oracle", "local"))
    request = content["requests"][0]
    request["rows"], request["samples"] = rows, samples
    for model in request["models"].values():
        for measure in model["central"].values():
            measure["n"] = n
        model["central"]["mia_min_k"]["n"] = 2 * n
    return content


def test_what_was_measured_on_fewer_rows_says_so(tmp_path: Path) -> None:
    text = page(tmp_path, limited(8))
    assert "the model answered 8 of client-5’s 20 questions with probability 0.71" in text
    assert "measured on 8 of 20 questions" in text
    assert "measured on 20" not in text and text.count("client-5’s 20 questions") == 1


def test_samples_of_which_few_were_measured(tmp_path: Path) -> None:
    text = page(tmp_path, limited(1, rows=12, samples=12))
    assert "the 12 samples that client-5 withdrew (1 of 12 questions) with probability 0.71" in text
    assert "measured on 1 of 12 questions" in text


def comparison_of(content: dict[str, Any]) -> Any:
    return compare(RunRecord.model_validate(content).requests[0], TOFU)


def test_models_that_were_measured_on_different_rows() -> None:
    content = limited(8)
    content["requests"][0]["models"]["local"]["central"]["forget_Q_A_Prob"]["n"] = 6
    comparison = comparison_of(content)
    assert measured_on(comparison) == "measured on 6 to 8 of 20 questions"
    (row,) = [row for row in methods_table(comparison) if row.title == "Probability"]
    assert row.counted == "" and [cell.counted for cell in row.cells] == ["8 rows", "8 rows", "6 rows"]


def test_rows_that_nobody_counted() -> None:
    content = limited(8)
    for model in content["requests"][0]["models"].values():
        for measure in model["central"].values():
            measure["n"] = None
    assert measured_on(comparison_of(content)) == "20 questions"


def test_every_line_of_every_table_says_how_many() -> None:
    comparison = comparison_of(limited(8))
    counted = {row.title: row.counted for row in methods_table(comparison)}
    assert counted["Probability"] == counted["ROUGE"] == "8 rows"
    assert counted["Membership AUC (min-k)"] == "16 rows" and counted["Other clients’ probability"] == "7 clients"
    assert counted["Cost"] == counted["Guarantee"] == ""
    assert {row.title: row.counted for row in everything_table(comparison)}["mia_min_k"] == "16 rows"
    assert {row.title: row.counted for row in clients_table(comparison)}["client-0"] == "30 rows"
    drawn = str(clients_picture(comparison, "k"))
    assert "client-0, 30 rows<" in drawn and "client-5, 35 rows: asked to be forgotten<" in drawn


def run(folder: Path, name: str, clients: int, settings: str) -> Path:
    content = limited(8) | {"scenario": name}
    for model in content["requests"][0]["models"].values():
        model["clients"] = dict(list(model["clients"].items())[-clients:])
    content["history"] = [{**row, "clients": min(row["clients"], clients)} for row in content["history"]]
    root = write_run(folder / name, content)
    (root / "config.toml").write_text(settings)
    return root


def test_a_long_name_leaves_room_for_the_word_oracle() -> None:
    long = "the-hospital-of-saint-anna"
    renamed = json.loads(json.dumps(limited(8)).replace("client-5", long))
    drawn = str(clients_picture(comparison_of(renamed), "k"))
    assert "asked to be forgotten<" not in drawn and ", 35 rows<" in drawn and ">oracle " in drawn


def test_rounds_of_a_run_whose_removal_was_committed(tmp_path: Path) -> None:
    """Some rounds are still on the line of learning, the others are those of the removal."""
    content = limited(8)
    main = [row for row in content["history"] if row["branch"] == "main"]
    content["history"] = [{**row, "branch": "main" if row["round"] < 4 else "req-1/rollback"} for row in main]
    root = write_run(tmp_path / "run", content)
    (root / "config.toml").write_text(f"[federation]\nrounds = {len(main)}\n")
    assert f"8 clients, {len(main)} rounds" in _Page(build_report([root])).text


OWN = '[data]\nname = "jsonl"\npath = "/somewhere/records.jsonl"\n[federation]\naggregator = "fedadam"\n'


def test_a_page_with_several_runs_knows_each(tmp_path: Path) -> None:
    demo = run(tmp_path, "demo", 8, 'seed = 6\n[data]\nname = "authors"\n[federation]\naggregator = "fedavg"\n')
    small = run(tmp_path, "small", 3, OWN)
    text = _Page(build_report([demo, small])).text
    opening = text.split("The runs beside each other")[0]
    assert "2 runs compared: demo, small" in opening
    assert "demo (8 clients, 10 rounds, 1 request); small (3 clients, 10 rounds, 1 request)" in opening
    assert "They differ in seed, data.name, federation.aggregator, data.path." in opening
    assert "Eight clients taught" not in text
    assert "demo: client-5, measured on 8 of 20 questions" in text
    assert "8 clients, 10 rounds, data authors, rule fedavg, seed 6." in text
    assert "3 clients, 10 rounds, data jsonl, from records.jsonl, rule fedadam." in text
    same = _Page(build_report([demo, demo])).text
    assert "They have the same settings." in same


def test_learning_alone_counts_the_clients_that_were_measured(tmp_path: Path) -> None:
    """Of twelve clients four are asked in a round."""
    content = metrics() | {"requests": []}
    content["history"] = [{**row, "clients": 4} for row in content["history"] if row["branch"] == "main"]
    content["learned"] = {"clients": {f"c-{i}": {"probability": {"value": 0.5, "n": 3}} for i in range(12)}}
    text = page(tmp_path, content)
    assert "Twelve clients taught a language model." in text and "12 clients taught the model for 10 rounds" in text


@pytest.mark.parametrize("highest", [0.0025, 0.00012, 0.7, 12000.0, 3e-5])
def test_numbers_along_an_axis_are_not_cut_off(highest: float) -> None:
    marks = ticks(0.0, highest)
    left = left_margin(marks)
    assert all(left - 6 - text_width(tick_label(mark), 11) >= 0 for mark in marks)
    assert left_margin([0.0, 0.5]) == 40


def test_small_utilities_stay_in_the_picture(tmp_path: Path) -> None:
    content = limited(8)
    for model in content["requests"][0]["models"].values():
        model["central"]["model_utility"]["value"] = 0.0024
    content["history"] = [{**row, "loss": 0.0021} for row in content["history"]]
    html = build_report([write_run(tmp_path, content)])
    ends = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end" class="small">([^<]+)</text>', html)
    axes = [(float(x), label) for x, label in ends if re.fullmatch(r"[\d.]+", label)]
    assert "0.0025" in [label for _, label in axes]
    assert all(x - text_width(label, 11) >= 0 for x, label in axes)


@pytest.mark.parametrize(("rounds", "said"), [(0, "0 rounds"), (1, "1 round"), (2, "2 rounds")])
def test_one_round_is_one_round(rounds: int, said: str) -> None:
    for removal in (Exclude(recovery_rounds=rounds), Local(recovery_rounds=rounds)):
        assert removal.plan(WHOLE, situation()).label.endswith(f" + {said}")


def test_a_narrow_page_says_that_there_is_more_to_the_right(tmp_path: Path) -> None:
    html = build_report([write_run(tmp_path, metrics())])
    assert '<p class="note swipe">5 models stand side by side: swipe the table' in html
    few = build_report([write_run(tmp_path, metrics(("original", "oracle", "local")))])
    assert 'class="note swipe"' not in few
