"""The command line as a new user meets it: help, dry runs, JSON, lists, doctor, and what each command leaves behind."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import oblivion

from oblivion.config import config_from_mapping, load_config
from oblivion.data.federation import resolve

MICRO = """
model.name = "{model}"
engine = "inline"
lora.rank = 4
lora.alpha = 8
federation.clients = 3
federation.rounds = 2
federation.clients-per-round = 3
train.local-epochs = 1
data.parameters.rows_per_client = 8
data.parameters.holdout_authors = 1
data.public = "dataset"
forget.client = "client-2"
forget.methods.exclude.recovery-rounds = 1
evaluate.limit = 3
evaluate.max-new-tokens = 2
simulation.hosts = 1
"""
KINDS = (
    "aggregators",
    "datasets",
    "learnings",
    "metrics",
    "objectives",
    "partitions",
    "removals",
    "scenarios",
    "schemes",
    "suites",
    "tasks",
    "templates",
)


def good(*arguments: object) -> str:
    code, out, err = oblivion(*arguments)
    assert code == 0, err
    return out


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def scenario(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "micro.toml"
    path.write_text(MICRO.format(model=micro_model))
    return path


@pytest.fixture(scope="module")
def run(scenario: Path) -> Path:
    out = scenario.parent / "run"
    answer = strict_json(good("run", scenario, "--out", out, "--json"))
    assert answer == {"run": str(out), "report": str(out / "report.html")}
    return out


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_needs_no_heavy_library() -> None:
    code = """
