"""A host is a pure function of its message: caches, order and other runs change no bit."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.app import ends_after
from oblivion.config import RunConfig, load_config
from oblivion.data.federation import resolve
from oblivion.errors import ConfigError
from oblivion.federation import host as host_module
from oblivion.federation.host import Host, visit_settings
from oblivion.learners import learner_of
from oblivion.provenance import code_fingerprint
from oblivion.training.local import LocalTask
from oblivion.types import (
    ClientTask,
    DescribeRequest,
    EvaluateRequest,
    GlobalState,
    HostReply,
    HostRequest,
    RoundInfo,
    Sample,
    StartRequest,
    TrainRequest,
    VisitRequest,
)
from simulations.engines.inline import InlineHosts, run


def rows(client: str, count: int) -> list[dict[str, str]]:
    return [{"who": client, "question": f"q{k} {client}?", "answer": f"{client} {k} " + "y" * k} for k in range(count)]


@pytest.fixture
def config(micro_model: Path, tmp_path: Path) -> RunConfig:
    path = tmp_path / "rows.jsonl"
    every = [*rows("ann", 5), *rows("bob", 3), {"who": "bob", "question": "long", "answer": "z" * 400}]
    path.write_text("".join(json.dumps(row) + "\n" for row in every))
    return load_config(
        None,
        {
            "model.name": str(micro_model),
            "lora.rank": 4,
            "data.name": "jsonl",
            "data.path": str(path),
            "data.columns": {"client": "who"},
            "train.batch-size": 2,
            "train.local-epochs": 1,
            "federation.clients": 2,
            "simulation.hosts": 2,
        },
    )


def state(config: RunConfig, seed: int = 0) -> GlobalState:
    resident = learner_of(config)
    generator = torch.Generator().manual_seed(seed)
    adapter = {n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in resident.parameters.items()}
    return GlobalState(adapter=adapter)


def request(config: RunConfig, *tasks: ClientTask, kind: Any = TrainRequest, **changes: Any) -> HostRequest:
    info = RoundInfo(branch="main", round=1, rounds=2, population=("ann", "bob"), seed=config.seed)
    values = {"host": "h", "config": config.to_json(), "cohorts": tuple((task,) for task in tasks)}
    if kind is not EvaluateRequest:
        values["info"] = info
    if kind is VisitRequest:
        values |= {"local_epochs": 1, "learning_rate": 1e-3}
    return kind(**{**values, "state": state(config), **changes})


ANN, BOB = ClientTask(client_id="ann"), ClientTask(client_id="bob")


def same(one: HostReply, other: HostReply) -> bool:
    def deltas(reply: HostReply) -> dict[str, dict[str, bytes]]:
        return {u.client_id: {n: t.numpy().tobytes() for n, t in u.delta.items()} for u in reply.updates}

    metrics = [{u.client_id: u.metrics for u in reply.updates} for reply in (one, other)]
    return deltas(one) == deltas(other) and metrics[0] == metrics[1] and one.failures == other.failures


def test_describe_counts_rows_without_a_model(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "learner_of", pytest.fail)
    reply = Host().answer(DescribeRequest(host="h", config=config.to_json()))
    assert reply == HostReply(host="h", clients={"ann": {"samples": 5}, "bob": {"samples": 4}})


def test_a_host_that_starts_loads_the_model_that_training_will_ask_for(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(host_module, "learner_of", lambda config: loaded.append(config.model))
    unresolved = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "auto"})})
    assert Host().answer(StartRequest(host="h", config=unresolved.to_json())) == HostReply(host="h")
    assert loaded == [config.model.model_copy(update={"dtype": "float32"})]


def test_training_answers_for_every_client(config: RunConfig) -> None:
    reply = Host().answer(request(config, ANN, BOB))
    assert reply.host == "h" and not reply.failures
    ann, bob = reply.updates
    assert {ann.fingerprint, bob.fingerprint} == {code_fingerprint()} and len(code_fingerprint()) == 16
    assert (ann.client_id, ann.num_examples, ann.steps, ann.metrics["skipped"]) == ("ann", 5, 3, 0)
    assert (bob.client_id, bob.num_examples, bob.steps, bob.metrics["skipped"]) == ("bob", 3, 2, 1)


def test_two_hosts_and_a_repeated_message_give_the_same_bits(config: RunConfig) -> None:
    first = Host()
    once = first.answer(request(config, ANN, BOB))
    first.answer(request(config, BOB, state=state(config, 1)))
    assert same(first.answer(request(config, ANN, BOB)), once)
    assert same(Host().answer(request(config, BOB, ANN)), once)
    alone = Host().answer(request(config, BOB))
    assert same(alone, dataclasses.replace(once, updates=once.updates[1:]))
    assert not same(Host().answer(request(config, ANN, BOB, state=state(config, 1))), once)


def test_one_cohort_or_two_differ_in_rounding_alone(config: RunConfig) -> None:
    apart, together = Host().answer(request(config, ANN, BOB)), Host().answer(request(config, cohorts=((ANN, BOB),)))
    for one, other in zip(apart.updates, together.updates, strict=True):
        assert other.metrics["together"] == 2.0
        assert all(torch.allclose(t, other.delta[n], rtol=0, atol=1e-4) for n, t in one.delta.items())


def test_inline_hosts_give_what_one_host_gives(config: RunConfig) -> None:
    def work(hosts: Any) -> list[HostReply]:
        assert hosts.names() == ("host-0", "host-1")
        return list(hosts.ask([request(config, ANN, host="host-0"), request(config, BOB, host="host-1")]))

    replies = run(config, work)
    assert [r.host for r in replies] == ["host-0", "host-1"]
    whole = Host().answer(request(config, ANN, BOB))
    assert same(HostReply(updates=replies[0].updates + replies[1].updates), whole)
    assert InlineHosts(12).names()[:3] == ("host-0", "host-1", "host-10")


def test_excluded_samples_are_as_if_they_had_never_been(config: RunConfig, tmp_path: Path) -> None:
    ids = [row.id for row in resolve(config).clients["ann"]]
    less = Host().answer(request(config, ClientTask(client_id="ann", excluded=(ids[1], ids[4]))))
    assert less.updates[0].num_examples == 3
    kept = [row for k, row in enumerate(rows("ann", 5)) if k not in (1, 4)]
    path = tmp_path / "less.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    data = config.data.model_copy(update={"path": str(path)})
    one = config.federation.model_copy(update={"clients": 1})
    smaller = config.model_copy(update={"data": data, "federation": one})
    assert same(Host().answer(request(smaller, ANN)), less)


def test_a_client_without_rows_left_fails_alone(config: RunConfig) -> None:
    ids = tuple(row.id for row in resolve(config).clients["ann"])
    reply = Host().answer(request(config, ClientTask(client_id="ann", excluded=ids), BOB))
    assert reply.failures == {"ann": "no rows to train on"} and [u.client_id for u in reply.updates] == ["bob"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[LocalTask]:
    """The tasks that reach training."""
    tasks: list[LocalTask] = []
    original = host_module.train_cohort

    def spy(resident: Any, start: Any, given: Sequence[LocalTask], *rest: Any) -> Any:
        tasks.extend(given)
        return original(resident, start, given, *rest)

    monkeypatch.setattr(host_module, "train_cohort", spy)
    return tasks


def ask_to_unlearn(config: RunConfig, task: ClientTask, objective: str = "npo", **changes: Any) -> HostReply:
    return Host().answer(request(config, task, kind=VisitRequest, objective=objective, local_epochs=2, **changes))


def test_samples_are_unlearned_beside_the_clients_own_other_rows(config: RunConfig, seen: list[LocalTask]) -> None:
    ids = [row.id for row in resolve(config).clients["ann"]]
    learned = Host()
    learned.answer(request(config, ANN))
    own = dict(zip(ids, seen.pop().rows["retain"], strict=True))
    public = (Sample(id="p", prompt="public", answer="row"),)
    task = ClientTask(client_id="ann", forget=(ids[3], ids[0]), excluded=(ids[1],))
    reply = ask_to_unlearn(config, task, public=public)
    assert seen[0].rows["forget"] == [own[ids[0]], own[ids[3]]]
    assert seen[0].rows["retain"] == [own[ids[2]], own[ids[4]]], "neither asked for, nor forgotten before, nor public"
    assert reply.updates[0].num_examples == 2 and reply.updates[0].steps == 2  # one batch, two passes
    assert same(ask_to_unlearn(config, task, public=public), reply)


def test_a_row_that_stands_twice_is_not_unlearned_and_kept_at_once(
    config: RunConfig, seen: list[LocalTask], tmp_path: Path
) -> None:
    twice = [{**row, "id": f"{n}"} for n, row in enumerate([*rows("ann", 3), rows("ann", 1)[0], *rows("bob", 3)])]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twice))
    columns = {"client": "who", "id": "id"}
    data = config.data.model_copy(update={"path": str(tmp_path / "twice.jsonl"), "columns": columns})
    config = config.model_copy(update={"data": data})
    ask_to_unlearn(config, ClientTask(client_id="ann", forget=("0",)))
    assert len(seen[0].rows["forget"]) == 1 and len(seen[0].rows["retain"]) == 2
    assert not set(seen[0].rows["forget"]) & set(seen[0].rows["retain"])


def test_a_whole_client_is_anchored_by_public_rows_alone(config: RunConfig, seen: list[LocalTask]) -> None:
    ask_to_unlearn(config, ANN)
    ask_to_unlearn(config, ANN, public=(Sample(id="p", prompt="public", answer="row"),))
    bare, anchored = seen
    assert len(bare.rows["forget"]) == 5 and "retain" not in bare.rows
    assert len(anchored.rows["forget"]) == 5 and len(anchored.rows["retain"]) == 1


def test_an_objective_without_anchor_gets_none(config: RunConfig, seen: list[LocalTask]) -> None:
    ids = [row.id for row in resolve(config).clients["ann"]]
    ask_to_unlearn(config, ClientTask(client_id="ann", forget=(ids[0],)), objective="grad_ascent")
    assert set(seen[0].rows) == {"forget"}


def test_every_row_to_forget_has_its_alternate_beside_it(config: RunConfig, seen: list[LocalTask]) -> None:
    ann = resolve(config).clients["ann"]
    modality = learner_of(config).task
    reply = ask_to_unlearn(config, ClientTask(client_id="ann", forget=(ann[3].id, ann[0].id)), objective="dpo")
    assert seen[0].rows["alternate"] == [modality.alternate(ann[0]), modality.alternate(ann[3])]
    assert seen[0].rows["forget"] == [modality.encode(ann[0]), modality.encode(ann[3])]
    assert len(seen[0].rows["retain"]) == 3 and reply.updates[0].num_examples == 2
    assert "alternate" not in ask_and_see(config, seen, "npo").rows


def ask_and_see(config: RunConfig, seen: list[LocalTask], objective: str) -> LocalTask:
    ask_to_unlearn(config, ANN, objective=objective)
    return seen[-1]


def test_a_row_without_room_for_its_alternate_is_left_out(config: RunConfig, seen: list[LocalTask]) -> None:
    whole = learner_of(config).task
    ann = resolve(config).clients["ann"]
    sizes = [row.size for row in (whole.alternate(sample) for sample in ann) if row is not None]
    train = config.train.model_copy(update={"max_length": min(sizes)})
    reply = ask_to_unlearn(config.model_copy(update={"train": train}), ANN, objective="dpo")
    fitting = sizes.count(min(sizes))
    assert len(seen[0].rows["forget"]) == len(seen[0].rows["alternate"]) == fitting < 5
    assert seen[0].skipped == 5 - fitting and reply.updates[0].num_examples == fitting


@pytest.mark.parametrize("objective", ["shred", "rmu", "blur_npo"])
def test_every_objective_is_trained_by_a_host(config: RunConfig, objective: str) -> None:
    parameters = {"rmu": {"layer": 1}, "shred": {"demoted": 1e-4}}.get(objective, {})
    ids = [row.id for row in resolve(config).clients["ann"]]
    task = ClientTask(client_id="ann", forget=(ids[0],))
    reply = ask_to_unlearn(config, task, objective=objective, parameters=parameters)
    assert not reply.failures and any(bool(tensor.any()) for tensor in reply.updates[0].delta.values())


def test_what_the_model_cannot_give_is_refused_at_load(config: RunConfig) -> None:
    from server.prepare import load

    forget = {"client": "ann", "methods": {"deep": {"method": "local", "objective": "rmu", "layer": 9}}}
    asking = load_config(None, {**flat(config), "forget.client": "ann", "forget.methods": forget["methods"]})
    with pytest.raises(ConfigError, match=r"objective 'rmu' needs 'hidden:9', which this model does not have"):
        load(asking)


def flat(config: RunConfig) -> dict[str, Any]:
    return {"model.name": config.model.name, "data.name": "jsonl", "data.path": config.data.path}


def test_samples_that_are_all_too_long_cannot_be_unlearned(config: RunConfig) -> None:
    """And the client must not learn its other rows in their place."""
    long = next(row.id for row in resolve(config).clients["bob"] if row.prompt == "long")
    for objective in ("npo", "grad_ascent"):
        reply = ask_to_unlearn(config, ClientTask(client_id="bob", forget=(long,)), objective=objective)
        assert not reply.updates and reply.failures == {"bob": "no rows to train on"}


def test_unlearning_has_settings_of_its_own(config: RunConfig) -> None:
    message = request(config, kind=VisitRequest, local_epochs=2, learning_rate=0.5)
    settings = visit_settings(message, config)
    assert settings.local_epochs == 2 and settings.learning_rate == 0.5
    unchanged = {"local_epochs": 1, "learning_rate": config.train.learning_rate}
    assert settings.model_copy(update=unchanged) == config.train


def test_a_host_that_serves_two_runs_mixes_up_nothing(config: RunConfig, seen: list[LocalTask]) -> None:
    """The same rows dealt to another number of clients: `client-0` owns others."""

    def dealt(clients: int) -> RunConfig:
        data = config.data.model_copy(update={"partition": "iid", "columns": {}})
        federation = config.federation.model_copy(update={"clients": clients})
        return config.model_copy(update={"data": data, "federation": federation})

    first, shared = ClientTask(client_id="client-0"), Host()
    for clients, expected in ((2, Host()), (3, Host())):
        shared.answer(request(dealt(clients), first))
        expected.answer(request(dealt(clients), first))
    rows = [task.rows["retain"] for task in seen]
    assert rows[0] == rows[1] and rows[2] == rows[3] and rows[0] != rows[2]


def test_the_deadline_is_set_and_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda after, **options: calls.append((after, options)))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: calls.append("lifted"))
    with ends_after(30.0):
        assert calls == [(30.0, {"exit": True, "file": 2})]
    assert calls[-1] == "lifted"
    with pytest.raises(ConfigError), ends_after(1.0):
        raise ConfigError("refused")
    assert calls[-1] == "lifted"


def test_a_config_that_is_not_one_is_named(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="message: unknown key 'sede'"):
        Host().answer(DescribeRequest(config={"sede": 1}))


def test_evaluation_answers_for_a_client_and_leaves_the_base_alone(config: RunConfig) -> None:
    pytest.importorskip("oblivion.metrics.engine.one_pass")
    ids = [row.id for row in resolve(config).clients["ann"]]
    resident = learner_of(config)
    before = {n: p.detach().clone() for n, p in resident.model.named_parameters() if "lora" not in n}
    tasks = (BOB, ClientTask(client_id="ann", forget=(ids[0],)))
    replies = [Host().answer(request(config, *tasks, kind=EvaluateRequest)) for _ in range(2)]
    assert replies[0] == replies[1]
    metrics = replies[0].metrics
    assert set(metrics) == {"bob", "ann (forgotten)", "ann (kept)"}
    assert all(weight > 0 for values in metrics.values() for _, weight in values.values())
    assert all(torch.equal(p, before[n]) for n, p in resident.model.named_parameters() if n in before)


def test_evaluation_leaves_out_what_was_forgotten_before(config: RunConfig) -> None:
    ids = [row.id for row in resolve(config).clients["ann"]]
    answer = Host().answer
    whole = answer(request(config, ANN, kind=EvaluateRequest)).metrics["ann"]
    less = answer(request(config, ClientTask(client_id="ann", excluded=(ids[0],)), kind=EvaluateRequest)).metrics["ann"]
    parts = answer(
        request(config, ClientTask(client_id="ann", excluded=(ids[0],), forget=(ids[1],)), kind=EvaluateRequest)
    ).metrics
    weights = {name: metrics["probability"][1] for name, metrics in parts.items()}
    assert whole["probability"][1] == len(ids) == 5 and less["probability"][1] == 4
    assert weights == {"ann (forgotten)": 1, "ann (kept)": 3}
