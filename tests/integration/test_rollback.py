"""Rollback, commit and resume on the inline engine: the bits of the oracle, and what is left when all is done."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import oblivion as ob
from oblivion.config import LedgerConfig
from oblivion.data.federation import _resolve, resolve
from oblivion.errors import ConfigError, InputError, OblivionError, PlanRefusedError
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.register import Register
from oblivion.ledger.rounds import Absence
from oblivion.ledger.store import StoredLedger
from oblivion.run.directory import RunDirectory
from oblivion.run.events import Event
from oblivion.types import Adapter
from simulations import RunResult, resume, simulate

LATE, OTHER = "client-2", "client-3"
"""`LATE` joins at round 3 of 4; the state before is no checkpoint, so rollback aggregates rounds 1 and 2 again."""
QUICK: dict[str, dict[str, Any]] = {
    "exclude": {"recovery_rounds": 1},
    "local": {"local_epochs": 1, "recovery_rounds": 1},
}
SMALL: dict[str, Any] = {
    "federation.rounds": 4,
    f"federation.joins.{LATE}": 3,
    "forget.methods": ["rollback"],
    "evaluate.limit": 2,
    "evaluate.max-new-tokens": 1,
}
FEDADAM = {"federation.aggregator": "fedadam", "federation.parameters": {"learning_rate": 0.05}}
FLOWER = {
    "federation.aggregator": "flower",
    "federation.parameters": {"strategy": "FedAdam", "options": {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99}},
}
SGD = {"train.optimizer": "sgd", "train.learning-rate": 0.1}


def run(scenario: Path, out: Path, changes: dict[str, Any] | None = None) -> RunResult:
    return simulate(ob.load_config(scenario, {**SMALL, **(changes or {})}), out)


def same_bits(one: Adapter, other: Adapter) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def entry(result: RunResult, client: str = LATE) -> dict[str, Any]:
    (only,) = [e for e in result.metrics["requests"] if e["client"] == client]
    return dict(only)


def model_of(result: RunResult, name: str, client: str = LATE) -> RunResult:
    return RunResult(result.directory, f"{entry(result, client)['id']}/{name}")


def plan_of(trial: RunResult) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((trial.directory / "forgets" / trial.model / "plan.json").read_text())
    return plan


@contextlib.contextmanager
def opened(result: RunResult) -> Iterator[tuple[StoredLedger, Register]]:
    ledger, register = open_ledger(result.directory, result.config.ledger)
    try:
        yield ledger, register
    finally:
        ledger.close()


@pytest.fixture(scope="module")
def trained(micro_scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run with a rollback of the late joiner, not committed; tests that go on from it take a `copy`."""
    return run(micro_scenario, tmp_path_factory.mktemp("rollback") / "run")


@pytest.fixture
def copy(trained: RunResult, tmp_path: Path) -> RunResult:
    shutil.copytree(trained.directory, tmp_path / "copy")
    return RunResult(tmp_path / "copy")


def trained_rounds(result: RunResult, name: str, client: str = LATE) -> list[int]:
    branch = f"{entry(result, client)['id']}/{name}"
    return [e["round"] for e in result.history if e["branch"] == branch]


# The bits of the oracle


