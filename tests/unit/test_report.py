"""The report: what it says, what it never lets through, and what it does with holes in the data."""

from __future__ import annotations

import copy
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from metric_rows import TOFU

from oblivion import run_format
from oblivion.config import RunConfig
from oblivion.errors import InputError, OblivionError
from oblivion.report import build_report, write_report
from oblivion.report.comparison import compare
from oblivion.report.picture_clients import shown_clients
from oblivion.report.reading import read_run
from oblivion.report.tables import methods_table

CLIENTS = [f"client-{index}" for index in range(8)]
CENTRAL = {
    "forget_Q_A_ROUGE": (0.64, 0.24, 0.60, 0.27, 0.24),
    "forget_TR__closer_to_1_better": (0.48, 0.66, 0.50, 0.69, 0.66),
    "forget_quality": (4.2e-7, 1.0, 3.1e-6, 0.31, 1.0),
    "model_utility": (0.41, 0.42, 0.41, 0.38, 0.42),
    "retain_Q_A_Prob": (0.7, 0.7, 0.69, 0.66, 0.7),
    "extraction_strength": (0.52, 0.09, 0.44, 0.07, 0.09),
    "mia_min_k": (0.03, 0.46, 0.05, 0.52, 0.46),
    "privleak": (-79.6, 0.0, -75.9, 11.1, 0.0),
}
# Original 0.71, oracle 0.19: the gap is 0.52. Of it, 0.0624 is 12 % and 0.494 is 95 %.
FORGET = {"original": 0.71, "oracle": 0.19, "exclude": 0.71 - 0.0624, "local": 0.71 - 0.494, "retrain": 0.19}
LABELS = {
    "original": "original",
    "oracle": "oracle",
    "exclude": "exclude",
    "local": "local (NPO)",
    "retrain": "retrain",
}
GUARANTEES = {"original": None, "oracle": None, "exclude": "none", "local": "approximate", "retrain": "exact"}
# The others: the mean under each model, and what sets each client off from it (in sum 0).
BASE = {"original": 0.70, "oracle": 0.70, "exclude": 0.69, "local": 0.66, "retrain": 0.70}
OFFSETS = [-0.12, -0.06, -0.02, 0.0, 0.02, 0.06, 0.12]
COSTS = {"original": None, "oracle": 1.0, "exclude": 0.02, "local": 0.18, "retrain": 1.0}


def _model(name: str) -> dict[str, Any]:
    column = list(FORGET).index(name)
    central: dict[str, Any] = {
        metric: {"value": values[column], "interval": None, "n": 35} for metric, values in CENTRAL.items()
    }
    central["forget_quality"]["n"] = 40  # with 35 rows it would not be shown
    for metric in ("forget_Q_A_ROUGE", "forget_TR__closer_to_1_better", "extraction_strength"):
        value = central[metric]["value"]
        central[metric]["interval"] = [max(0.0, value - 0.05), value + 0.05]
    value = FORGET[name]
    central["forget_Q_A_Prob"] = {"value": value, "interval": [value - 0.06, value + 0.06], "n": 35}
    others = [client for client in CLIENTS if client != "client-5"]
    clients = {
        client: {"probability": {"value": BASE[name] + offset, "n": 30}, "loss": {"value": 0.4, "n": 30}}
        for client, offset in zip(others, OFFSETS, strict=True)
    }
    clients["client-5"] = {"probability": {"value": value, "n": 35}}
    share = COSTS[name]
    steps = 3900 if share is None else round(3600 * share)
    cost = {
        "client_steps": steps,
        "tokens": steps * 1400,
        "bytes_up": steps * 9100,
        "bytes_down": steps * 9300,
        "fraction": share,
    }
    model = {
        "label": LABELS[name],
        "guarantee": GUARANTEES[name],
        "adapter": f"adapters/{name}",
        "central": central,
        "clients": clients,
        "cost": cost,
    }
    if name in ("exclude", "local"):
        model["checklist"] = [
            {"item": "server optimizer moments", "status": "unaffected", "why": "FedAvg keeps none"},
            {
                "item": "other clients’ later updates",
                "status": "not covered",
                "why": "they began at states that hold it",
            },
        ]
    return model


def _request(names: tuple[str, ...] = tuple(FORGET)) -> dict[str, Any]:
    return {
        "id": "req-1f2e3d",
        "client": "client-5",
        "samples": None,
        "rows": 35,
        "t_u": 4,
        "models": {name: _model(name) for name in names},
    }


