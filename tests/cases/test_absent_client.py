"""Who was absent decides nothing about the others: a rollback is the oracle bit for bit, whoever failed and how."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

import oblivion as ob
from oblivion.data.federation import _resolve, resolve
from oblivion.ledger.opening import open_ledger
from oblivion.training import cohort as cohort_module
from oblivion.training import fused, local
from oblivion.types import HostReply, HostRequest
from simulations import RunResult, simulate
from simulations.engines.inline import InlineHosts

LONG, SHAKY, LATE = "client-1", "client-2", "client-5"
ROWS = {"client-0": 5, LONG: 4, SHAKY: 3, "client-3": 6, "client-4": 2, LATE: 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("llama"))


def settings(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Six clients: the answers of one are longer than the context, and one joins at round 3 and leaves."""
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for client, count in ROWS.items():
            for n in range(count):
                answer = "word " * (300 if client == LONG else 2 + n)
                row = {"id": f"{client}/{n}", "question": f"What {n}?", "answer": f"{client} {answer}", "owner": client}
                file.write(json.dumps(row) + "\n")
    return {
        "engine": "inline",
        "model.name": str(model),
        "lora.rank": 4,
        "data.name": "jsonl",
        "data.path": str(path),
        "data.columns": {"client": "owner", "id": "id"},
        "federation.clients": 6,
        "federation.clients-per-round": 6,
        "federation.rounds": 3,
        "federation.joins": {LATE: 3},
        "train.local-epochs": 1,
        "train.batch-size": 2,
        "ledger.precision": "float32",
        "simulation.hosts": 2,
        "forget.client": LATE,
        "forget.methods": ["rollback"],
        "evaluate.limit": 1,
        "evaluate.max-new-tokens": 1,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }


def same_bits(result: RunResult, *names: str) -> bool:
    (entry,) = result.metrics["requests"]
    one, *others = [RunResult(result.directory, f"{entry['id']}/{name}").adapter for name in names]
    return all(list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one) for other in others)


def failing(monkeypatch: pytest.MonkeyPatch, client: str, rounds: Sequence[int]) -> None:
    """A client whose visit breaks off after a step, in some rounds of learning."""
    whole = local.micro_batches

    def broken(task: Any, settings: Any, info: Any) -> Iterator[Any]:
        for number, step in enumerate(whole(task, settings, info)):
            if number and task.client_id == client and info.branch == "main" and info.round in rounds:
                raise LookupError("the disk is gone")
            yield step

    monkeypatch.setattr(local, "micro_batches", broken)
    monkeypatch.setattr(fused, "micro_batches", broken)


def not_finite(monkeypatch: pytest.MonkeyPatch, client: str, round: int) -> None:
    """A client whose update is refused in one round of learning, and would be good in another run of it."""
    whole = fused.visit_update

    def broken(task: Any, info: Any, delta: Any, *rest: Any) -> Any:
        if (task.client_id, info.branch, info.round) == (client, "main", round):
            delta = {name: tensor * float("nan") for name, tensor in delta.items()}
        return whole(task, info, delta, *rest)

    monkeypatch.setattr(fused, "visit_update", broken)


def silent(monkeypatch: pytest.MonkeyPatch, host: str, round: int) -> None:
    """A host that does not answer in one round of learning."""
    whole = InlineHosts.ask

    def ask(self: InlineHosts, requests: Sequence[HostRequest]) -> Iterator[HostReply]:
        lost = [
            r
            for r in requests
            if r.host == host and r.kind == "train" and (r.info.branch, r.info.round) == ("main", round)
        ]
        yield from whole(self, [request for request in requests if request not in lost])

    monkeypatch.setattr(InlineHosts, "ask", ask)


