"""Rows that two clients hold are forgotten by neither: counted apart and measured apart, never forgotten and kept."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import oblivion

import oblivion as ob
from oblivion.data.corpus import FederatedData
from oblivion.data.federation import resolve
from oblivion.data.groups import central_groups, shared_rows
from oblivion.data.keyed_ids import run_data
from oblivion.ledger.verify_evidence import main as verify
from oblivion.types import ForgetRequest, Sample
from simulations import RunResult, simulate

ROWS = Path(__file__).parent / "shared-rows" / "rows.jsonl"
FEAST = "The feast of the blue lantern."
SETTINGS: dict[str, Any] = {
    "engine": "inline",
    "data.name": "jsonl",
    "data.path": str(ROWS),
    "data.columns.client": "owner",
    "federation.clients": 2,
    "federation.clients-per-round": 2,
    "federation.rounds": 2,
    "train.local-epochs": 1,
    "train.batch-size": 2,
    "forget.client": "south",
    "forget.methods": ["rollback"],
    "evaluate.max-new-tokens": 2,
}


def row(id: str, prompt: str, client: str) -> Sample:
    return Sample(id=id, prompt=prompt, answer="a", client_id=client)


def federation(**clients: dict[str, str]) -> FederatedData:
    """Client to its rows: id to question."""
    made = {client: tuple(row(i, q, client) for i, q in rows.items()) for client, rows in clients.items()}
    return FederatedData(clients=made)


def asks(client: str, *samples: str) -> ForgetRequest:
    return ForgetRequest(id="r", client_id=client, sample_ids=samples or None)


def ids(groups: dict[str, tuple[Sample, ...]]) -> dict[str, list[str]]:
    return {name: [sample.id for sample in rows] for name, rows in groups.items()}


class TestGroups:
    def test_whatever_the_ids(self) -> None:
        data = federation(north={"n1": "feast", "n2": "nets"}, south={"s1": "feast", "s2": "bell"})
        assert ids(central_groups(data, asks("south"))) == {"forget": ["s2"], "retain": ["n2"], "shared": ["s1"]}
        assert ids(central_groups(data, asks("north"))) == {"forget": ["n2"], "retain": ["s2"], "shared": ["n1"]}

    def test_some_samples_of_a_client_that_has_a_row_twice(self) -> None:
        data = federation(north={"n1": "nets"}, south={"s1": "feast", "s2": "feast", "s3": "bell"})
        assert ids(central_groups(data, asks("south", "s1", "s3"))) == {
            "forget": ["s3"],
            "retain": ["n1"],
            "shared": ["s1"],
        }
        assert ids(central_groups(data, asks("south", "s1", "s2"))) == {
            "forget": ["s1", "s2"],
            "retain": ["n1", "s3"],
        }

    def test_all_of_it(self) -> None:
        data = federation(north={"n1": "feast"}, south={"s1": "feast"})
        assert ids(central_groups(data, asks("south"))) == {"shared": ["s1"]}

    def test_nothing_of_it(self) -> None:
        data = federation(north={"n1": "nets"}, south={"s1": "feast"})
        assert shared_rows(data, asks("south")) == ()
        assert ids(central_groups(data, asks("south"))) == {"forget": ["s1"], "retain": ["n1"]}
        assert ids(central_groups(data, None)) == {"retain": ["n1", "s1"]}


@pytest.fixture(scope="module")
def run(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    out = tmp_path_factory.mktemp("shared-rows") / "run"
    return simulate(ob.load_config(None, {**SETTINGS, "model.name": str(micro_model)}), out)


def test_plan_report_and_evidence_say_it_by_count_and_id(
    run: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run_data(run.directory, run.config).clients["south"]
    [shared] = [row.id for row in rows if row.answer == FEAST]
    assert shared.startswith("row/")  # nothing that says what the row holds
    plan = ["forget", str(run.directory), "--client", "south", "--method", "rollback", "--plan"]
    assert json.loads(oblivion(*plan, "--json")[1])["shared"] == [shared]
    assert f"rows that others hold, too: 1 row (id {shared}), also learned from rows that stay" in oblivion(*plan)[1]

    (entry,) = run.metrics["requests"]
    assert entry["rows"] == 2 and entry["shared"] == [shared]
    for model in entry["models"].values():  # the headline numbers are of the row that south alone held
        assert model["central"]["forget_Q_A_Prob"]["n"] == model["central"]["shared_Q_A_Prob"]["n"] == 1
        assert model["central"]["retain_Q_A_Prob"]["n"] == model["clients"]["south"]["probability"]["n"] == 1
    page = (run.directory / "report.html").read_text()
    assert "Others also hold 1 of 2 rows that south asked to be forgotten" in page and shared in page
    assert "1 of south’s 2 questions" in page
    warnings = [json.loads(line).get("text", "") for line in (run.directory / "events.jsonl").read_text().splitlines()]
    assert any(f"others also hold 1 row (id {shared})" in text for text in warnings)

    done = RunResult(run.directory, f"{entry['id']}/rollback").commit()
    path = done.directory / "forgets" / entry["id"] / "rollback" / "evidence.json"
    predicate = json.loads(base64.b64decode(json.loads(path.read_text())["payload"]))["predicate"]
    assert predicate["request"]["samples"] == 2 and predicate["request"]["shared"] == [shared]
    assert predicate["plan"]["guarantee"] == "exact"
    assert verify([str(path), "--key", str(done.directory / "public-key.pem")]) == 0
    told = capsys.readouterr().out
    assert f"others also hold 1 of these rows; they stay learned from there: {shared}" in told
    assert "it in other words were not looked for" in told
    written = b"".join(p.read_bytes() for p in done.directory.rglob("*") if p.is_file())
    assert FEAST.encode() not in written


def test_where_all_of_it_is_held_by_others_nothing_is_measured_as_forgotten(micro_model: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    kept = [one for one in rows if one["owner"] == "north" or one["answer"] == FEAST]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
    changes = {"model.name": str(micro_model), "data.path": str(tmp_path / "rows.jsonl"), "forget.methods": ["exclude"]}
    done = simulate(ob.load_config(None, {**SETTINGS, **changes}), tmp_path / "run")
    (entry,) = done.metrics["requests"]
    for model in entry["models"].values():
        assert "forget_Q_A_Prob" not in model["central"] and "south" not in model["clients"]
        assert model["central"]["shared_Q_A_Prob"]["n"] == model["central"]["retain_Q_A_Prob"]["n"] == 1
    assert (
        "Everything that south asked to be forgotten is also held by others"
        in (done.directory / "report.html").read_text()
    )


def test_real_data_has_such_rows(shared: Path) -> None:
    """Counted by hand on the files: 76 rows of RWKU's neighbours with two owners, 298 of a deal of its questions."""
    rwku = shared / "data" / "rwku"
    own = {"data.name": "jsonl", "data.columns.client": "target", "data.path": str(rwku / "neighbor_level1.jsonl")}
    natural = resolve(ob.load_config(None, {**own, "federation.clients": 200}))
    dealt = {"data.name": "jsonl", "data.path": str(rwku / "forget_level1.jsonl"), "data.partition": "dirichlet"}
    dealt |= {"data.columns.label": "type", "federation.clients": 10}
    for data, expected in ((natural, 76), (resolve(ob.load_config(None, dealt)), 298)):
        found = {(r.prompt, r.answer) for client in data.clients for r in shared_rows(data, asks(client))}
        assert len(found) == expected
        groups = central_groups(data, asks(next(iter(data.clients))))
        forgotten = {(r.prompt, r.answer) for r in groups["forget"]}
        assert not forgotten & {(r.prompt, r.answer) for r in groups["retain"]}
