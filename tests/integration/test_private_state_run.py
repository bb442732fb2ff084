"""The removal of docs/extending.md with statistics and private state: tried, killed, measured, committed, erased."""

from __future__ import annotations

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
    measuring = [request for request in asked if isinstance(request, EvaluateRequest)][-1]
    alone = ANSWER(Host(), dataclasses.replace(measuring, store="", line=()))
    own = ANSWER(Host(), measuring)
    assert all(own.metrics[client] != alone.metrics[client] for client in own.metrics if client in STAY)

    for model in (run, trial):
        own_adapter = model.adapter_of("client-0")
        assert all(torch.equal(own_adapter[name], second[name]) for name in second) is (model is trial)
    assert all(torch.equal(own_adapter[name], trial.adapter[name]) for name in own_adapter.keys() - second.keys())

    committed = trial.commit()
    assert kept(committed) == before, "all of it is the new head's"
    evidence = json.loads((trial.directory / "forgets" / where / "evidence.json").read_text())
    assert evidence

    # The next to leave takes its own along; of the others only what the new head made stays.
    again = committed.forget("client-0", method="start_over")
    again.commit()
    assert not (run.directory / CLIENT_STORE / "client-0").exists() and not verify_ledger(run.directory).findings
    (run.directory / CLIENT_STORE / "client-0").mkdir()
    (finding,) = verify_ledger(run.directory).findings
    assert finding.where == "client-store/client-0"
    (run.directory / CLIENT_STORE / "client-0").rmdir()
    assert sorted(kept(again)) == [f"{client}/{again.model}/2.safetensors" for client in STAY[1:]]