def test_rollback_of_the_late_joiner_is_the_oracle_bit_for_bit(trained: RunResult) -> None:
    rollback, oracle = model_of(trained, "rollback"), model_of(trained, "oracle")
    assert same_bits(rollback.adapter, oracle.adapter) and not same_bits(rollback.adapter, trained.adapter)
    models = entry(trained)["models"]
    assert models["rollback"]["guarantee"] == "exact" and entry(trained)["t_u"] == 3
    assert trained_rounds(trained, "rollback") == [3, 4]
    assert models["rollback"]["cost"]["fraction"] == pytest.approx(2 / 4)  # two of four rounds of the same clients
    assert models["rollback"]["central"]["forget_quality"]["value"] == 1.0
    restore, again = plan_of(rollback)["phases"]
    assert restore == {"kind": "restore", "round": 2}
    assert again == {"kind": "rounds", "first": 3, "last": 4, "replay": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"federation.aggregator": "fedprox", "federation.parameters.mu": 0.1},
        FEDADAM,
        {**FEDADAM, "train.cohort": 2, "ledger.checkpoint-every": 2},
        {**SGD, "federation.aggregator": "scaffold", "ledger.checkpoint-every": 2},
        {**SGD, "federation.aggregator": "feddyn", "federation.parameters.alpha": 0.1},
        {**SGD, "federation.aggregator": "fednova"},
        {**FLOWER, "ledger.checkpoint-every": 2},
        {"federation.clients-per-round": 2, "seed": 1, f"federation.joins.{LATE}": 2},
        {"ledger.precision": "bfloat16"},
        {"ledger.retention": 1},  # what is left of rounds 1 and 2 is the state before them
    ],
    ids=[
        "fedprox",
        "fedadam",
        "fedadam cohorts",
        "scaffold",
        "feddyn",
        "fednova",
        "flower",
        "two",
        "bfloat16",
        "retention",
    ],
)
def test_rollback_is_the_oracle_under_every_rule(micro_scenario: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    result = run(micro_scenario, tmp_path / "run", changes)
    rollback, oracle = model_of(result, "rollback"), model_of(result, "oracle")
    assert same_bits(rollback.adapter, oracle.adapter) and not same_bits(rollback.adapter, result.adapter)
    assert entry(result)["models"]["rollback"]["cost"]["fraction"] == pytest.approx(plan_of(rollback)["fraction"])
    committed = rollback.commit()
    assert same_bits(committed.adapter, oracle.adapter)


@pytest.mark.parametrize("changes", [{}, FEDADAM], ids=["fedavg", "fedadam"])
def test_rollback_of_samples_is_the_oracle_bit_for_bit(
    micro_scenario: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    result = run(micro_scenario, tmp_path / "run", {"forget.samples": "authors:0.5", **changes})
    rollback, oracle = model_of(result, "rollback"), model_of(result, "oracle")
    assert same_bits(rollback.adapter, oracle.adapter) and not same_bits(rollback.adapter, result.adapter)
    assert entry(result)["samples"] == len(entry(result)["sample_ids"]) > 0
    committed = rollback.commit()
    assert same_bits(committed.adapter, oracle.adapter)
    with opened(committed) as (ledger, register):
        (gone,) = register.exclusions()
        assert gone == Absence(client=LATE, samples=tuple(entry(result)["sample_ids"]))
        assert LATE in register.clients(), "the client stays with its other rows"
        assert all(LATE in record.selected for record in ledger.records(register.head()) if record.round >= 3)


def test_a_client_that_joins_late_costs_little(micro_scenario: Path, tmp_path: Path) -> None:
    changes = {"federation.rounds": 10, f"federation.joins.{LATE}": 6}
    result = run(micro_scenario, tmp_path / "run", changes)
    cost = entry(result)["models"]["rollback"]["cost"]
    assert 0.45 <= cost["fraction"] <= 0.55 and trained_rounds(result, "rollback") == [6, 7, 8, 9, 10]
    assert same_bits(model_of(result, "rollback").adapter, model_of(result, "oracle").adapter)


def test_a_client_that_was_never_selected_costs_nothing_and_changes_no_bit(
    micro_scenario: Path, tmp_path: Path
) -> None:
    changes = {"federation.clients-per-round": 1, f"federation.joins.{LATE}": 1, "federation.rounds": 3}
    result = run(micro_scenario, tmp_path / "run", {**changes, "forget.client": "", "forget.methods": []})
    with opened(result) as (ledger, _):
        selected = {client for record in ledger.records("main") for client in record.selected}
    absent = min({f"client-{i}" for i in range(4)} - selected)
    before, digest = result.adapter, adapters(result)["adapters/original/adapter_model.safetensors"]
    trial = result.forget(absent, method="rollback")
    assert same_bits(trial.adapter, before) and same_bits(model_of(result, "oracle", absent).adapter, before)
    cost = entry(result, absent)["models"]["rollback"]["cost"]
    assert cost["fraction"] == 0 and cost["client_steps"] == 0 and trained_rounds(result, "rollback", absent) == []
    assert plan_of(trial)["from_round"] == 0 and plan_of(trial)["phases"] == []
    committed = trial.commit()
    assert same_bits(committed.adapter, before)
    evidence = json.loads((result.directory / "forgets" / trial.model / "evidence.json").read_text())
    assert digest in json.dumps(evidence_statement(evidence))
    with opened(committed) as (ledger, register):
        assert register.exclusions() == (Absence(client=absent),) and absent not in register.clients()
        assert len(ledger.records(register.head())) == 3 and ledger.restorable(register.head()) == (0, 1, 2, 3)


def evidence_statement(evidence: dict[str, Any]) -> dict[str, Any]:
    """What a sealed statement (a DSSE envelope) says."""
    import base64

    said: dict[str, Any] = json.loads(base64.b64decode(evidence["payload"]))
    return said


# Commits, one after another


def committed_rollback(result: RunResult, client: str, samples: str = "") -> RunResult:
    trial = result.forget(client, samples, method="rollback")
    oracle = model_of(result, "oracle", client).adapter
    assert same_bits(trial.adapter, oracle)
    head = trial.commit()
    assert same_bits(head.adapter, oracle)
    return head


def test_two_requests_in_a_row_and_in_any_order(copy: RunResult, trained: RunResult, tmp_path: Path) -> None:
    """The second oracle is without both, and it does not matter who left first."""
    shutil.copytree(trained.directory, tmp_path / "other")
    first = committed_rollback(copy, LATE)
    both = committed_rollback(first, OTHER)
    turned = committed_rollback(committed_rollback(RunResult(tmp_path / "other"), OTHER), LATE)
    assert same_bits(both.adapter, turned.adapter) and not same_bits(both.adapter, trained.adapter)
    for result in (both, turned):
        with opened(result) as (ledger, register):
            assert {absence.client for absence in register.exclusions()} == {LATE, OTHER}
            assert register.clients() == ("client-0", "client-1")
            for branch in ledger.branches():
                named = {c for record in ledger.records(branch.name) for c in (*record.selected, *record.failed)}
                assert named <= {"client-0", "client-1"}
            assert [asked.state for asked in register.all_asked()] == ["committed", "committed"]
    third = committed_rollback(both, "client-1")
    with opened(third) as (ledger, register):
        assert {client for record in ledger.records(register.head()) for client in record.selected} == {"client-0"}


def test_samples_and_then_the_whole_client(copy: RunResult, tmp_path: Path) -> None:
    ids = sorted(row.id for row in resolve(copy.config).clients[LATE])[:3]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    direct = RunResult(tmp_path / "direct")
    shutil.copytree(copy.directory, direct.directory)
    fewer = committed_rollback_of_samples(copy, tmp_path / "ids.txt")
    assert files_with(fewer.directory, ids), "what may not come back must be known"
    whole = committed_rollback_last(fewer, LATE)
    assert same_bits(whole.adapter, committed_rollback(direct, LATE).adapter)
    assert files_with(whole.directory, ids) == [], "the client may not come back; its samples need no names"
    assert len(list(whole.directory.glob("forgets/*/rollback/evidence.json"))) == 2


def files_with(folder: Path, ids: list[str]) -> list[str]:
    """The files that name one of some samples, as JSON does."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.name for path in found if any(f'"{sample}"'.encode() in path.read_bytes() for sample in ids)]


def test_evidence_says_nothing_of_the_other_clients(copy: RunResult) -> None:
    committed_rollback(copy, LATE)
    (path,) = copy.directory.glob("forgets/*/rollback/evidence.json")
    said = json.loads(base64.b64decode(json.loads(path.read_text())["payload"]))
    manifest = json.loads((copy.directory / "manifest.json").read_text())
    assert said["predicate"]["environment"]["versions"] == manifest["versions"]
    others = [*manifest["clients"], *manifest["client_digests"].values()]
    assert len(others) == 6 and not [text for text in others if text in json.dumps(said)]


def committed_rollback_of_samples(result: RunResult, path: Path) -> RunResult:
    trial = result.forget(LATE, str(path), method="rollback")
    return trial.commit()


def committed_rollback_last(result: RunResult, client: str) -> RunResult:
    """As `committed_rollback`, for a client with more than one request."""
    trial = result.forget(client, method="rollback")
    oracle = RunResult(result.directory, f"{trial.model.split('/')[0]}/oracle").adapter
    assert same_bits(trial.adapter, oracle)
    return trial.commit()


@pytest.mark.parametrize("method", ["exclude", "local", "retrain"])
def test_a_rollback_after_another_removal_is_still_its_oracle(copy: RunResult, method: str) -> None:
    """What an approximate removal left behind cannot be gone on from; rollback goes back behind it."""
    trial = copy.forget(LATE, method=method, parameters=QUICK.get(method))
    adapter = trial.adapter
    head = trial.commit(accept_no_guarantee=method == "exclude")
    assert same_bits(head.adapter, adapter)
    with opened(head) as (ledger, register):
        exact = method == "retrain"
        rounds = [record.round for record in ledger.records(register.head())]
        assert rounds == list(range(1, {"exclude": 5, "local": 6, "retrain": 4}[method] + 1))
        kept = set(range(5)) if exact else {0, 1, 2, rounds[-1]}
        assert set(ledger.restorable(register.head())) == kept
        assert LATE not in {c for record in ledger.records(register.head()) for c in record.selected}
    committed_rollback(head, OTHER)


def test_a_rollback_after_an_exclusion_where_few_take_part(micro_scenario: Path, tmp_path: Path) -> None:
    """Rounds with and without the client that left alternate, and its commit writes some of their records anew."""
    changes = {
        "federation.clients-per-round": 2,
        "federation.rounds": 6,
        f"federation.joins.{LATE}": 1,
        "seed": 3,
        "forget.methods": ["exclude"],
    }
    result = run(micro_scenario, tmp_path / "run", changes)
    with opened(result) as (ledger, _):
        records = ledger.records("main")
    there = [LATE in record.selected for record in records]
    assert True in there and False in there[there.index(True) :], "else this test tests nothing"
    first = next(record.round for record in records if OTHER in record.selected)
    head = model_of(result, "exclude").commit(accept_no_guarantee=True)
    with opened(head) as (ledger, register):
        rounds = [record.round for record in ledger.records(register.head())]
    assert rounds == [1, 2, 3, 4, 5, 6, 7]
    committed_rollback(head, OTHER)
    assert entry(head, OTHER)["t_u"] == first


def test_the_head_can_be_forgotten_from_by_every_method(copy: RunResult) -> None:
    head = committed_rollback(copy, LATE)
    for method in ("exclude", "local", "retrain", "rollback"):
        trial = head.forget(OTHER, method=method, parameters=QUICK.get(method))
        assert trial.model.endswith(f"/{method}") and LATE not in entry(head, OTHER)["models"][method]["clients"]
    assert same_bits(model_of(head, "retrain", OTHER).adapter, model_of(head, "rollback", OTHER).adapter)
    assert trained_rounds(head, "exclude", OTHER) == [5], "one recovery round from the new head, which is at round 4"


def test_a_commit_leaves_nothing_of_the_old_head(copy: RunResult) -> None:
    copy.forget(LATE, method="exclude", parameters=QUICK["exclude"])
    request = entry(copy)["id"]
    before = adapters(copy)
    head = model_of(copy, "rollback").commit()
    root = head.directory
    assert adapters(head).keys() == {
        f"adapters/oracle-{request}/adapter_model.safetensors",
        f"forgets/{request}/rollback/adapters/adapter_model.safetensors",
    }
    assert set(adapters(head).values()) <= set(before.values())
    assert not (root / "evaluations").exists() or not list((root / "evaluations").iterdir())
    assert (root / "forgets" / request / "rollback" / "evidence.json").is_file()
    assert (root / "report.html").is_file() and (root / "public-key.pem").is_file()
    with opened(head) as (ledger, register):
        assert register.head() == f"{request}/rollback" and register.asked(request).state == "committed"
        assert {branch.name for branch in ledger.branches()} == {"main", f"{request}/rollback"}
        assert [record.round for record in ledger.records("main")] == [1, 2], "what both have in common"
        assert LATE not in {path.parent.name for path in (root / "keys").rglob("*.key")}
        assert register.public_key(LATE) is None
        with pytest.raises(ConfigError, match=f"'{LATE}' has no key here"):
            register.simulated_key(LATE)
    kept = [path for path in (root / "ledger").rglob("*") if path.is_file()]
    assert not [path for path in kept if LATE.encode() in path.read_bytes() and path.suffix not in (".db",)]


def test_results_know_what_a_commit_made_of_them(copy: RunResult) -> None:
    excluded = copy.forget(LATE, method="exclude", parameters=QUICK["exclude"])
    other = copy.forget(OTHER, method="exclude", parameters=QUICK["exclude"])
    rollback, oracle = model_of(copy, "rollback"), model_of(copy, "oracle")
    expected = rollback.adapter
    head = rollback.commit()
    assert head == RunResult(copy.directory) and same_bits(head.adapter, expected)
    assert same_bits(rollback.adapter, expected) and same_bits(oracle.adapter, expected)
    for erased in (excluded, other):
        with pytest.raises(InputError, match=f"{erased.model} of .* was erased when a removal was committed") as caught:
            _ = erased.adapter
        assert caught.value.exit_code == 3
    assert entry(head)["committed"] == "rollback" and head.metrics["head"] == f"forgets/{rollback.model}/adapters"
    assert OTHER not in {e["client"] for e in head.metrics["requests"]}


def test_evaluate_measures_the_new_head(copy: RunResult) -> None:
    small: dict[str, Any] = {"suite": "tofu", "limit": 2, "max_new_tokens": 1}
    before = ob.evaluate(copy, **small)
    rollback = model_of(copy, "rollback")
    expected = ob.evaluate(rollback, **small)
    head = rollback.commit()
    after, by_path = ob.evaluate(head, **small), ob.evaluate(str(head.directory), **small)

    def numbers(result: dict[str, Any]) -> dict[str, Any]:
        return {name: value["agg_value"] for name, value in result.items() if name != "manifest"}

    retained = {name: value for name, value in numbers(after).items() if name.startswith("retain_")}
    assert retained and retained == {name: numbers(expected)[name] for name in retained}
    assert retained != {name: numbers(before)[name] for name in retained}
    assert numbers(by_path) == numbers(after)


# What is refused


def fails(error: type[OblivionError], code: int, words: str, call: Any, *arguments: Any, **options: Any) -> None:
    with pytest.raises(error, match=words) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == code


def test_what_cannot_be_committed(copy: RunResult) -> None:
    root, request = copy.directory, entry(copy)["id"]
    stale = copy.forget(OTHER, method="exclude", parameters=QUICK["exclude"])
    before = tree(copy)
    for model in ("original", "req-nothing/rollback", "", "/", "../../x"):
        fails(ConfigError, 2, "there is no request", RunResult(root, model).commit)
    for name in ("rolback", "oracle", "original", "", "rollback/", "../rollback", "adapters"):
        fails(ConfigError, 2, f"{request} has no trial", RunResult(root, f"{request}/{name}").commit)
    fails(ConfigError, 2, "did you mean 'rollback'", RunResult(root, f"{request}/rolback").commit)
    assert tree(copy) == before, "nothing was written"
    model_of(copy, "rollback").commit()
    before = tree(copy)
    fails(PlanRefusedError, 5, f"{request} is committed already", RunResult(root, f"{request}/rollback").commit)
    fails(PlanRefusedError, 5, f"{request} is committed already", RunResult(root, f"{request}/exclude").commit)
    words = f"{stale.model.split('/')[0]} has no trial 'exclude' at the present head"
    fails(ConfigError, 2, words, stale.commit)
    assert tree(copy) == before
    again = copy.forget(OTHER, method="exclude", parameters=QUICK["exclude"])
    assert again.model == stale.model, "the request still waits for its answer"
    again.commit(accept_no_guarantee=True)


def tree(result: RunResult) -> dict[str, str]:
    """Digests of all that a refused command must not touch."""
    return {
        str(path.relative_to(result.directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(result.directory.rglob("*"))
        if path.is_file() and path.name not in ("events.jsonl", "lock") and "ledger.db" not in path.name
    }


def test_who_was_forgotten_cannot_ask_again(copy: RunResult) -> None:
    head = model_of(copy, "rollback").commit()
    before = tree(head)
    for method in ("rollback", "exclude", "retrain"):
        fails(ConfigError, 2, f"'{LATE}' was forgotten by .*; nothing of it is left", head.forget, LATE, method=method)
    fails(ConfigError, 2, f"'{LATE}' was forgotten", head.oracle, LATE)
    assert tree(head) == before


def test_samples_that_were_forgotten_cannot_be_asked_for_again(copy: RunResult, tmp_path: Path) -> None:
    ids = sorted(row.id for row in resolve(copy.config).clients[LATE])
    (tmp_path / "some.txt").write_text("\n".join(ids[:2]))
    (tmp_path / "more.txt").write_text("\n".join(ids[1:3]))
    (tmp_path / "rest.txt").write_text("\n".join(ids[2:]))
    head = copy.forget(LATE, str(tmp_path / "some.txt"), method="rollback").commit()
    for name in ("some.txt", "more.txt"):
        fails(ConfigError, 2, f"'{LATE}' has no sample", head.forget, LATE, str(tmp_path / name), method="rollback")
    fails(ConfigError, 2, f"names all samples of '{LATE}'", head.forget, LATE, str(tmp_path / "rest.txt"))


def test_a_commit_of_something_that_was_changed_is_refused(copy: RunResult) -> None:
    trial = model_of(copy, "rollback")
    path = trial.adapter_folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    fails(OblivionError, 4, "is not what the ledger says; was it changed", trial.commit)
    with opened(copy) as (_, register):
        assert register.head() == "main"


# Interrupted, and gone on with


class Stop:
    """Presses Ctrl-C, so to say, at the n-th event that fits."""

    def __init__(self, name: str, branch: str, round: int = 0, text: str = "") -> None:
        self.name, self.branch, self.round, self.text = name, branch, round, text
        self.struck = False

    def __call__(self, event: Event) -> None:
        here = event.get("branch", "").endswith(self.branch) and event.get("round", 0) == self.round
        if event["event"] == self.name and here and self.text in event.get("text", ""):
            self.struck = True
            raise KeyboardInterrupt


STOPS = [
    Stop("phase", "", text="learning"),
    Stop("round_started", "main", 2),
    Stop("round_committed", "main", 4),
    Stop("round_started", "oracle", 3),
    Stop("phase", "", text="measuring oracle"),
    Stop("round_committed", "rollback", 3),
    Stop("phase", "", text="measuring rollback"),
    Stop("finished", ""),
]


def adapters(result: RunResult, request: str = "") -> dict[str, str]:
    """Path to digest of every adapter, the random id of the request replaced."""
    found = sorted(result.directory.rglob("adapter_model.safetensors"))
    return {
        str(path.relative_to(result.directory)).replace(request or "(none)", "<request>"): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in found
    }


def measured(result: RunResult) -> dict[str, Any]:
    """What ``metrics.json`` says, less ids and times."""
    text = json.dumps(result.metrics).replace(entry(result)["id"], "<request>")
    told: dict[str, Any] = json.loads(text)
    told["scenario"] = ""
    for item in told["history"]:
        item["seconds"] = 0
    told["history"].sort(key=lambda item: (item["branch"], item["round"]))
    return told


@pytest.mark.parametrize("stop", STOPS, ids=[" ".join(filter(None, [s.name, s.branch, s.text])) for s in STOPS])
def test_resume_gives_the_bits_of_the_uninterrupted_run(
    trained: RunResult, micro_scenario: Path, tmp_path: Path, stop: Stop
) -> None:
    with pytest.raises(KeyboardInterrupt):
        simulate(ob.load_config(micro_scenario, SMALL), tmp_path / "run", sinks=[stop])
    assert stop.struck
    result = resume(tmp_path / "run")
    request, reference = entry(result)["id"], entry(trained)["id"]
    assert adapters(result, request) == adapters(trained, reference)
    assert measured(result) == measured(trained)
    again = resume(tmp_path / "run")
    assert adapters(again, request) == adapters(trained, reference) and measured(again) == measured(trained)


@pytest.mark.parametrize("branch", ["main", "oracle", "rollback"])
def test_a_round_that_stopped_between_two_cohorts_goes_on_from_there(
    trained: RunResult, micro_scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, branch: str
) -> None:
    original = StoredLedger.append
    stored: list[str] = []

    def stops(self: StoredLedger, outcome: Any) -> None:
        original(self, outcome)
        if outcome.branch.endswith(branch) and outcome.round == 3:
            stored.extend(update.client_id for update in self.contributions(outcome.branch, 3))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoredLedger, "append", stops)
        with pytest.raises(KeyboardInterrupt):
            run(micro_scenario, tmp_path / "run")
    asked: list[str] = []
    monkeypatch.setattr("oblivion.federation.host.train_cohort", spy_on(asked, branch))
    result = resume(tmp_path / "run")
    assert stored and asked and not set(stored) & set(asked), "what is stored is not trained again"
    request, reference = entry(result)["id"], entry(trained)["id"]
    assert adapters(result, request) == adapters(trained, reference) and measured(result) == measured(trained)


def spy_on(asked: list[str], branch: str) -> Any:
    from oblivion.training.cohort import train_cohort

    def spy(resident: Any, start: Any, tasks: Any, objective: Any, settings: Any, info: Any, *more: Any) -> Any:
        if info.branch.endswith(branch) and info.round == 3:
            asked.extend(task.client_id for task in tasks)
        return train_cohort(resident, start, tasks, objective, settings, info, *more)

    return spy


@pytest.mark.parametrize(("method", "event"), [("local", "round_started"), ("exclude", "round_committed")])
def test_a_trial_that_was_interrupted_goes_on_with_the_same_bits(
    copy: RunResult, trained: RunResult, tmp_path: Path, method: str, event: str
) -> None:
    shutil.copytree(trained.directory, tmp_path / "whole")
    whole = RunResult(tmp_path / "whole").forget(OTHER, method=method, parameters=QUICK.get(method))
    last = trained_rounds(whole, method, OTHER)[-1]
    with pytest.raises(KeyboardInterrupt):
        copy.forget(OTHER, method=method, parameters=QUICK.get(method), sinks=[Stop(event, method, last)])
    again = copy.forget(OTHER, method=method, parameters=QUICK.get(method))
    assert again.model.endswith(f"/{method}") and same_bits(again.adapter, whole.adapter)
    assert trained_rounds(copy, method, OTHER) == trained_rounds(whole, method, OTHER)


def test_an_interrupted_trial_with_other_parameters_begins_anew(copy: RunResult, tmp_path: Path) -> None:
    shutil.copytree(copy.directory, tmp_path / "whole")
    longer = {"recovery_rounds": 2}
    whole = RunResult(tmp_path / "whole").forget(OTHER, method="exclude", parameters=longer)
    with pytest.raises(KeyboardInterrupt):
        copy.forget(OTHER, method="exclude", parameters=QUICK["exclude"], sinks=[Stop("round_committed", "exclude", 5)])
    again = copy.forget(OTHER, method="exclude", parameters=longer)
    assert again.model.endswith("/exclude") and same_bits(again.adapter, whole.adapter)
    assert plan_of(again)["phases"][-1]["last"] == 6


def test_a_commit_that_was_interrupted_before_it_stands_changed_nothing(copy: RunResult) -> None:
    trial = model_of(copy, "rollback")
    open_ledger(copy.directory, LedgerConfig())[0].close()  # notes that the copied keys serve the copied ledger
    before = tree(copy)
    with pytest.raises(KeyboardInterrupt):
        trial.commit(sinks=[Stop("phase", "", text="committing")])
    assert tree(copy) == before
    trial.commit()


@pytest.mark.parametrize("where", ["finish_commits", "erase_files", "_evidence"])
def test_a_commit_that_stands_is_finished_by_whatever_comes_next(
    copy: RunResult, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import oblivion.federation.commits as committing

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    trial, oracle = model_of(copy, "rollback"), model_of(copy, "oracle").adapter
    with monkeypatch.context() as patch:
        patch.setattr(committing, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            trial.commit()
    evidence = copy.directory / "forgets" / trial.model / "evidence.json"
    assert not evidence.exists()
    next_trial = copy.forget(OTHER, method="rollback")
    assert evidence.is_file() and same_bits(RunResult(copy.directory).adapter, oracle)
    assert not (copy.directory / "adapters" / "original").exists()
    assert entry(copy)["committed"] == "rollback"
    next_trial.commit()


def test_a_finished_or_committed_run_is_resumed_in_vain(copy: RunResult) -> None:
    head = model_of(copy, "rollback").commit()
    before = adapters(head), head.metrics
    assert resume(copy.directory) == RunResult(copy.directory)
    assert (adapters(head), head.metrics) == before


def test_resume_of_no_run_and_of_changed_data_is_refused(copy: RunResult, tmp_path: Path) -> None:
    fails(InputError, 3, "is not a run directory", resume, tmp_path / "nowhere")
    run_directory, _ = RunDirectory.open(copy.directory)
    manifest = run_directory.read_json("manifest.json", {})
    run_directory.write_json("manifest.json", {**manifest, "data_digest": "other"})
    fails(OblivionError, 4, "the data changed since", resume, copy.directory)


# What was forgotten leaves its source, too


def who_has_what(path: Path, rows: dict[str, int]) -> None:
    """A file of rows that name their owner; the same owner has the same rows each time."""
    lines = [
        json.dumps({"question": f"What has {client} as number {n}?", "answer": f"{client} has {n * 7}", "who": client})
        for client, count in rows.items()
        for n in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    _resolve.cache_clear()  # as in a new process


def test_who_was_forgotten_may_be_deleted_at_the_source(micro_scenario: Path, tmp_path: Path) -> None:
    rows, path = {"ann": 6, "bob": 5, "cem": 4, "dan": 5}, tmp_path / "rows.jsonl"
    who_has_what(path, rows)
    changes: dict[str, Any] = {"data.name": "jsonl", "data.path": str(path), "data.columns": {"client": "who"}}
    changes |= {"data.parameters": {}, "data.public": "", "federation.joins": {"cem": 2}, "forget.client": "cem"}
    config = ob.load_config(micro_scenario, {**changes, "forget.methods": ["rollback"]})
    result = simulate(config, tmp_path / "run")
    shutil.copytree(result.directory, tmp_path / "there")
    model_of(result, "rollback", "cem").commit()
    there = committed_rollback(committed_rollback(RunResult(tmp_path / "there"), "cem"), "ann")
    del rows["cem"]
    who_has_what(path, rows)
    gone = committed_rollback(result, "ann")
    assert same_bits(gone.adapter, there.adapter)
    assert resume(gone.directory) == gone
    assert {"retain_Q_A_Prob"} <= ob.evaluate(gone.directory, limit=2, max_new_tokens=2).keys()
    who_has_what(path, {**rows, "bob": 4})
    fails(OblivionError, 4, "the data of bob changed since", gone.forget, "dan", "", "rollback")
