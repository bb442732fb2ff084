"""The removal of docs/extending.md with statistics and private state: tried, killed, measured, committed, erased."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from outside import Install
from outside import install as install
from safetensors.torch import load_file

import oblivion as ob
from oblivion.federation.host import Host
from oblivion.federation.rounds import Federation
from oblivion.ledger.verify import verify_ledger
from oblivion.run_format import CLIENT_STORE
from oblivion.types import EvaluateRequest, HostReply, HostRequest, VisitRequest
from oblivion.wire import check_reply, pack_reply, pack_requests, unpack_reply, unpack_request
from simulations import RunResult, simulate

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text("utf-8")
(CODE,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "class OwnA" in code]
STAY = ["client-0", "client-1", "client-3"]


def kept(run: RunResult) -> dict[str, bytes]:
    folder = run.directory / CLIENT_STORE
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


ANSWER = Host.answer


def over_the_wire(host: Host, request: HostRequest) -> HostReply:
    """Answer as on the other engines."""
    (packed,) = pack_requests([request])
    said = pack_reply(ANSWER(host, unpack_request(packed)))
    check_reply(said, request)
    return unpack_reply(said)


class KilledError(Exception):
    """The process died."""


def test_private_state_lives_beside_the_keys_and_goes_with_its_client(
    install: Install, micro_scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"removals": {"start_over": "starting:StartOver"}, "objectives": {"own_a": "starting:OwnA"}}
    install("starting", "1", parts, {"starting.py": CODE})
    settings = {"federation.rounds": 2, "forget.methods": [], "evaluate.oracle-seeds": 0}
    run = simulate(ob.load_config(micro_scenario, settings), tmp_path / "run")
    assert not (run.directory / CLIENT_STORE).exists(), "a run that keeps nothing has no folder for it"

    asked: list[HostRequest] = []
    replies: list[HostReply] = []

    def heard(host: Host, request: HostRequest) -> HostReply:
        reply = over_the_wire(host, request)
        asked.append(request)
        replies.append(reply)
        if isinstance(request, VisitRequest):  # durable before the reply
            of_round = f"{request.info.branch}/{request.info.round}.safetensors"
            clients = [task.client_id for cohort in request.cohorts for task in cohort]
            assert {f"{client}/{of_round}" for client in clients} <= kept(run).keys()
        return reply

    monkeypatch.setattr(Host, "answer", heard)
    commit = Federation.commit

    def dies(made: Federation, record: Any, after: Any, branch: Any) -> None:
        if record.unlearned and record.round == 2:
            raise KilledError
        commit(made, record, after, branch)

    monkeypatch.setattr(Federation, "commit", dies)
    with pytest.raises(KilledError):
        run.forget("client-2", method="start_over")
    before = kept(run)
    monkeypatch.setattr(Federation, "commit", commit)
    trial = run.forget("client-2", method="start_over")
    assert kept(run) == before, "a visit that is repeated writes the same bytes"

    where = trial.model
    assert sorted(before) == [f"{client}/{where}/{round}.safetensors" for client in STAY for round in (1, 2)]
    for path in [run.directory / CLIENT_STORE, *(run.directory / CLIENT_STORE).rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, f"{path} is its owner's alone"
    first, second = (load_file(run.directory / CLIENT_STORE / f"client-0/{where}/{n}.safetensors") for n in (1, 2))
    assert first and all(".lora_A." in name for name in first)
    assert any(not torch.equal(first[name], second[name]) for name in first), "the second visit went on from the first"
    sent = [update for reply in replies for update in reply.updates]
    assert sent and all(list(update.statistics) == ["distance"] for update in sent)
    moved = {name for update in sent for name, step in update.delta.items() if step.any()}
    assert moved and all(".lora_B." in name for name in moved), "no A was sent"
    of_it = [
        request for request in asked if isinstance(request, EvaluateRequest) and "client-0" in str(request.cohorts)
    ]
    _check_measuring(run.directory / CLIENT_STORE / "client-0" / where / "2.safetensors", of_it[-1])

    for model in (run, trial):
        own_adapter = model.adapter_of("client-0")
        assert all(torch.equal(own_adapter[name], second[name]) for name in second) is (model is trial)
    assert all(torch.equal(own_adapter[name], trial.adapter[name]) for name in own_adapter.keys() - second.keys())

    committed = trial.commit()
    assert kept(committed) == before, "all of it is the new head's"
    _check_the_next_to_leave(committed, where)


def _check_measuring(file: Path, request: EvaluateRequest) -> None:
    """A client measures with what it kept; where that cannot be read, it alone cannot be measured."""
    alone = ANSWER(Host(), dataclasses.replace(request, store="", line=()))
    own = ANSWER(Host(), request)
    assert "client-0" in own.metrics and own.metrics.keys() == alone.metrics.keys() and not own.failures
    assert all(own.metrics[client] != alone.metrics[client] for client in own.metrics if client in STAY)
    content = file.read_bytes()
    file.write_bytes(b"no safetensors")
    damaged = ANSWER(Host(), request)
    assert list(damaged.failures) == ["client-0"] and damaged.metrics.keys() == own.metrics.keys() - {"client-0"}
    file.write_bytes(content)


def _check_the_next_to_leave(committed: RunResult, where: str) -> None:
    """It takes its own along; of the others only what the new head made stays."""
    again = committed.forget("client-0", method="start_over")
    plans = [committed.directory / "forgets" / model / "plan.json" for model in (where, again.model)]
    items = [json.loads(plan.read_text())["checklist"] for plan in plans]
    said = [[one["status"] for one in of if one["item"] == "what clients keep for themselves"] for of in items]
    assert said == [[], ["not covered"]]
    again.commit()
    evidence = json.loads((plans[1].parent / "evidence.json").read_text())
    erased = json.loads(base64.b64decode(evidence["payload"]))["predicate"]["erased"]
    assert erased["files"] >= 7, "the folder of client-0, and three states of each of the two others"
    assert not (committed.directory / CLIENT_STORE / "client-0").exists()
    assert not verify_ledger(committed.directory).findings
    (committed.directory / CLIENT_STORE / "client-0").mkdir()
    (finding,) = verify_ledger(committed.directory).findings
    assert finding.where == "client-store/client-0"
    (committed.directory / CLIENT_STORE / "client-0").rmdir()
    assert sorted(kept(again)) == [f"{client}/{again.model}/2.safetensors" for client in STAY[1:]]