@pytest.mark.parametrize("cohort", [1, 2, 3, "auto"])
def test_rollback_is_the_oracle_whoever_was_absent(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cohort: int | str
) -> None:
    failing(monkeypatch, SHAKY, [1, 3])
    silent(monkeypatch, "host-1", 2)
    events: list[dict[str, Any]] = []
    result = simulate(
        ob.load_config(None, settings(model, tmp_path, train__cohort=cohort)), tmp_path / "run", [events.append]
    )
    failed = [
        (e["round"], e["client"], e["reason"])
        for e in events
        if e["event"] == "client.failed" and e["branch"] == "main"
    ]
    assert {(round, LONG, "no rows to train on") for round in (1, 3)} <= set(failed)
    of_shaky = {(round, why.partition(" ")[0]) for round, client, why in failed if client == SHAKY}
    assert {(1, "LookupError"), (3, "LookupError")} <= of_shaky
    assert not any("the disk is gone" in why for _, _, why in failed)  # an unexpected error's text may hold rows
    assert [client for round, client, why in failed if why == "no reply from its host"]
    (entry,) = result.metrics["requests"]
    assert entry["models"]["rollback"]["guarantee"] == "exact" and entry["t_u"] == 3
    assert same_bits(result, "rollback", "oracle")


@pytest.mark.parametrize("quarantine", [0, 1])
def test_an_update_that_was_refused_before_the_client_took_part_stays_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quarantine: int
) -> None:
    not_finite(monkeypatch, SHAKY, 2)
    values = settings(model, tmp_path, train__cohort=2, **{"federation__quarantine-after": quarantine})
    result = simulate(ob.load_config(None, values), tmp_path / "run")
    refused = {(e["branch"].rpartition("/")[2], e["round"]): e["refused"] for e in result.history}
    assert refused["main", 2] == refused["oracle", 2] == 1
    assert refused["main", 3] == refused["oracle", 3] == refused["rollback", 3] == quarantine
    assert same_bits(result, "rollback", "oracle")


def test_who_has_no_rows_and_takes_a_free_place_does_not_stop_a_replay(model: Path, tmp_path: Path) -> None:
    """With fewer places than clients, the one without rows may be asked only where another has left."""
    changes = {"federation__clients-per-round": 4, "federation__quorum": 0.3, "train__cohort": 2}
    values = settings(model, tmp_path, **changes, federation__joins={LATE: 2})
    result = simulate(ob.load_config(None, {**values, "seed": 1}), tmp_path / "run")  # where it is so, in round 3
    records = [e for e in result.history if e["round"] == 3]
    assert {e["branch"].rpartition("/")[2]: e["failed"] for e in records} == {"main": 0, "oracle": 1, "rollback": 1}
    assert same_bits(result, "rollback", "oracle")


def test_where_nobody_that_is_left_has_rows_a_round_changes_nothing(model: Path, tmp_path: Path) -> None:
    """The one place of a round goes from who is forgotten to the client without rows: no reason not to forget."""
    changes = {"federation__clients-per-round": 1, "federation__quorum": 1.0, "federation__joins": {LATE: 2}}
    values = settings(model, tmp_path, **changes)
    result = simulate(ob.load_config(None, {**values, "seed": 12}), tmp_path / "run")  # where it is so, in round 2
    accepted = {(e["branch"].rpartition("/")[2], e["round"]): e["clients"] for e in result.history}
    assert accepted["main", 2] == 1 and accepted["oracle", 2] == accepted["rollback", 2] == 0
    assert same_bits(result, "rollback", "oracle")