def _history() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for branch, first, clients in (("main", 1, 8), ("oracle", 1, 7), ("req-1f2e3d/retrain", 4, 7)):
        for at in range(first, 11):
            loss = 0.42 + 2.9 * 0.68 ** (at - 1) + (0.05 if branch == "oracle" else 0.0)
            row = {"branch": branch, "round": at, "loss": loss, "clients": clients}
            rows.append(row | {"refused": 0, "failed": 0, "seconds": 2.1})
    for at, loss in ((11, 0.9), (12, 0.58), (13, 0.5)):
        rows.append({"branch": "req-1f2e3d/local", "round": at, "loss": loss, "clients": 7, "seconds": 1.5})
    return rows


def metrics(names: tuple[str, ...] = tuple(FORGET)) -> dict[str, Any]:
    """A run of eight clients as ``metrics.json`` holds it; fresh on every call."""
    return {"scenario": "demo", "requests": [_request(names)], "history": _history()}


def write_run(directory: Path, content: Any = None, *, bare: bool = False) -> Path:
    """Write a run directory; `bare` leaves only ``metrics.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / run_format.FILE).write_bytes(run_format.format_file())
    text = content if isinstance(content, str) else json.dumps(metrics() if content is None else content)
    (directory / "metrics.json").write_text(text, encoding="utf-8")
    if not bare:
        config = RunConfig.model_validate({"seed": 7, "forget": {"client": "client-5", "methods": ["local"]}})
        (directory / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        manifest = {
            "versions": {"python": "3.11.7", "torch": "2.13.0", "flwr": "1.41.0"},
            "commit": "dc8583f0a1b2c3d4",
            "data": {"hash": "sha256:" + "9a" * 32, "source": "https://example.org/data"},
            "seeds": {"root": 0, "oracles": [0]},
            "machine": {"cores": 2, "device": "cpu"},
        }
        (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        events = [{"event": "round"}, {"event": "refused", "client": "client-2"}, {"event": "update.failed"}]
        events += [{"event": "warning", "message": "client-3 answered late"}] * 2
        lines = [json.dumps(event) for event in events] + ['{"event": "rou']
        (directory / "events.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return directory


class _Page(HTMLParser):
    """What a browser would find: elements with their attributes, and the text outside of styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def _page(tmp_path: Path, content: Any = None, **options: Any) -> _Page:
    return _Page(build_report([write_run(tmp_path / "run", content, **options)]))


def test_names_every_client_and_every_method(tmp_path: Path) -> None:
    text = _page(tmp_path).text
    for name in [*CLIENTS, *LABELS.values(), "req-1f2e3d"]:
        assert name in text


def test_answer_is_worked_out_by_hand(tmp_path: Path) -> None:
    # (0.71 - 0.6476) / 0.52 = 0.12; (0.71 - 0.216) / 0.52 = 0.95; others: 0.70 + mean of OFFSETS, which is 0.
    text = _page(tmp_path, metrics(("original", "oracle", "exclude", "local"))).text
    assert (
        "Before the request, the model answered client-5’s 35 questions with probability 0.71; "
        "a model that never saw them gives 0.19. "
        "Of that gap, exclude closed 12 % (at 0.02 of the cost of retraining) "
        "and local closed 95 % (at 0.18 of the cost of retraining), "
        "while the other clients’ probability moved from 0.70 to 0.69 under exclude and to 0.66 under local "
        "(the oracle’s is 0.70)."
    ) in text


def test_below_the_oracle_is_not_called_better(tmp_path: Path) -> None:
    content = metrics(("original", "oracle", "local"))
    local = content["requests"][0]["models"]["local"]
    local["central"]["forget_Q_A_Prob"]["value"] = 0.02
    text = _page(tmp_path, content).text
    assert "Of that gap, local went below the oracle, to 0.02 (at 0.18" in text
    assert "better" not in text.split("Of that gap")[1].split("asked to be forgotten")[0]


def test_collapse_is_said(tmp_path: Path) -> None:
    # 0.20 is below half of the oracle's 0.42, 0.22 is not.
    for value, said in ((0.20, True), (0.22, False)):
        content = metrics(("original", "oracle", "local"))
        content["requests"][0]["models"]["local"]["central"]["model_utility"]["value"] = value
        text = _page(tmp_path, content).text
        sentence = f"but its utility collapsed (model utility {value:.2f}, the oracle has 0.42)"
        assert (sentence in text) is said


def test_moving_away_and_no_gap_are_said(tmp_path: Path) -> None:
    content = metrics(("original", "oracle", "exclude"))
    models = content["requests"][0]["models"]
    models["exclude"]["central"]["forget_Q_A_Prob"]["value"] = 0.75
    assert "exclude moved away from the oracle, to 0.75" in _page(tmp_path, content).text
    models["oracle"]["central"]["forget_Q_A_Prob"]["value"] = 0.705
    text = _page(tmp_path, content).text
    assert "leaves no gap to close by this measure: exclude ended at 0.75" in text
    assert "of that gap" not in text.lower()


