"""A run with a rule of another package can be traced to it, and says when it goes on with another version of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from command_line import oblivion
from outside import RULE, Install, uninstall
from outside import install as install

import oblivion as ob
from oblivion.provenance import code_fingerprint
from simulations import simulate

FILES = {"my_fed/__init__.py": "", "my_fed/rules.py": RULE.format(how="as ever")}
OBJECTIVE = "from oblivion.objectives.npo import NPO\n\n\nclass Mine(NPO):\n    pass\n"


def manifest_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return content


def warnings(run: Path) -> list[str]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["text"] for event in events if event["event"] == "warning"]


def test_a_run_names_the_packages_of_its_parts(install: Install, micro_scenario: Path, tmp_path: Path) -> None:
    site = install("my-fed", "0.1", {"aggregators": {"mine": "my_fed.rules:Mine"}}, FILES)
    run = tmp_path / "run"
    config = ob.load_config(
        micro_scenario, {"federation.aggregator": "mine", "federation.rounds": 2, "forget.methods": []}
    )
    simulate(config, run)
    manifest = manifest_of(run)
    (package,) = manifest["packages"]
    assert (package["name"], package["version"]) == ("my-fed", "0.1") and "packages_added" not in manifest
    assert manifest["code_fingerprint"] != code_fingerprint()
    assert warnings(run) == [], "every update had the server's fingerprint"

    code, out, _ = oblivion("run", "--resume", "--out", run)
    assert code == 0 and out.startswith("finished already") and warnings(run) == []

    uninstall(site)
    code, out, err = oblivion("run", "--resume", "--out", run)
    assert code == 2 and "'mine': unknown aggregator" in err and "Traceback" not in err
    assert err.endswith("The run used a package that is not installed now: my-fed 0.1\n") and err.count("\n") == 1

    objective = {"objectives": {"own": "my_objective:Mine"}}
    install("my-fed", "0.2", {"aggregators": {"mine": "my_fed.rules:Mine"}}, FILES)
    install("my-objective", "7", objective, {"my_objective.py": OBJECTIVE})
    own = ("--client", "client-2", "--method", "local", "--set", "forget.methods.local.objective=own", "--json")
    code, out, err = oblivion("forget", run, *own)
    assert code == 0, err
    (said,) = warnings(run)
    assert said.startswith("package my-fed is not what this run used before: 0.1 (") and "then, 0.2 (" in said
    manifest = manifest_of(run)
    assert manifest["packages"] == [package]
    added = [(one["name"], one["version"]) for one in manifest["packages_added"]]
    assert added == [("my-fed", "0.2"), ("my-objective", "7")]

    request, trial = json.loads(out)["request"], json.loads(out)["trial"]
    code, out, err = oblivion("commit", run, f"{request}/{trial}", "--json")
    assert code == 0, err
    evidence = json.loads(Path(json.loads(out)["evidence"]).read_text())
    environment = json.loads(base64.b64decode(evidence["payload"]))["predicate"]["environment"]
    assert environment["packages"] == [package] and environment["packages_added"] == manifest["packages_added"]


def test_other_code_than_a_run_began_with_is_said(micro_scenario: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    simulate(
        ob.load_config(
            micro_scenario,
            {
                "federation.rounds": 1,
                "forget.client": "",
                "forget.methods": [],
                "evaluate.limit": 1,
                "federation.joins": {},
            },
        ),
        run,
    )
    manifest = manifest_of(run)
    (run / "manifest.json").write_text(json.dumps({**manifest, "code_fingerprint": "0" * 16}))
    code, _, err = oblivion("run", "--resume", "--out", run)
    assert code == 0
    expected = f"the code is not what this run began with: {'0' * 16} then, {code_fingerprint()} now"
    assert warnings(run) == [expected] and f"warning: {expected}" in err