import sys
sys.argv = ["oblivion", "--help"]
from oblivion.cli import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "transformers", "flwr", "ray", "numpy", "scipy", "peft", "pydantic"} & set(sys.modules)
    print("heavy:", sorted(heavy), "code:", end.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "heavy: [] code: 0" in done.stdout and done.stderr == ""
    for command in ("run", "forget", "evaluate", "report", "ledger", "list", "doctor"):
        assert command in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        *("run", "forget", "commit", "refuse", "requests", "evidence", "ids", "evaluate", "report", "list", "doctor"),
        *("ledger show", "ledger verify", "ledger export", "ledger clock", "ledger enrol"),
    ],
)
def test_every_command_has_help(command: str) -> None:
    out = good(*command.split(), "--help")
    assert "Usage: oblivion " + command in out and "--json" in out and good(*command.split(), "-h") == out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["--nope"],
        ["run", "--nope"],
        ["run", "--set"],
        ["list"],
        ["report"],
        ["evaluate"],
        ["forget"],
        ["forget", "run"],
        ["forget", "run", "--client", "client-1"],
        ["forget", "run", "--method", "local"],
        ["forget", "run", "--method", "local", "--client", "client-1", "--request", "signed.json"],
        ["refuse", "run", "req-1"],
        ["commit", "run"],
        ["requests"],
        ["evidence", "run"],
        ["run", "--resume"],
        ["run", "--resume", "demo"],
        ["run", "--resume", "demo", "--out", "run"],
        ["run", "--resume", "--out", "run", "--set", "seed=3"],
        ["run", "--resume", "--out", "run", "--engine", "inline"],
        ["run", "--resume", "--out", "run", "--dry-run"],
        ["ledger", "show"],
        ["ledger", "verify"],
        ["evaluate", "x", "--limit", "-1"],
        ["evaluate", "x", "--max-new-tokens", "0"],
        ["evaluate", "x", "--batch-size", "many"],
    ],
)
def test_wrong_usage_ends_with_two(arguments: list[str], elsewhere: Path) -> None:
    code, out, err = oblivion(*arguments)
    assert code == 2 and out == "" and "Error" in err and not files(elsewhere)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("run", ["built-in scenario"]),
        ("evaluate", ["adapter folder", "[default: (the run's, else that of a new run)]", "[default: (plain)]"]),
        ("commit", ["oblivion requests"]),
        ("refuse", ["oblivion requests"]),
        ("evidence", ["oblivion requests"]),
        ("list", list(KINDS)),
    ],
)
def test_help_says_what_to_give_and_what_is_taken_where_nothing_is_given(
    monkeypatch: pytest.MonkeyPatch, command: str, said: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = " ".join(good(command, "--help").split())
    assert [words for words in said if words not in out] == [] and " . " not in out


def test_without_arguments_the_help_is_shown() -> None:
    _, out, err = oblivion()
    assert "Usage: oblivion" in out + err and "doctor" in out + err


def test_a_dry_run_prints_what_loads_back_equal_and_writes_nothing(scenario: Path, elsewhere: Path) -> None:
    text = good("run", scenario, "--dry-run", "--set", "train.learning-rate=0.01", "--set", "seed=3")
    answer = strict_json(
        good("run", scenario, "--dry-run", "--json", "--set", "train.learning-rate=0.01", "--set", "seed=3")
    )
    assert not list(elsewhere.iterdir())
    saved = elsewhere / "resolved.toml"
    saved.write_text(text)
    config = load_config(saved)
    assert config == config_from_mapping(answer["config"])
    assert (config.seed, config.train.learning_rate, config.train.cohort) == (3, 0.01, 2)
    assert config.model.dtype == "float32"
    expected = answer["estimate"]
    # every client is selected in both rounds, and passes once over its rows in batches of 8
    steps = 2 * sum(-(-len(rows) // 8) for rows in resolve(config).clients.values())
    assert expected["rounds"] == 2 and expected["client_steps"] == steps
    assert expected["seconds"] >= 0 and expected["memory_mb"] > 100
    for key in expected:
        assert f"# {key}: " in text


def test_engine_is_an_override_like_any_other(scenario: Path) -> None:
    answer = strict_json(good("run", scenario, "--dry-run", "--json", "--set", "engine=inline", "--engine", "ray"))
    assert answer["config"]["engine"] == "ray"


def test_a_run_without_out_takes_the_first_free_name(scenario: Path, elsewhere: Path) -> None:
    quick = ("--set", "forget.client=", "--set", "forget.methods=", "--set", "federation.rounds=1")
    for name in ("micro", "micro-2"):
        out = good("run", scenario, *quick)
        assert out == f"report: runs/{name}/report.html\n"
        assert (elsewhere / "runs" / name / "report.html").is_file()


def test_progress_goes_to_standard_error(scenario: Path, elsewhere: Path) -> None:
    code, out, err = oblivion(
        "run", scenario, "--out", "one", "--set", "federation.rounds=1", "--set", "forget.methods="
    )
    assert code == 0 and out == "report: one/report.html\n"
    assert "learning: 3 clients, 1 round\n" in err and "main: round 1/1, 3 clients" in err
    assert not list(elsewhere.rglob("*oblivion-partial*"))


def test_a_plan_runs_nothing(run: Path) -> None:
    before = files(run)
    plan = strict_json(good("forget", run, "--client", "client-1", "--method", "local", "--plan", "--json"))
    text = good("forget", run, "--client", "client-1", "--method", "local", "--plan")
    assert files(run) == before
    assert plan["method"] == "local" and plan["guarantee"] == "approximate"
    assert [phase["kind"] for phase in plan["phases"]] == ["visit", "rounds"]
    assert "guarantee approximate" in text
    for touch in plan["checklist"]:
        assert touch["item"] in text and touch["status"] in text


def test_a_plan_follows_the_settings(run: Path) -> None:
    plan = strict_json(
        good(
            "forget",
            run,
            "--client",
            "client-1",
            "--method",
            "local",
            "--plan",
            "--json",
            "--set",
            "forget.methods.local.objective=simnpo",
            "--set",
            "forget.methods.local.beta=2.5",
            "--set",
            "forget.methods.local.recovery-rounds=0",
        )
    )
    (phase,) = plan["phases"]
    assert phase["objective"] == "simnpo" and phase["parameters"]["beta"] == 2.5


def test_forget_adds_a_trial_and_says_where(run: Path) -> None:
    before = (run / "adapters/original/adapter_model.safetensors").read_bytes()
    answer = strict_json(good("forget", run, "--client", "client-2", "--method", "local", "--json"))
    assert set(answer) == {"run", "report", "request", "trial"} and answer["trial"] == "local"
    folder = run / "forgets" / answer["request"] / "local"
    assert (folder / "plan.json").is_file() and (folder / "adapters/adapter_config.json").is_file()
    again = good("forget", run, "--client", "client-2", "--method", "local")
    assert f"request: {answer['request']}" in again and "trial: local\n" in again
    assert (run / "adapters/original/adapter_model.safetensors").read_bytes() == before


@pytest.fixture
def copy(run: Path, elsewhere: Path) -> Path:
    """The run, to be changed for good."""
    shutil.copytree(run, elsewhere / "copy")
    return elsewhere / "copy"


def request_of(run: Path) -> str:
    """The request that the scenario made."""
    return str(next(e["id"] for e in strict_json((run / "metrics.json").read_text())["requests"]))


def test_a_commit_says_what_it_made_and_where_the_evidence_is(copy: Path) -> None:
    trial = f"{request_of(copy)}/exclude"
    code, out, err = oblivion("commit", copy, trial, "--accept-no-guarantee", "--json")
    answer = strict_json(out)
    evidence = copy / "forgets" / trial / "evidence.json"
    assert code == 0 and f"committing {trial}" in err
    expected = {"run": str(copy), "report": str(copy / "report.html"), "committed": trial, "evidence": str(evidence)}
    expected["guarantee"] = "none"
    assert answer == expected and evidence.is_file() and not (copy / "adapters/original").exists()
    code, out, err = oblivion("commit", copy, trial)
    assert code == 5 and out == "" and err == f"error: {request_of(copy)} is committed already\n"


def test_a_request_that_is_refused_stays_refused_with_its_ground(copy: Path) -> None:
    request, ground = request_of(copy), "the law asks that it is kept"
    answer = strict_json(good("refuse", copy, request, "--ground", ground, "--json"))
    assert answer == {"refused": request, "ground": ground}
    code, _, err = oblivion("commit", copy, f"{request}/exclude")
    assert code == 5 and f"{request} is refused already: {ground}" in err
    code, _, err = oblivion("refuse", copy, request, "--ground", "again")
    assert code == 2 and f"{request} is refused already" in err
    code, _, err = oblivion("refuse", copy, "req-nothing", "--ground", "x")
    assert code == 2 and "there is no request 'req-nothing'" in err and request in err


def signed_request(run: Path, client: str) -> dict[str, Any]:
    """As a client would sign it elsewhere; here, with the key that the simulation made for it."""
    from oblivion.config import LedgerConfig
    from oblivion.ledger.opening import open_ledger
    from oblivion.ledger.requests import issue, to_json

    ledger, register = open_ledger(run, LedgerConfig())
    request = issue(client, None, register.simulated_key(client), register.federation, ledger.book.now())
    ledger.close()
    return to_json(request)


def test_a_request_that_its_client_signed(copy: Path, elsewhere: Path) -> None:
    content = signed_request(copy, "client-1")
    (elsewhere / "signed.json").write_text(json.dumps(content))
    arguments = ("forget", copy, "--request", "signed.json", "--method", "exclude")
    assert strict_json(good(*arguments, "--plan", "--json"))["guarantee"] == "none"
    answer = strict_json(good(*arguments, "--json"))
    assert answer["request"] == content["id"] and answer["trial"] == "exclude"
    assert strict_json(good(*arguments, "--json")) == answer, "the same request again is the one that is there"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"client": "client-0"}, 4, "the forget request is refused"),
        ({"federation": "f" * 32}, 4, "issue a request for this federation"),
        ({"expires": "2020-01-01T00:00:00Z"}, 4, "send the request as it was issued"),
        ({"signature": "0" * 128}, 4, "not that of client 'client-1'"),
        ({"version": 2}, 3, "the version is not known"),
        ({"surplus": 1}, 3, "'surplus' is unknown"),
        ({"client": "../x"}, 3, "client id"),
    ],
)
def test_a_request_that_is_not_as_it_was_signed(
    copy: Path, elsewhere: Path, change: dict[str, Any], code: int, words: str
) -> None:
    (elsewhere / "signed.json").write_text(json.dumps({**signed_request(copy, "client-1"), **change}))
    ended, out, err = oblivion("forget", copy, "--request", "signed.json", "--method", "exclude")
    assert ended == code and words in err and out == "" and "Traceback" not in err
    assert [e["client"] for e in strict_json((copy / "metrics.json").read_text())["requests"]] == ["client-2"]


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), (b"{", "not JSON"), (b"\xff", "line 1 is not")]
)
def test_a_request_that_cannot_be_read(run: Path, elsewhere: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (elsewhere / "signed.json").write_bytes(content)
    code, out, err = oblivion("forget", run, "--request", "signed.json", "--method", "exclude")
    assert code == 3 and f"signed.json: {words}" in err and out == ""


def test_a_finished_run_that_is_resumed_changes_no_bit(copy: Path) -> None:
    def adapters() -> dict[str, bytes]:
        return {name: data for name, data in files(copy).items() if name.endswith((".safetensors", "metrics.json"))}

    before = adapters()
    answer = strict_json(good("run", "--resume", "--out", copy, "--json"))
    assert answer == {"run": str(copy), "report": str(copy / "report.html"), "finished": "already"}
    code, out, err = oblivion("run", "--resume", "--out", copy)
    assert code == 0 and out.startswith("finished already: nothing was left to do\n") and "learning" not in err
    assert adapters() == before
    good("commit", copy, f"{request_of(copy)}/exclude", "--accept-no-guarantee")
    assert good("run", "--resume", "--out", copy).startswith("finished already")


def test_a_run_that_is_not_finished_is_not_called_so(copy: Path) -> None:
    metrics = strict_json((copy / "metrics.json").read_text())
    del metrics["requests"][0]["models"]["original"]
    (copy / "metrics.json").write_text(json.dumps(metrics))
    answer = strict_json(good("run", "--resume", "--out", copy, "--json"))
    assert "finished" not in answer


def test_who_was_erased_is_not_among_the_known(copy: Path) -> None:
    good("commit", copy, f"{request_of(copy)}/exclude", "--accept-no-guarantee")
    code, _, err = oblivion("forget", copy, "--client", "client-7", "--method", "exclude")
    assert code == 2 and err.endswith("Known: client-0, client-1\n")


def test_the_ledger_is_shown_verified_and_exported(run: Path, elsewhere: Path) -> None:
    before = {name: data for name, data in files(run).items() if name.endswith((".db", ".key"))}
    held = strict_json(good("ledger", "show", run, "--json"))
    request = request_of(run)
    assert held["head"] == "main" and {"main", f"{request}/exclude"} <= {b["name"] for b in held["branches"]}
    assert request in good("ledger", "show", run)
    checked = strict_json(good("ledger", "verify", run, "--json"))
    assert checked["findings"] == [] and checked["entries"] >= checked["records"] > 0 and checked["blobs"] > 0
    checkpoint = strict_json(good("ledger", "export", run, "--out", "log.txt", "--checkpoint", "checkpoint.json"))
    assert checkpoint["size"] == checked["entries"] == len((elsewhere / "log.txt").read_text().splitlines())
    assert strict_json((elsewhere / "checkpoint.json").read_text()) == checkpoint
    assert "everything holds" in good("ledger", "verify", run, "--checkpoint", "checkpoint.json")
    assert {name: data for name, data in files(run).items() if name.endswith((".db", ".key"))} == before


def test_report_of_one_run_and_of_several(run: Path, elsewhere: Path) -> None:
    assert good("report", run) == f"report: {run / 'report.html'}\n"
    assert strict_json(good("report", run, run, "--out", "both.html", "--json")) == {"report": "both.html"}
    assert good("report", run, run) == "report: report.html\n"
    for name in ("both.html", "report.html"):
        assert "<html" in (elsewhere / name).read_text("utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_list(kind: str) -> None:
    described = strict_json(good("list", kind, "--json"))
    lines = good("list", kind).splitlines()
    assert described and len(lines) == len(described)
    for line, (name, text) in zip(lines, described.items(), strict=True):
        assert line.split()[0] == name and text and line.endswith(text)


def test_list_knows_every_registry() -> None:
    code, _, err = oblivion("list", "nothing")
    assert code == 2 and err.strip().endswith("Known: " + ", ".join(KINDS))


def test_doctor(elsewhere: Path) -> None:
    facts = strict_json(good("doctor", "--json"))
    text = good("doctor")
    assert facts["missing"] == "nothing" and facts["python"].startswith("3.")
    for key in ("torch", "flwr", "ray", "fingerprint", "cores", "device", "free disk", "code"):
        assert facts[key] and key in text
    assert not files(elsewhere)


def test_doctor_names_a_missing_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.doctor.TINY", tmp_path)
    code, out, _ = oblivion("doctor")
    assert code == 1 and "the built-in model" in out and "tiny_recipe" in out


def test_doctor_works_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from server import doctor

    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name in ("torch", "ray") else find(name)
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, _ = oblivion("doctor", "--json")
    facts = strict_json(out)
    assert code == 1 and facts["missing"] == "ray, torch" and facts["device"] == "unknown"


@pytest.mark.parametrize("listening", [True, False])
def test_doctor_says_whether_the_port_is_taken(listening: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()
        port = server.getsockname()[1]
        monkeypatch.setattr("server.doctor._SUPERLINK_PORT", port)
        facts = strict_json(good("doctor", "--json"))
    assert facts[f"port {port}"].startswith("in use" if listening else "free")


def test_ctrl_c_ends_with_130(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.simulate", interrupted)
    code, out, err = oblivion("run", scenario, "--out", "o")
    assert code == 130 and out == "" and "Traceback" not in err