def test_many_methods_name_closest_farthest_and_collapsed(tmp_path: Path) -> None:
    content = metrics()
    models = content["requests"][0]["models"]
    models["local-2"] = copy.deepcopy(models["local"])
    models["local-2"]["central"]["model_utility"]["value"] = 0.01
    answer = _page(tmp_path, content).text.split("Before the request")[1].split("asked to be forgotten")[0]
    assert "retrain, the closest to the oracle with its utility kept, closed all of it" in answer
    assert "exclude, the farthest, closed 12 %" in answer
    assert "local-2 closed 95 %" in answer and "collapsed" in answer
    assert "the table has one more" in answer


def test_samples_of_a_client(tmp_path: Path) -> None:
    content = metrics(("original", "oracle", "local"))
    request = content["requests"][0]
    request["samples"] = 12
    for model in request["models"].values():
        model["clients"]["client-5 (forgotten)"] = model["clients"].pop("client-5")
        # Far from the rest: it must not enter the mean of the other clients.
        model["clients"]["client-5 (kept)"] = {"probability": {"value": 0.05, "n": 23}}
    text = _page(tmp_path, content).text
    assert "the 12 samples that client-5 withdrew (35 questions) with probability 0.71" in text
    assert "the other clients’ probability moved from 0.70 to 0.66" in text
    assert "client-5 (forgotten)" in text and "client-5 (kept)" in text


def test_falls_back_on_the_clients_own_probability(tmp_path: Path) -> None:
    content = metrics(("original", "oracle", "local"))
    for model in content["requests"][0]["models"].values():
        model["central"] = {}
        model["clients"]["client-5"]["probability"]["value"] -= 0.1
    # 0.61, 0.09 and 0.116: (0.61 - 0.116) / 0.52 = 0.95 again.
    text = _page(tmp_path, content).text
    assert (
        "35 questions with probability 0.61; a model that never saw them gives 0.09. Of that gap, local closed 95"
        in text
    )
    assert "Forgetting against the other clients’ probability" in text


