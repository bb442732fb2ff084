"""Runs with differential privacy: bits, secrets, budget, and what metrics and report say."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import oblivion as ob
from oblivion.aggregation.sums import equal_mean, mean_update
from oblivion.errors import ConfigError, IntegrityError, PlanRefusedError
from oblivion.federation.replay import verify_head
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.store import StoredLedger
from oblivion.ledger.verify import verify_ledger
from oblivion.privacy.accountant import gaussian_epsilon
from oblivion.privacy.noise import derive_key
from oblivion.report.formatting import number
from oblivion.selection import select_clients
from oblivion.types import Adapter, HostRequest
from simulations import RunResult, simulate
from simulations.engines.inline import InlineHosts

LATE = "client-2"
SMALL: dict[str, Any] = {
    "federation.rounds": 3,
    f"federation.joins.{LATE}": 2,
    "forget.methods": ["rollback"],
    "evaluate.limit": 2,
    "evaluate.max-new-tokens": 1,
}
UNITS: dict[str, dict[str, Any]] = {
    "sample": {"privacy.unit": "sample", "privacy.noise-multiplier": 0.8},
    "client": {"privacy.unit": "client", "privacy.noise-multiplier": 2.0, "privacy.clip-norm": 0.1},
}


def run(scenario: Path, out: Path, changes: dict[str, Any]) -> RunResult:
    return simulate(ob.load_config(scenario, {**SMALL, **changes}), out)


def same_bits(one: Adapter, other: Adapter) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def model_of(result: RunResult, name: str) -> RunResult:
    (entry,) = result.metrics["requests"]
    return RunResult(result.directory, f"{entry['id']}/{name}")


def secrets_of(root: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted((root / "keys" / "noise").glob("*.key"))}


@pytest.fixture(scope="module", params=["sample", "client"])
def private(
    request: pytest.FixtureRequest, micro_scenario: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, RunResult, list[HostRequest]]:
    """A run with a rollback and an oracle, and every message of it."""
    sent: list[HostRequest] = []
    ask = InlineHosts.ask

    def record(self: InlineHosts, requests: Any) -> Any:
        sent.extend(requests)
        return ask(self, requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InlineHosts, "ask", record)
        done = run(micro_scenario, tmp_path_factory.mktemp("private") / "run", UNITS[request.param])
    return request.param, done, sent


Private = tuple[str, RunResult, list[HostRequest]]


def test_secrets_are_in_keys_and_nowhere_else(private: Private) -> None:
    unit, result, sent = private
    secrets = secrets_of(result.directory)
    assert len(secrets) == 2 and len(set(secrets.values())) == 2  # of main and of the rollback; the oracle is gone
    for path in (result.directory / "keys" / "noise").glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_size == 32
    forms = [form for secret in secrets.values() for form in (secret, secret.hex().encode())]
    files = [path for path in result.directory.rglob("*") if path.is_file() and "noise" not in path.parts]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        assert not any(form in content for form in forms), path
    told = repr([(r.kind, r.config, [[(t.client_id, t.noise_key) for t in c] for c in r.cohorts]) for r in sent])
    assert not any(form.decode("latin-1") in told for form in forms)
    keys = [task.noise_key for r in sent if r.kind == "train" for cohort in r.cohorts for task in cohort]
    if unit == "sample":
        assert len(set(keys)) == len(keys) == 3 + 2 * 4 + 3 * 3 + 2 * 3  # no two visits have one key
        assert derive_key(next(iter(secrets.values())), "dp-sgd", 1, "client-0").hex() in keys
        written = b"".join(path.read_bytes() for path in files)
        assert not any(key.encode() in written or bytes.fromhex(key) in written for key in keys)
    else:
        assert set(keys) == {""}


def test_branches_have_noise_of_their_own(private: Private) -> None:
    _, result, _ = private
    rollback, oracle = model_of(result, "rollback").adapter, model_of(result, "oracle").adapter
    assert not same_bits(rollback, oracle)


def test_metrics_and_report_say_what_was_spent(private: Private) -> None:
    unit, result, _ = private
    said = result.metrics["privacy"]
    assert (said["unit"], said["delta"]) == (unit, 1e-5)
    spent = [(one["branch"].split("/")[-1], one["round"]) for one in said["rounds"]]
    assert spent == [
        ("main", 1),
        ("main", 2),
        ("main", 3),
        *(("oracle", r) for r in (1, 2, 3)),
        ("rollback", 2),
        ("rollback", 3),
    ]
    epsilons = [one["epsilon"] for one in said["rounds"]]
    assert epsilons == sorted(epsilons) and epsilons[-1] == said["epsilon"] > 0
    if unit == "client":  # by hand: the clients that stay were asked eight times, at sigma 2
        assert said["epsilon"] == pytest.approx(gaussian_epsilon(math.sqrt(8) / 2, 1e-5))
        one, two, _ = said["forgetting"]
        alone = gaussian_epsilon(math.sqrt(3) / 2, 1e-5)  # of the learned model
        assert (one["clients"], one["epsilon"], one["delta"]) == (1, pytest.approx(alone), 1e-5)
        assert two["epsilon"] == pytest.approx(2 * alone)
        assert two["delta"] == pytest.approx(1e-5 * (1 + math.exp(alone)))
        assert two["gaussian_epsilon"] == pytest.approx(gaussian_epsilon(2 * math.sqrt(3) / 2, 1e-5))
    page = (result.directory / "report.html").read_text()
    assert "Differential privacy" in page and f"Epsilon {said['epsilon']:.2f}"[:11] in page
    assert ("one sample of a client" if unit == "sample" else "everything that one client sends") in page
    assert all(entry["loss"] is None for entry in result.history)
    (entry,) = result.metrics["requests"]
    costs = [model["cost"] for model in entry["models"].values()]
    assert len(costs) == 3 and all(c["tokens"] is None and c["token_fraction"] is None for c in costs)
    assert "tokens" not in re.findall(r"<figcaption>.*?What it cost.*?</figure>", page, re.S)[0]
    assert "one by one" in (result.directory / "events.jsonl").read_text() or unit == "client"


def test_it_can_be_verified_again(private: Private, tmp_path: Path) -> None:
    _, result, _ = private
    assert not verify_ledger(result.directory).findings
    verify_head(result.directory)
    copy = tmp_path / "copy"
    shutil.copytree(result.directory, copy)
    for path in (copy / "keys" / "noise").glob("*.key"):
        path.write_bytes(bytes(32))
    if result.config.privacy.unit == "client":  # other noise is found out
        with pytest.raises(IntegrityError, match="is not what its contributions make"):
            verify_head(copy)
        for path in (copy / "keys" / "noise").glob("*.key"):
            path.unlink()
        with pytest.raises(IntegrityError, match="is missing"):
            verify_head(copy)
        assert not secrets_of(copy)  # and no new one was made in its place


def test_a_commit_takes_secrets_of_gone_branches_and_charges_of_who_left(private: Private, tmp_path: Path) -> None:
    _, result, _ = private
    shutil.copytree(result.directory, tmp_path / "copy")
    copy = RunResult(tmp_path / "copy")
    retrained = copy.forget(LATE, method="retrain")
    before = secrets_of(copy.directory)
    assert len(before) == 3
    retrained.commit()
    after = secrets_of(copy.directory)
    assert len(after) == 1 and set(after) < set(before)  # the head begins at round 1: it needs no other branch
    ledger, _ = open_ledger(copy.directory, copy.config.ledger)
    try:
        charged = ledger.charged()
        assert len(charged) == 11  # what was spent stays spent
        assert all(LATE not in one.clients for one in charged)
    finally:
        ledger.close()
    assert not verify_ledger(copy.directory).findings
    assert len(copy.metrics["privacy"]["rounds"]) == 11


@pytest.mark.parametrize("unit", ["sample", "client"])
def test_with_one_secret_rollback_is_the_oracle_bit_for_bit(
    unit: str, micro_scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredLedger, "noise_secret", lambda self, branch: bytes(range(32)))
    changes = {**UNITS[unit], "federation.aggregator": "fedadam", "ledger.checkpoint-every": 2}
    result = run(micro_scenario, tmp_path / "run", {**changes, "federation.parameters.learning_rate": 0.05})
    rollback, oracle = model_of(result, "rollback").adapter, model_of(result, "oracle").adapter
    assert same_bits(rollback, oracle) and not same_bits(rollback, result.adapter)


def test_without_noise_or_clipping_client_privacy_is_the_equal_mean(micro_scenario: Path, tmp_path: Path) -> None:
    plain = {"forget.client": "", "forget.methods": [], "federation.joins": {}, "federation.rounds": 1}
    quiet = {"privacy.unit": "client", "privacy.noise-multiplier": 0, "privacy.clip-norm": 1e6}
    one = run(micro_scenario, tmp_path / "plain", plain)
    other = run(micro_scenario, tmp_path / "quiet", {**plain, **quiet})
    ledger, _ = open_ledger(one.directory, one.config.ledger)
    try:
        updates = ledger.contributions("main", 1)
    finally:
        ledger.close()
    equal, weighted = equal_mean(updates), mean_update(updates)
    for name in one.adapter:  # both began at the same adapter, and clients trained alike
        moved = other.adapter[name] - one.adapter[name]
        torch.testing.assert_close(moved, (equal[name] - weighted[name]).float(), rtol=0, atol=1e-6)
    assert other.metrics["privacy"]["epsilon"] is None
    assert "no bound" in (other.directory / "report.html").read_text()


def test_a_host_mixes_in_a_secret_of_its_own(
    micro_scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredLedger, "noise_secret", lambda self, branch: bytes(range(32)))
    learn = {
        "forget.client": "",
        "forget.methods": [],
        "federation.joins": {},
        "federation.rounds": 1,
        **UNITS["sample"],
    }
    (tmp_path / "own").write_bytes(bytes(range(40)))
    results = []
    for name, path in (("without", ""), ("with", str(tmp_path / "own")), ("again", str(tmp_path / "own"))):
        monkeypatch.setenv("OBLIVION_NOISE_SECRET", path)
        results.append(run(micro_scenario, tmp_path / name, learn).adapter)
    assert same_bits(results[1], results[2]) and not same_bits(results[0], results[1])
    (tmp_path / "own").write_bytes(b"short")
    with pytest.raises(ob.errors.OblivionError, match="at least 32 secret bytes"):
        run(micro_scenario, tmp_path / "short", learn)


LEARN: dict[str, Any] = {"forget.client": "", "forget.methods": []}


class TestBudget:
    def test_learning_that_does_not_fit_is_refused_before_anything_is_written(
        self, micro_scenario: Path, tmp_path: Path
    ) -> None:
        bound = gaussian_epsilon(math.sqrt(2) / 2, 1e-5) + 1e-9  # two rounds at sigma 2
        with pytest.raises(ConfigError, match="2 of its 3 rounds fit") as e:
            run(micro_scenario, tmp_path / "run", {**LEARN, **UNITS["client"], "privacy.max-epsilon": bound})
        assert e.value.exit_code == 2 and not (tmp_path / "run").exists()

    def test_a_bound_without_noise_fits_nothing(self, micro_scenario: Path, tmp_path: Path) -> None:
        changes = {**LEARN, **UNITS["sample"], "privacy.noise-multiplier": 0, "privacy.max-epsilon": 100}
        with pytest.raises(ConfigError, match="0 of its 3 rounds fit"):
            run(micro_scenario, tmp_path / "run", changes)

    def test_a_removal_that_does_not_fit_is_refused(self, micro_scenario: Path, tmp_path: Path) -> None:
        bound = gaussian_epsilon(math.sqrt(4) / 2, 1e-5) + 1e-9  # three rounds of learning and one more
        changes = {**UNITS["client"], "privacy.max-epsilon": bound, "evaluate.oracle-seeds": 0}
        with pytest.raises(PlanRefusedError, match=r"rollback does not fit .* 1 of its 2 rounds fit") as e:
            run(micro_scenario, tmp_path / "run", changes)
        assert e.value.exit_code == 5 and not (tmp_path / "run").exists()
        result = run(micro_scenario, tmp_path / "run", {**changes, "forget.methods": ["exclude"]})  # one round
        with pytest.raises(PlanRefusedError, match="0 of its 2 rounds fit"):
            result.forget(LATE, method="rollback")
        again = result.forget(LATE, method="exclude")  # it exists, and costs nothing more
        assert again.model.endswith("/exclude")

    def test_where_another_takes_the_place_one_number_is_refused_told_and_bounds_forgetting(
        self, micro_scenario: Path, tmp_path: Path
    ) -> None:
        """Two of three clients are asked, then two of four: without one of them the sum moves by up to 2 C."""
        changes = {**LEARN, **UNITS["client"], "federation.clients-per-round": 2}
        clients = [f"client-{n}" for n in range(4)]
        asked = [select_clients([c for c in clients if (c, r) != (LATE, 1)], 2, 0, r) for r in (1, 2, 3)]
        times = max(sum(client in one for one in asked) for client in clients)
        right = gaussian_epsilon(2 * math.sqrt(times) / 2, 1e-5)
        with pytest.raises(ConfigError, match=f"would become {right:.3g}"):
            run(micro_scenario, tmp_path / "run", {**changes, "privacy.max-epsilon": right - 0.01})
        done = run(micro_scenario, tmp_path / "run", {**changes, "privacy.max-epsilon": right + 0.01})
        said = done.metrics["privacy"]
        assert said["epsilon"] == said["forgetting"][0]["epsilon"] == pytest.approx(right)
        assert f"Epsilon {number(right)}" in (done.directory / "report.html").read_text()

    def test_oracles_pay_too(self, micro_scenario: Path, tmp_path: Path) -> None:
        bound = gaussian_epsilon(math.sqrt(5) / 2, 1e-5) + 1e-9
        with pytest.raises(PlanRefusedError, match="the oracle does not fit"):
            run(micro_scenario, tmp_path / "run", {**UNITS["client"], "privacy.max-epsilon": bound})

    @pytest.mark.parametrize("unit", ["sample", "client"])
    def test_local_is_refused(self, unit: str, micro_scenario: Path, tmp_path: Path) -> None:
        with pytest.raises(PlanRefusedError, match="unlearning visit has no noise"):
            run(micro_scenario, tmp_path / "run", {**UNITS[unit], "forget.methods": ["local"]})


def test_the_checklist_names_what_the_clients_that_stay_spend(private: Private) -> None:
    unit, result, _ = private
    plan = json.loads((result.directory / "forgets" / model_of(result, "rollback").model / "plan.json").read_text())
    (touch,) = [item for item in plan["checklist"] if item["item"] == "privacy budget"]
    assert touch["status"] == "unaffected" and "2 more rounds" in touch["why"]
    if unit == "client":
        assert f"epsilon {gaussian_epsilon(math.sqrt(2) / 2, 1e-5):.3g}" in touch["why"]
