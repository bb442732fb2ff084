"""The pieces of the report, each alone: numbers, marks, labels, standings, sentences and pictures."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metric_rows import TOFU

from oblivion import run_format
from oblivion.errors import InputError
from oblivion.metrics.suites import make_suite
from oblivion.report.comparison import client_names, compare, is_oracle
from oblivion.report.drawing import Labels, Scale, marks, picture, tag, text, tick_label, ticks
from oblivion.report.formatting import count, in_words, megabytes, number, percent, plural, scientific, shorten, signed
from oblivion.report.introduction import learned, opening
from oblivion.report.picture_clients import clients_picture
from oblivion.report.picture_costs import cost_line, costs_picture
from oblivion.report.picture_curves import branches, curves_picture
from oblivion.report.picture_tradeoff import tradeoff_picture
from oblivion.report.reading import flatten, read_run
from oblivion.report.tables import clients_table, cost_share, everything_table, measures, methods_table, runs_table
from oblivion.report.wording import answer, hurt, noise, shared
from oblivion.run.records import Measure, RequestRecord, RunRecord, clean


def request(forget: dict[str, float | None], **extra: Any) -> RequestRecord:
    """A request by client-1 with these forget probabilities; `extra` maps a model to more of its record."""
    models = {
        key: {"central": {"forget_Q_A_Prob": {"value": value}}} | extra.get(key.replace("-", "_"), {})
        for key, value in forget.items()
    }
    fields = {key: value for key, value in extra.items() if key in ("samples", "rows", "t_u")}
    return RequestRecord.model_validate({"id": "r1", "client": "client-1", "models": models} | fields)


def clients(**values: float) -> dict[str, Any]:
    """Per-client probabilities: ``clients(client_1=0.5)``."""
    return {"clients": {k.replace("_", "-"): {"probability": {"value": v}} for k, v in values.items()}}


def history(*rounds: tuple[str, int, float | None]) -> list[dict[str, Any]]:
    return [{"branch": branch, "round": at, "loss": loss, "clients": 3} for branch, at, loss in rounds]


@given(st.floats(min_value=-1e6, max_value=1e6), st.floats(min_value=1e-6, max_value=1e6))
def test_ticks_are_even_and_cover_the_range(low: float, span: float) -> None:
    high = low + span
    marks = ticks(low, high)
    tolerance = 1e-6 * max(1.0, abs(low), span)
    assert marks[0] <= low + tolerance and marks[-1] >= high - tolerance
    assert 2 <= len(marks) <= 13
    steps = [after - before for before, after in itertools.pairwise(marks)]
    assert max(steps) - min(steps) <= tolerance


@given(
    st.lists(
        st.tuples(st.floats(0, 400), st.floats(0, 300), st.text("abcdefgh", min_size=1, max_size=12)),
        min_size=1,
        max_size=6,
    )
)
def test_labels_do_not_overlap(points: list[tuple[float, float, str]]) -> None:
    labels = Labels(frame=(0.0, 0.0, 400.0, 300.0))
    for x, y, words in points:
        labels.place(x, y, words)
    # A frame of this size has room for six short labels wherever their points are.
    assert len(labels.taken) == len(points)
    for one, other in itertools.combinations(labels.taken, 2):
        assert one[2] <= other[0] or one[0] >= other[2] or one[3] <= other[1] or one[1] >= other[3]


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=3), unique=True, max_size=36))
def test_no_two_methods_look_the_same(keys: list[str]) -> None:
    looks = marks(["original", "oracle", *keys])
    assert len(set(looks.values())) == len(keys) + 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.712, "0.71"),
        (0.0312, "0.031"),
        (0.02, "0.02"),
        (-98.27, "−98.3"),
        (3e-9, "3.0·10⁻⁹"),
        (1234.5, "1234"),
        (None, "not measured"),
        (0.0, "0"),
        (0.999, "1.00"),
        (5e-3, "0.005"),
    ],
)
def test_numbers_as_readers_see_them(value: float | None, said: str) -> None:
    assert number(value) == said


def test_differences_keep_their_sign() -> None:
    assert [signed(value) for value in (0.026, -0.52, 0.0001, 0.0)] == ["+0.026", "−0.52", "±0", "±0"]


def test_numbers_in_other_clothes() -> None:
    assert scientific(4.2e-7) == "4.2·10⁻⁷" and scientific(None) == "not measured"
    assert scientific(0.31) == "0.31" and scientific(2.5e4) == "2.5·10⁴"
    assert percent(0.954) == "95\u00a0%" and percent(-0.07) == "−7\u00a0%"
    assert [count(value) for value in (72, 100800, 1.25e6, 3.4e9)] == ["72", "100\u202f800", "1.2\u00a0M", "3.4\u00a0G"]
    assert [megabytes(value) for value in (660_000, 33_000_000, 1.5e9)] == [
        "0.66\u00a0MB",
        "33\u00a0MB",
        "1500\u00a0MB",
    ]
    assert in_words(8) == "eight" and in_words(13) == "13"
    assert plural(1, "client") == "1 client" and plural(8, "client") == "8 clients"
    assert shorten("abcdef", 4) == "abc…" and shorten("abcd", 4) == "abcd"
    assert count(None) == megabytes(None) == "not measured"


@given(st.floats(min_value=-1e9, max_value=1e9))
def test_a_shown_number_is_the_number(value: float) -> None:
    shown = number(value)
    if "10" in shown and "·" in shown:
        mantissa, exponent = shown.split("·10")
        back = float(mantissa.replace("−", "-")) * 10 ** int(
            exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        )
    else:
        back = float(shown.replace("−", "-"))
    # Never off by more than half a unit of the second decimal, or one part in ten.
    assert math.isclose(back, value, rel_tol=0.1) or abs(back - value) <= 0.005


def test_ticks_by_hand() -> None:
    # A span of 0.71 in about 5 steps: 0.142 rounds up to 0.2.
    assert ticks(0.0, 0.71) == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert ticks(-0.17, 0.52) == [-0.2, 0.0, 0.2, 0.4, 0.6]
    assert ticks(3.0, 3.0)[0] <= 3.0 < ticks(3.0, 3.0)[-1]
    assert tick_label(-0.2) == "−0.2" and tick_label(1.0) == "1"


def test_scale_maps_ends_to_ends() -> None:
    scale = Scale((0.0, 0.5, 1.0), 14.0, 386.0)
    assert (scale(0.0), scale(0.25), scale(1.0)) == (14.0, 107.0, 386.0)


def test_elements_escape_text_and_attributes() -> None:
    made = tag("text", 'a < b & "c"', class_='x" onload="y', text_anchor="end", x=1.234)
    assert made == ('<text class="x&#34; onload=&#34;y" text-anchor="end" x="1.2">a &lt; b &amp; &#34;c&#34;</text>')
    drawn = picture("one", 50, "<b>", "</desc>", [text(0, 0, "<i>")])
    assert drawn.startswith("<svg") and "<b>" not in drawn and "<i>" not in drawn and drawn.count("</desc>") == 1


def test_comparison_by_hand() -> None:
    comparison = compare(
        request(
            {"local": 0.3, "oracle-10": 0.26, "original": 0.7, "oracle-2": 0.15, "oracle": 0.2, "other": None},
            original=clients(client_1=0.7, client_2=0.8, client_3=0.6),
            oracle=clients(client_1=0.2, client_2=0.8, client_3=0.7),
            local=clients(client_1=0.3, client_2=0.5, client_3=0.2),
        ),
        TOFU,
    )
    assert [standing.key for standing in comparison.standings] == [
        "original", "oracle", "oracle-2", "oracle-10", "local", "other",
    ]  # fmt: skip
    local, other = comparison.methods
    # Gap 0.7 - 0.2 = 0.5, of which 0.4 is closed; the others are (0.5 + 0.2) / 2 = 0.35, below half of 0.75.
    assert comparison.gap == pytest.approx(0.5)
    assert local.closed == pytest.approx(0.8) and local.distance == pytest.approx(0.1)
    assert local.others == pytest.approx(0.35) and local.utility == local.others and local.collapsed
    assert other.closed is None and other.distance is None and not other.passed and not other.collapsed
    assert comparison.utility_name == "the other clients’ probability"


@given(st.floats(0.3, 1.0), st.floats(0.0, 0.2), st.floats(0.0, 1.0))
def test_closed_is_one_at_the_oracle_and_zero_at_the_original(start: float, goal: float, value: float) -> None:
    made = compare(request({"original": start, "oracle": goal, "a": start, "b": goal, "c": value}), TOFU)
    same, there, between = made.methods
    assert same.closed == pytest.approx(0.0) and there.closed == pytest.approx(1.0) and not there.passed
    assert between.closed is not None and between.distance is not None and made.gap is not None
    assert between.closed * made.gap + between.distance == pytest.approx(made.gap)


def test_a_gap_inside_the_interval_of_the_oracle_is_no_gap() -> None:
    made = request({"original": 0.25, "oracle": 0.21, "a": 0.24, "b": 0.01})
    oracle = made.models["oracle"]
    measure = oracle.central["forget_Q_A_Prob"].model_copy(update={"interval": (0.14, 0.29)})
    models = {**made.models, "oracle": oracle.model_copy(update={"central": {"forget_Q_A_Prob": measure}})}
    comparison = compare(made.model_copy(update={"models": models}), TOFU)
    assert [standing.closed for standing in comparison.methods] == [None, None] and not comparison.measurable
    said = str(answer(comparison))
    assert "so no share of a gap is given: <code>a</code> ended at 0.24" in said
    assert "<code>b</code> went below the oracle, to 0.01" in said and "closed" not in said
    assert [row.cells[2] for row in runs_table([("run", [comparison])])] == ["–", "–", "–", "went below"]


def test_names_of_oracles_and_order_of_clients() -> None:
    assert [is_oracle(key) for key in ("oracle", "oracle-2", "oracle-x", "my-oracle")] == [True, True, False, False]
    made = request({"original": 0.5}, original=clients(client_10=0.1, client_9=0.1, client_1=0.1, b=0.1, **{"7": 0.1}))
    assert client_names(made) == ["client-1", "7", "b", "client-9", "client-10"]


def test_answer_without_an_oracle_or_an_original() -> None:
    said = answer(compare(request({"original": 0.7, "local": 0.3}, rows=1), TOFU))
    assert "client-1’s 1 question with probability 0.70; without an oracle, nothing here says" in said
    assert "The removal <code>local</code> ended at 0.30." in said
    said = answer(compare(request({"oracle": 0.2, "local": 0.3}), TOFU))
    assert said.startswith("How well the model answered client-1’s questions before the request was not measured.")


def test_answer_with_one_method_names_no_method_for_the_others() -> None:
    made = request(
        {"original": 0.7, "oracle": 0.2, "local": 0.2},
        original=clients(client_2=0.8),
        oracle=clients(client_2=0.8),
        local=clients(client_2=0.6) | {"cost": {"fraction": 1.0}},
    )
    assert (
        "Of that gap, <code>local</code> closed all of it (at the full cost of retraining), "
        "while the other clients’ probability moved from 0.80 to 0.60 (the oracle’s is 0.80)."
    ) in answer(compare(made, TOFU))


AUCS = {"original": (1.0, (1.0, 1.0)), "oracle": (0.45, (0.28, 0.62))}


def attacked(closed: float, auc: float, utility: float = 0.5, **oracles: tuple[float, tuple[float, float]]) -> Any:
    """A removal that closed so much of a gap of 0.5, with this AUC; the oracle's is 0.45, 0.28 to 0.62."""
    made = request({"original": 0.7, "oracle": 0.2, "local": 0.7 - 0.5 * closed} | dict.fromkeys(oracles, 0.2))
    values = {**AUCS, **oracles, "local": (auc, (max(0.0, auc - 0.1), auc + 0.1))}
    for key, (value, interval) in values.items():
        made.models[key].central["mia_min_k"] = Measure(value=value, interval=interval, n=34)
        made.models[key].central["model_utility"] = Measure(value=utility if key == "local" else 0.5, n=9)
    return made