def test_table_holds_the_numbers_and_their_distance_to_the_oracle(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    comparison = compare(run.metrics.requests[0], TOFU)
    column = [standing.key for standing in comparison.standings].index("local")
    cells = {row.title: row.cells[column] for row in methods_table(comparison)}
    assert (cells["ROUGE"].value, cells["ROUGE"].difference) == ("0.27", "+0.03")
    assert cells["ROUGE"].interval == "[0.22, 0.32]" and cells["ROUGE"].level
    assert (cells["Model utility"].value, cells["Model utility"].difference) == ("0.38", "−0.04")
    assert (cells["PrivLeak"].value, cells["PrivLeak"].difference) == ("11.1", "+11.1")
    # log10(0.31 / 1) = -0.51
    assert (cells["Forget quality"].value, cells["Forget quality"].difference) == ("0.31", "×\u00a010⁻⁰·⁵")
    assert cells["Cost"].value == "0.18\u00a0×" and cells["Guarantee"].value == "approximate"
    original = {row.title: row.cells[0] for row in methods_table(comparison)}
    assert original["Forget quality"].value == "4.2·10⁻⁷"
    assert not original["ROUGE"].level


def test_who_was_hurt(tmp_path: Path) -> None:
    content = metrics(("original", "oracle", "exclude", "local"))
    content["requests"][0]["models"]["local"]["clients"]["client-2"]["probability"]["value"] = 0.41
    text = _page(tmp_path, content).text
    # exclude lowers every client by exactly 0.01, which is not more than 0.01.
    assert "exclude: no other client lost more than 0.01 against the oracle." in text
    assert "local: 7 of 7 other clients lost more than 0.01; most client-2 (0.41, the oracle gives 0.68)." in text


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><script>alert(1)</script>",
    "</title><svg onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "' onmouseover='alert(1)",
    "&lt;script&gt;<!-- ]]> -->",
    "\x00\x1b[31m\x07",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_from_the_run_becomes_markup(tmp_path: Path, text: str) -> None:
    plain = _Page(build_report([write_run(tmp_path / "run")] * 2))
    content = json.loads(
        json.dumps(metrics(("original", "oracle", "local"))).replace("client-5", json.dumps(text)[1:-1])
    )
    content["scenario"] = text
    request = content["requests"][0]
    request["id"] = text
    request["models"]["local"] |= {"label": text, "guarantee": text}
    request["models"]["local"]["checklist"] = [{"item": text, "status": text, "why": text}]
    request["models"]["local"]["central"][text] = {"value": 1.0}
    request["models"][text] = copy.deepcopy(request["models"]["local"])
    content["history"].append({"branch": text, "round": 1, "loss": 1.0})
    run = write_run(tmp_path / "run", content)
    (run / "manifest.json").write_text(json.dumps({text: {text: text}}), encoding="utf-8")
    (run / "events.jsonl").write_text(json.dumps({"event": "warning", "message": text}), encoding="utf-8")
    source = build_report([run, run])
    page = _Page(source)
    # The page has the same kinds of elements and attributes as one without hostile text: nothing was added.
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert "<script" not in source and "49" not in page.text.split("Manifest")[0].split("asked")[0]
    hrefs = [attributes["href"] for _, attributes in page.elements if "href" in attributes]
    assert hrefs == ["#run-1", "#run-2"]
    assert not re.search(r"[\x00-\x08\x0e-\x1f]", source)


def test_stands_alone(tmp_path: Path) -> None:
    source = build_report([write_run(tmp_path / "run")])
    page = _Page(source)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    assert not {"src", "href", "xlink:href", "srcset"} & {
        name for _, attributes in page.elements for name in attributes
    }
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    # The one address in the fixture is shown as text; the style sheet loads nothing.
    assert source.count("https://") == 1 and "http://" not in source
    assert "url(" not in source and "@import" not in source


def test_pictures_are_labelled_and_their_ids_unique(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = _Page(build_report([run, run]))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    pictures = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("role") == "img"]
    assert len(pictures) == 8
    for picture in pictures:
        assert set((picture["aria-labelledby"] or "").split()) <= set(ids)


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert build_report([run]) == build_report([run])
    moved = write_run(tmp_path / "elsewhere" / "run")
    assert build_report([run]) == build_report([moved])


def _without(content: Any, removed: str) -> Any:
    if isinstance(content, dict):
        return {key: _without(value, removed) for key, value in content.items() if key != removed}
    return [_without(value, removed) for value in content] if isinstance(content, list) else content


@pytest.mark.parametrize(
    "removed",
    [
        "central",
        "clients",
        "cost",
        "probability",
        "model_utility",
        "forget_Q_A_Prob",
        "interval",
        "n",
        "label",
        "guarantee",
        "rows",
        "t_u",
        "loss",
        "value",
        "oracle",
        "original",
        "history",
        "checklist",
        "seconds",
    ],
)
def test_holes_are_shown_not_hidden(tmp_path: Path, removed: str) -> None:
    page = _page(tmp_path, _without(metrics(), removed), bare=True)
    assert "client-5 asked to be forgotten" in page.text
    assert "None" not in page.text and "nan" not in page.text.lower().split()


def test_not_measured_is_written(tmp_path: Path) -> None:
    content = metrics(("original", "oracle", "local"))
    del content["requests"][0]["models"]["local"]["central"]["forget_Q_A_Prob"]
    content["requests"][0]["models"]["local"]["central"]["privleak"]["value"] = None
    content["requests"][0]["models"]["local"]["central"]["mia_min_k"]["value"] = None
    page = _page(tmp_path, content, bare=True)
    assert "local was not measured" in page.text
    comparison = compare(read_run(tmp_path / "run").metrics.requests[0], TOFU)
    missing = [row.title for row in methods_table(comparison) if not row.cells[2].measured]
    assert missing == ["Probability", "Membership AUC (min-k)", "PrivLeak"]
    assert "manifest.json: missing" in page.text and "Events: not recorded" in page.text


def test_learning_alone(tmp_path: Path) -> None:
    content = metrics() | {"requests": []}
    content["history"] = [entry for entry in content["history"] if entry["branch"] == "main"]
    text = _page(tmp_path, content).text
    # 0.42 + 2.9 = 3.32 at first; 0.42 + 2.9 * 0.68**9 = 0.51 at last.
    assert (
        "8 clients taught the model for 10 rounds; the mean loss went from 3.32 to 0.51. "
        "Nobody has asked to be forgotten yet."
    ) in text
    assert "Learning curves" in text and "Methods against" not in text


def test_request_without_a_removal(tmp_path: Path) -> None:
    text = _page(tmp_path, metrics(("original", "oracle"))).text
    assert "gives 0.19. No removal has been tried yet." in text


@pytest.mark.parametrize(("t_u", "said"), [(4, "in training from round 4"), (None, "never selected in training")])
def test_first_round_of_who_asked(tmp_path: Path, t_u: int | None, said: str) -> None:
    content = metrics()
    content["requests"][0]["t_u"] = t_u
    text = _page(tmp_path, content).text
    assert f"measured on 35 questions, {said}." in text
    assert ("client-5 first selected" in text) is (t_u is not None)


def test_oracle_seeds_say_what_is_noise(tmp_path: Path) -> None:
    content = metrics(("original", "oracle", "local"))
    models = content["requests"][0]["models"]
    models["oracle-2"] = copy.deepcopy(models["oracle"])
    models["oracle-2"]["central"]["forget_Q_A_Prob"]["value"] = 0.17
    models["local"]["central"]["forget_Q_A_Prob"]["value"] = 0.18
    text = _page(tmp_path, content).text
    # 0.18 is below the first oracle and above the second: level with them, not below.
    assert "2 oracles that differ only in their seed lie 0.02 apart" in text
    assert "local closed all of it" in text and "went below" not in text


def test_touches_count_what_is_not_covered(tmp_path: Path) -> None:
    text = _page(tmp_path).text
    assert "What local (NPO) touches: 2 items, 1 not covered" in text
    assert "they began at states that hold it" in text


def test_two_requests(tmp_path: Path) -> None:
    content = metrics()
    second = json.loads(json.dumps(_request()).replace("client-5", "client-9").replace("req-1f2e3d", "req-77"))
    content["requests"].append(second)
    page = _page(tmp_path, content)
    assert "client-5 asked to be forgotten" in page.text and "client-9 asked to be forgotten" in page.text
    assert page.text.count("Before the request") == 2


def test_two_runs_are_compared_first(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", metrics() | {"scenario": "small"})
    second = write_run(tmp_path / "b", metrics(("original", "oracle", "local")) | {"scenario": "large"})
    text = _Page(build_report([first, second])).text
    table, rest = text.split("Before the request", 1)
    assert "2 runs compared" in table and "small: client-5" in table and "large: client-5" in table
    assert "small (8 clients, 10 rounds, 1 request); large (8 clients, 10 rounds, 1 request)" in table
    assert table.count("95 %") == 2 and table.count("+0.026") == 2
    assert "Before the request" in rest


def test_many_clients_keep_the_picture_small(tmp_path: Path) -> None:
    content = metrics(("original", "oracle", "local"))
    for model in content["requests"][0]["models"].values():
        for index in range(10, 110):
            model["clients"][f"client-{index}"] = {"probability": {"value": 0.5}}
    content["requests"][0]["models"]["local"]["clients"]["client-77"]["probability"]["value"] = 0.1
    write_run(tmp_path / "run", content)
    comparison = compare(read_run(tmp_path / "run").metrics.requests[0], TOFU)
    shown = shown_clients(comparison)
    assert shown[0] == "client-5" and "client-77" in shown and len(shown) == 26
    page = _page(tmp_path, content)
    assert "82 clients that changed less: only in the table below." in page.text
    assert "client-109" in page.text


def test_events_are_counted_and_warnings_told(tmp_path: Path) -> None:
    text = _page(tmp_path).text
    assert "Events: 1 refused, 1 failed; 1 line of the file cannot be read." in text
    assert "client-3 answered late (2 times)" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "top level"),
        (metrics() | {"requests": [{"id": "r"}]}, "requests.0.client"),
        (metrics() | {"history": [{"branch": "main", "round": "first"}]}, "history.0.round"),
    ],
)
def test_malformed_metrics_name_the_file_and_the_place(tmp_path: Path, content: Any, said: str) -> None:
    run = write_run(tmp_path / "run", content)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        build_report([run])
    assert str(run / "metrics.json") in str(caught.value)


def test_missing_files_and_broken_neighbours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run directory"):
        build_report([tmp_path])
    with pytest.raises(InputError, match="no run directory"):
        build_report([])
    run = write_run(tmp_path / "run")
    (run / "metrics.json").rename(tmp_path / "aside")
    with pytest.raises(InputError, match=r"metrics\.json: cannot be read"):
        build_report([run])
    (tmp_path / "aside").rename(run / "metrics.json")
    (run / "manifest.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(InputError, match=r"manifest\.json: expected an object, found list"):
        build_report([run])
    (run / "manifest.json").unlink()
    (run / "config.toml").write_text("seed =", encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.toml: not a TOML file"):
        build_report([run])


def test_writes_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    out = tmp_path / "deep" / "report.html"
    assert write_report([run], out) == out
    assert out.read_text(encoding="utf-8") == build_report([run])
    before = out.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OblivionError, match="No space left on device; free some space or choose another --out"):
        write_report([run], out)
    assert out.read_bytes() == before and [path.name for path in out.parent.iterdir()] == ["report.html"]
