"""The records of a run: what is read is checked, and what is written is what was given."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from oblivion.errors import InputError
from oblivion.run.directory import to_json
from oblivion.run.records import (
    METRICS,
    CostRecord,
    Measure,
    ModelRecord,
    PlanRecord,
    RequestRecord,
    RunRecord,
    check_record,
    read_plan,
    read_run_record,
)
from tools.metrics_schema import SCHEMA, schema_text

MEASURE = {"value": 0.25, "interval": [0.1, 0.4], "n": 24}
MODEL: dict[str, Any] = {
    "label": "rollback",
    "guarantee": "exact",
    "adapter": "forgets/r/rollback/adapters",
    "central": {"forget_Q_A_Prob": MEASURE, "privleak": {"value": None, "interval": None, "n": 0, "reason": "none"}},
    "clients": {"a": {"probability": {"value": 0.5, "n": 3.0}}},
    "cost": {
        "client_steps": 7,
        "tokens": None,
        "bytes_up": 1,
        "bytes_down": 2,
        "fraction": 0.5,
        "token_fraction": None,
    },
    "checklist": [{"item": "model", "status": "cleaned", "why": "trained again"}],
}
REQUEST: dict[str, Any] = {
    "id": "r",
    "client": "a",
    "samples": None,
    "sample_ids": None,
    "rows": 3,
    "t_u": 1,
    "first_update": 2,
    "models": {"rollback": MODEL},
}
RUN: dict[str, Any] = {
    "version": 1,
    "scenario": "demo",
    "requests": [REQUEST],
    "history": [{"branch": "main", "round": 1, "loss": 1.5, "clients": 7}],
    "head": "forgets/r/rollback/adapters",
}
PLAN: dict[str, Any] = {
    "method": "rollback",
    "name": "rollback",
    "label": "rollback",
    "guarantee": "exact",
    "from_round": 1,
    "phases": [{"kind": "restore", "round": 0}, {"kind": "rounds", "first": 1, "last": 4, "replay": True}],
    "checklist": [{"item": "model", "status": "cleaned", "why": "trained again"}],
    "client_steps": 7,
    "fraction": 0.5,
    "invalidates": ["the adapter"],
}


def changed(values: dict[str, Any], *path: str | int, **change: Any) -> dict[str, Any]:
    """A copy of nested values; what stands at `path` is changed, and a change to `...` removes the key."""
    copy: dict[str, Any] = json.loads(json.dumps(values))
    inner: Any = copy
    for part in path:
        inner = inner[part]
    for key, value in change.items():
        if value is ...:
            del inner[key]
        else:
            inner[key] = value
    return copy


def test_what_is_read_is_written_again_key_by_key() -> None:
    assert RunRecord.model_validate(RUN).to_json() == RUN
    assert PlanRecord.model_validate(PLAN).to_json() == PLAN
    text = to_json(RunRecord.model_validate(RUN).to_json())
    assert text == to_json(RUN) and b'"n": 24,' not in text and b'"n": 24\n' in text, "whole numbers stay whole"


def test_a_record_writes_what_it_was_given_and_nothing_else() -> None:
    assert Measure(value=0.5, n=3).to_json() == {"value": 0.5, "n": 3}
    model = ModelRecord(label="original", cost=CostRecord(client_steps=4))
    entry = RequestRecord(id="r", client="a", models={}).with_model("original", model)
    assert RunRecord(scenario="s").with_request(entry).to_json() == {
        "scenario": "s",
        "requests": [
            {"id": "r", "client": "a", "models": {"original": {"label": "original", "cost": {"client_steps": 4}}}}
        ],
    }


def test_a_request_takes_the_place_of_its_earlier_state_as_the_last() -> None:
    one, two = RequestRecord(id="one", client="a"), RequestRecord(id="two", client="b")
    record = RunRecord().with_request(one).with_request(two).with_request(one.but(rows=3))
    assert [(entry.id, entry.rows) for entry in record.requests] == [("two", None), ("one", 3)]
    assert record.request("one") == one.but(rows=3) and record.request("three") is None


def test_where_an_adapter_lies() -> None:
    record = RunRecord.model_validate(RUN)
    assert RunRecord().adapter("original") == "adapters/original"
    assert record.adapter("original") == record.adapter("r/rollback") == "forgets/r/rollback/adapters"
    assert record.adapter("r/local") is record.adapter("other/rollback") is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "top level = []"),
        ({**RUN, "requests": {}}, "requests = {}: expected a list"),
        (changed(RUN, "requests", 0, client=...), "requests.0.client is missing"),
        (changed(RUN, "requests", 0, sample_ids="x"), "requests.0.sample_ids = "),
        (changed(RUN, "requests", 0, "models", rollback=3), "requests.0.models.rollback = 3: "),
        (changed(RUN, "requests", 0, "models", "rollback", adapter=3), "rollback.adapter = 3: expected text"),
        (changed(RUN, "requests", 0, "models", "rollback", adapter="../x"), "expected a folder of the run directory"),
        (changed(RUN, "requests", 0, "models", "rollback", "central", privleak=None), "central.privleak = null: "),
        (changed(RUN, "requests", 0, "models", "rollback", "cost", tokens="7"), 'cost.tokens = "7": expected a number'),
        (changed(RUN, "history", 0, round=...), "history.0.round is missing"),
        ({**RUN, "head": "/etc"}, 'head = "/etc": expected a folder of the run directory'),
        ({**RUN, "head": None}, "head = null: expected text"),
        ({**RUN, "version": 2}, "version = 2: this version of oblivion reads version 1"),
        ({**RUN, "version": True}, "version = True: "),
    ],
)
def test_a_wrong_key_is_one_line_with_its_place(tmp_path: Path, values: Any, said: str) -> None:
    (tmp_path / METRICS).write_text(json.dumps(values))
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        read_run_record(tmp_path)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / METRICS}: ") and "\n" not in line and len(line) < 400
    assert "restore the file" in line or "use the one" in line


@pytest.mark.parametrize("key", ["method", "guarantee", "phases", "checklist", "invalidates"])
def test_a_plan_lacks_nothing(tmp_path: Path, key: str) -> None:
    trial = tmp_path / "forgets/r/rollback"
    trial.mkdir(parents=True)
    (trial / "plan.json").write_text(json.dumps(PLAN))
    assert read_plan(tmp_path, "r/rollback").restored_round == 0
    (trial / "plan.json").write_text(json.dumps(changed(PLAN, **{key: ...})))
    with pytest.raises(InputError, match=rf"plan\.json: {key} is missing"):
        read_plan(tmp_path, "r/rollback")


def test_a_file_of_before_the_version_is_read() -> None:
    assert check_record(RunRecord, changed(RUN, version=...), METRICS).version == 1


def test_the_schema_in_the_docs_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "write it again: python -m tools.metrics_schema"