OTHER_SIDE = (
    "its rows can be recognised because the model avoids them: over-forgotten (membership AUC 0.14, the oracle’s 0.45)"
)
STILL = "its rows can still be recognised (membership AUC 0.98, the oracle’s 0.45)"


@pytest.mark.parametrize(
    ("closed", "auc", "said"),
    [
        (1.0, 0.45, "</code> closed all of it."),
        (0.95, 0.30, "</code> closed 95\u00a0%."),
        (1.0, 0.14, f"</code> closed all of it, but {OTHER_SIDE}."),
        (0.95, 0.98, f"</code> closed 95\u00a0%, but {STILL}."),
        (0.3, 0.98, f"</code> closed 30\u00a0%, and {STILL}."),
        (1.2, 0.14, f"</code> went below the oracle, to 0.10, and {OTHER_SIDE}."),
        (1.2, 0.98, f"</code> went below the oracle, to 0.10, and {STILL}."),
        (-0.2, 0.14, f"</code> moved away from the oracle, to 0.80, and {OTHER_SIDE}."),
    ],
)
def test_the_answer_looks_at_membership_beside_probability(closed: float, auc: float, said: str) -> None:
    comparison = compare(attacked(closed, auc), TOFU)
    assert said in answer(comparison)
    assert comparison.methods[0].membership == auc