@pytest.mark.parametrize("rule", ["scaffold", "feddyn"])
def test_who_joined_and_was_not_asked_counts_in_means_over_all_clients(model: Path, tmp_path: Path, rule: str) -> None:
    """So a rollback goes back to before the client joined; and whoever left before is in no mean any more."""
    joins = {LATE: 2, "client-4": 3}
    changes = {"federation__clients-per-round": 3, "federation__joins": joins, "federation__aggregator": rule}
    values = {**settings(model, tmp_path, **changes), "train.optimizer": "sgd", "seed": 2}
    result = simulate(ob.load_config(None, values), tmp_path / "run")
    (entry,) = result.metrics["requests"]
    assert entry["t_u"] == 3  # asked from then on
    first = RunResult(result.directory, f"{entry['id']}/rollback")
    plan = json.loads((first.adapter_folder.parent / "plan.json").read_text())
    assert plan["from_round"] == 2
    assert same_bits(result, "rollback", "oracle")
    second = first.commit().forget("client-4", method="rollback")
    oracle = RunResult(second.directory, f"{second.model.partition('/')[0]}/oracle")
    assert all(torch.equal(second.adapter[name], oracle.adapter[name]) for name in oracle.adapter)


def test_rows_that_are_gone_at_their_source_change_no_cohort(model: Path, tmp_path: Path) -> None:
    """Cohorts go by numbers of rows: those at the beginning, also when some were forgotten and deleted since."""
    values = settings(model, tmp_path, train__cohort=2)
    values |= {"forget.client": "", "forget.methods": [], "data.path": str(tmp_path / "rows.jsonl")}
    result = simulate(ob.load_config(None, values), tmp_path / "run")
    gone = [f"client-3/{n}" for n in range(5)]
    (tmp_path / "ids.txt").write_text("\n".join(gone))
    result.forget("client-3", samples=str(tmp_path / "ids.txt"), method="rollback").commit()
    rows = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(row for row in rows if json.loads(row)["id"] not in gone))
    _resolve.cache_clear()  # as in a new process
    trial = result.forget(LATE, method="rollback")
    oracle = RunResult(trial.directory, f"{trial.model.partition('/')[0]}/oracle")
    assert all(torch.equal(trial.adapter[name], oracle.adapter[name]) for name in oracle.adapter)


def test_a_row_that_is_there_twice_under_one_id_is_two_rows(model: Path, tmp_path: Path) -> None:
    """They go together, and the visits after that are charged with the rows that there are."""
    values = settings(model, tmp_path, federation__rounds=1, federation__joins={}, privacy__unit="sample")
    values["data.columns"] = {"client": "owner"}  # ids are made from the content
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text() + 2 * next(line for line in path.open() if '"client-3/0"' in line))
    (tmp_path / "ids.txt").write_text(resolve(ob.load_config(None, values)).clients["client-3"][0].id)
    values |= {"forget.client": "client-3", "forget.samples": str(tmp_path / "ids.txt")}
    result = simulate(ob.load_config(None, values), tmp_path / "run")
    result = RunResult(result.directory, f"{result.metrics['requests'][0]['id']}/rollback").commit()
    result.forget(LATE, method="retrain")
    ledger, _ = open_ledger(result.directory, result.config.ledger)
    charged = [one.clients["client-3"] for one in ledger.charged()]
    ledger.close()
    assert charged == [8, 5, 5, 5, 5]  # learning; oracle and removal, twice


def test_exact_is_up_to_rounding_where_a_cohort_was_halved(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fused.train_fused

    def small(*arguments: Any) -> Any:
        if arguments[-1] > 1 and (arguments[-2].branch, arguments[-2].round) == ("main", 2):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*arguments)

    monkeypatch.setattr(cohort_module, "train_fused", small)
    events: list[dict[str, Any]] = []
    config = ob.load_config(None, settings(model, tmp_path, train__cohort=3))
    result = simulate(config, tmp_path / "run", [events.append])
    assert any("up to rounding" in event.get("text", "") for event in events)
    (entry,) = result.metrics["requests"]
    rollback = entry["models"]["rollback"]
    assert rollback["guarantee"] == "exact" and "in round 2 a cohort did not fit" in rollback["rounding"]
    (item,) = [item for item in rollback["checklist"] if item["item"] == "rounding"]
    assert item["why"].startswith("exact up to rounding: in round 2")
    assert "exact, up to rounding" in (tmp_path / "run" / "report.html").read_text()