def test_membership_is_judged_by_all_oracles_and_not_by_an_interval_of_no_width() -> None:
    second = {"oracle-2": (0.2, (0.05, 0.35))}
    assert compare(attacked(1.0, 0.14, **second), TOFU).methods[0].recognised == ""
    assert compare(attacked(1.0, 0.04, **second), TOFU).methods[0].recognised == "by avoidance"
    sure = attacked(1.0, 0.9)
    sure.models["oracle"].central["mia_min_k"] = Measure(value=1.0, interval=(1.0, 1.0), n=34)
    assert compare(sure, TOFU).methods[0].recognised == ""
    sure.models["oracle"].central["mia_min_k"] = Measure(
        reason="no answer of group 'forget' has a token before its end"
    )
    assert compare(sure, TOFU).methods[0].recognised == "" and "over-forgotten" not in answer(compare(sure, TOFU))


def test_a_collapse_stands_beside_membership_and_counts_where_the_utility_is_gone() -> None:
    said = answer(compare(attacked(1.0, 0.14, utility=0.01), TOFU))
    assert f"{OTHER_SIDE} <strong>but its utility collapsed</strong> (model utility 0.01, the oracle has 0.50)." in said
    made = attacked(1.0, 0.45)
    made.models["local"].central["model_utility"] = Measure(reason="the model finds all answers impossible")
    said = answer(compare(made, TOFU))
    assert (
        "<strong>but its utility collapsed</strong> (model utility has no value any more, the oracle has 0.50)." in said
    )


def test_a_removal_that_overdid_it_is_never_left_to_the_table() -> None:
    made = attacked(0.8, 0.14)
    oracle = made.models["oracle"]
    for place, value in enumerate((0.2, 0.25, 0.69)):
        central = oracle.central | {"forget_Q_A_Prob": Measure(value=value)}
        made.models[f"m{place}"] = oracle.model_copy(update={"central": central})
    said = answer(compare(made, TOFU))
    assert "<code>m0</code>, the closest to the oracle" in said and "<code>m2</code>, the farthest" in said
    assert "<code>local</code> closed 80" in said and OTHER_SIDE in said


@pytest.mark.parametrize(
    ("n", "distance", "value", "under"),
    [
        (40, 0.304, "0.87", "KS up to 0.30 may be chance"),
        (17, 0.466, "not enough rows (n\u00a0=\u00a017)", "KS up to 0.47 may be chance"),
        (1, 1.92, "not enough rows (n\u00a0=\u00a01)", "any KS may be chance"),
    ],
)
def test_forget_quality_never_stands_alone(n: int, distance: float, value: str, under: str) -> None:
    made = attacked(1.0, 0.45)
    for key, quality in (("original", 1.6e-14), ("oracle", None), ("local", None if n == 1 else 0.87)):
        made.models[key].central["forget_quality"] = Measure(value=quality, n=n, detectable=distance)
    row = next(row for row in methods_table(compare(made, TOFU)) if row.title == "Forget quality")
    oracle, local = row.cells[1], row.cells[2]
    assert (local.value, local.interval) == (value, under) and oracle.value == "the reference"
    everything = next(row for row in everything_table(compare(made, TOFU)) if row.title == "forget_quality")
    assert everything.cells[2].value == value
    text = " ".join([row.counted, *(cell.value + cell.counted for cell in row.cells)])
    assert f"{n} " in text or f"\u00a0{n})" in text


def test_a_value_that_is_missing_for_a_reason_gives_it() -> None:
    made = attacked(1.0, 0.45)
    made.models["local"].central["privleak"] = Measure(reason="nearly nothing to divide by")
    row = next(row for row in methods_table(compare(made, TOFU)) if row.title == "PrivLeak")
    assert (row.cells[2].value, row.cells[2].interval) == ("no value", "nearly nothing to divide by")


def test_hurt_needs_an_oracle_and_names_the_worst() -> None:
    models = {
        "oracle": clients(client_1=0.2, client_2=0.8, client_3=0.7),
        "local": clients(client_1=0.1, client_2=0.7, client_3=0.3),
    }
    said = hurt(compare(request({"oracle": 0.2, "local": 0.2}, **models), TOFU))
    assert said == [
        "<code>local</code>: 2 of 2 other clients lost more than 0.01; most client-3 (0.30, the oracle gives 0.70)."
    ]
    assert hurt(compare(request({"local": 0.2}, local=models["local"]), TOFU)) == []


def test_noise_needs_two_oracles() -> None:
    assert noise(compare(request({"oracle": 0.2}), TOFU)) == ""
    assert "lie 0.04 apart" in noise(compare(request({"oracle": 0.2, "oracle-2": 0.24}), TOFU))
    assert "agree to within 0.005" in noise(compare(request({"oracle": 0.2, "oracle-2": 0.201}), TOFU))


def test_opening_counts_clients_once() -> None:
    one = request({"original": 0.5}, original=clients(client_1=0.5, client_2=0.5), samples=3).model_dump()
    cells = one["models"]["original"]["clients"]
    cells["client-1 (forgotten)"], cells["client-1 (kept)"] = cells["client-1"], cells.pop("client-1")
    metrics = RunRecord.model_validate({"requests": [one]})
    assert opening(metrics).startswith("Two clients taught a language model, one asked to be forgotten: this is")
    assert opening(RunRecord(format=1)) == ""


def test_learned_without_rounds() -> None:
    assert learned(RunRecord(format=1)).startswith("No round has been recorded")
    made = RunRecord.model_validate({"history": history(("main", 1, None))})
    assert learned(made) == "3 clients taught the model for 1 round. Nobody has asked to be forgotten yet."


def test_tables_of_clients_and_of_everything() -> None:
    comparison = compare(
        request(
            {"original": 0.7, "oracle": 0.2},
            original=clients(client_1=0.7, client_2=0.8),
            oracle=clients(client_1=0.2),
        ),
        TOFU,
    )
    first, second = clients_table(comparison)
    assert first.title == "client-1" and first.strong and not second.strong
    assert [(cell.value, cell.difference) for cell in first.cells] == [("0.70", "+0.50"), ("0.20", "")]
    assert [cell.measured for cell in second.cells] == [True, False]
    (row,) = everything_table(comparison)
    assert row.title == "forget_Q_A_Prob" and [cell.value for cell in row.cells] == ["0.70", "0.20"]


def test_runs_table_says_below_and_caps_at_all() -> None:
    comparison = compare(request({"original": 0.7, "oracle": 0.2, "a": 0.198, "b": 0.1, "c": 0.45}), TOFU)
    rows = runs_table([("demo", [comparison])])
    assert [row.cells[2] for row in rows] == ["–", "–", "100\u00a0%", "went below", "50\u00a0%"]
    assert [row.cells[1] for row in rows] == ["+0.50", "–", "−0.002", "−0.10", "+0.25"]


def test_pictures_are_none_where_there_is_nothing_to_draw() -> None:
    empty = compare(request({"original": None, "oracle": None, "local": None}), TOFU)
    assert clients_picture(empty, "k") is None
    assert tradeoff_picture(empty, "k") is None
    assert costs_picture(empty, "k") is None
    assert curves_picture(RunRecord(format=1), "k") is None


def test_clients_picture_puts_values_where_they_belong() -> None:
    made = request(
        {"original": 0.5, "oracle": 0.0},
        original=clients(client_1=0.5, client_2=1.0),
        oracle=clients(client_1=0.0, client_2=1.0),
    )
    drawn = str(clients_picture(compare(made, TOFU), "k"))
    # The axis goes from 14 to 386 for 0 to 1: 0.5 is at 200.
    stems = re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="stem', drawn)
    assert stems == [("14.0", "200.0"), ("386.0", "386.0")]
    assert "client-1: asked to be forgotten" in drawn and "client-2: original 1.00, oracle 1.00" in drawn


def test_tradeoff_picture_draws_one_mark_per_model() -> None:
    utility = {key: {"central": {"model_utility": {"value": 0.4}, "forget_Q_A_Prob": {"value": 0.3}}} for key in "ab"}
    made = RequestRecord.model_validate(
        {"id": "r", "client": "c", "models": {"original": utility["a"], "oracle": utility["b"], "m": utility["a"]}}
    )
    drawn = str(tradeoff_picture(compare(made, TOFU), "k"))
    assert drawn.count('class="mark') == 3
    assert "m: ±0 off the oracle, model utility 0.40" in drawn


def test_costs_picture_has_a_bar_for_every_share() -> None:
    cost = {"cost": {"client_steps": 700, "tokens": 1200000, "bytes_up": 5e6, "bytes_down": 6e6, "fraction": 0.25}}
    bare = {"cost": {"client_steps": 2800}}
    comparison = compare(request({"original": 0.5, "local": 0.3}, original=bare, local=cost), TOFU)
    assert cost_line(comparison.methods[0]) == "700 client-steps, 1.2\u00a0M tokens, 5\u00a0MB up, 6\u00a0MB down"
    drawn = str(costs_picture(comparison, "k"))
    # A quarter of 372 units.
    assert re.findall(r'width="([\d.]+)" height="9.0"', drawn) == ["93.0"]
    assert "2\u202f800 client-steps" in drawn and "local: 0.25 × retraining" in drawn


def test_costs_are_told_in_tokens_too_where_they_are_known() -> None:
    cost = {"cost": {"client_steps": 700, "fraction": 0.2, "token_fraction": 0.25}}
    comparison = compare(request({"original": 0.5, "oracle": 0.1, "local": 0.3}, local=cost), TOFU)
    assert cost_share(comparison.methods[0]) == "0.20\u00a0× steps, 0.25\u00a0× tokens"
    assert "local: 0.20 × (tokens: 0.25 ×)" in str(costs_picture(comparison, "k"))
    assert "(at 0.20 of the cost of retraining in client-steps, 0.25 in tokens)" in answer(comparison)
    only = compare(request({"original": 0.5, "local": 0.3}, local={"cost": {"fraction": 0.2}}), TOFU)
    assert cost_share(only.methods[0]) == "0.20\u00a0×"


def test_what_losses_and_costs_count_is_called_as_the_suite_calls_it() -> None:
    known = {name: {"central": {"forget_probability": {"value": 0.3}}} for name in ("original", "oracle", "local")}
    known["local"]["cost"] = {"client_steps": 700, "tokens": 90, "fraction": 0.2, "token_fraction": 0.25}
    comparison = compare(request(dict.fromkeys(known), **known), make_suite("classes"))
    curves = curves_picture(RunRecord.model_validate({"history": history(("main", 1, 2.0))}), "k", "row")
    said = f"{costs_picture(comparison, 'k')} {curves} {answer(comparison)}"
    assert "90 rows" in said and "(rows: 0.25 ×)" in said and "nats per row" in said and "0.25 in rows" in said
    table = f"{methods_table(comparison)} {measures(comparison.suite)}"
    assert "× rows" in table and "then rows" in table and "token" not in said + table


def test_rows_that_others_hold_are_named_and_not_counted_as_forgotten() -> None:
    asked = request({"original": 0.5, "oracle": 0.1, "local": 0.3})
    assert shared(compare(asked, TOFU)) is None
    some = asked.model_copy(update={"rows": 40, "shared": tuple(f"row-{n}" for n in range(25))})
    said = str(shared(compare(some, TOFU)))
    assert "25 of 40 rows" in said and "<code>row-19</code> and 5 more" in said and "row-20" not in said
    every = asked.model_copy(update={"rows": 25, "shared": some.shared})
    assert "is also held by others, so no row can be forgotten" in answer(compare(every, TOFU))


def test_curves_leave_out_rounds_without_a_loss() -> None:
    rounds = history(("main", 1, 2.0), ("main", 2, None), ("main", 3, 1.0), ("r1/local", 4, 0.5), ("x", 1, None))
    made = RunRecord.model_validate({"history": rounds})
    assert [(branch.name, len(branch.rounds)) for branch in branches(made)] == [("main", 3), ("r1/local", 1), ("x", 1)]
    drawn = str(curves_picture(made, "k"))
    assert drawn.count("<path d=") - drawn.count('class="mark') == 1
    assert "main: 2.00 → 1.00" in drawn and "r1/local: 0.50" in drawn and "x: " not in drawn
    assert branches(made)[0].total("failed") is None


def test_a_removal_looks_the_same_in_the_curves() -> None:
    record = request({"original": 0.5, "exclude": 0.4, "local": 0.3}).model_dump()
    rounds = history(("main", 1, 2.0), ("main", 2, 1.0), ("r1/local", 3, 0.9), ("r1/local", 4, 0.8))
    made = RunRecord.model_validate({"requests": [record], "history": rounds})
    # local is the second method of the request, though its branch is the first of a removal.
    assert "curve k1 dash1" in str(curves_picture(made, "k")) and marks(["exclude", "local"])["local"].colour == "k1"


def test_reading_cleans_flattens_and_counts(tmp_path: Path) -> None:
    assert clean("a\x00b\ud800c\td") == "a\ufffdb\ufffdc\td"
    assert flatten({"a": {"b": [1, 2], "c": {}}, "d": "x", "e": None}) == [
        ("a.b", "[1, 2]"), ("a.c", "{}"), ("d", "x"), ("e", "null"),
    ]  # fmt: skip
    (tmp_path / "metrics.json").write_text('{"later": true, "requests": []}', encoding="utf-8")
    (tmp_path / run_format.FILE).write_bytes(run_format.format_file())
    lines = [{"event": "skipped"}, {"event": "gate.refused"}, {"event": "warning"}, [1], {}]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    run = read_run(tmp_path)
    assert run.manifest is None and run.config is None and run.events is not None
    assert run.events.counts == {"refused": 1, "failed": 0}
    assert run.events.warnings == {"(no text)": 1} and run.events.unreadable == 1


def test_infinite_numbers_count_as_not_measured() -> None:
    measure = {"value": math.inf, "interval": [math.nan, 1.0], "n": 3}
    read = Measure.model_validate(measure)
    assert (read.value, read.interval, read.n) == (None, None, 3)


def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path) -> None:
    (tmp_path / run_format.FILE).write_bytes(run_format.format_file())
    (tmp_path / "metrics.json").write_text('{"later": Infinity}', encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.json: later is Infinity, which is no JSON number"):
        read_run(tmp_path)


def test_the_page_counts_rows_that_do_not_fit_and_names_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    (tmp_path / run_format.FILE).write_bytes(run_format.format_file())
    noted = {"unfit_rows": {"client-1": ["row/1", "row/2"], "client-2": ["row/3"]}}
    (tmp_path / "manifest.json").write_text(json.dumps(noted), encoding="utf-8")
    assert read_run(tmp_path).manifest == (("unfit_rows.client-1", "2"), ("unfit_rows.client-2", "1"))


def test_manifest_must_be_an_object(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    (tmp_path / run_format.FILE).write_bytes(run_format.format_file())
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"manifest\.json: not JSON"):
        read_run(tmp_path)
