"""Small runs of `crash_scenario` for tests of commits. It replaces parts of the program: each test is a process."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from crash_scenario import COMMANDS, LOSSES, TOKENS, commit, configure
from crash_state import state_of

from oblivion.errors import OblivionError, PlanRefusedError
from oblivion.ledger.opening import open_run_ledger
from oblivion.run.directory import RunDirectory
from simulations.simulate import commit_in_run


def run(work: Path, client: str = "client-2", forget: bool = True) -> Path:
    """A run that has learned, with trials of the request of client-2."""
    config, root = configure(work), work / "run"
    for name in ("run", "forget") if forget else ("run",):
        COMMANDS[name](config, root, work)
    return root


def give(root: Path, method: str = "rollback", accept: bool = False) -> str:
    """Commit the trial of the first request; return what the error says, empty without one."""
    directory, config = RunDirectory.open(root)
    request = directory.read_json("metrics.json", {})["requests"][0]["id"]
    try:
        commit_in_run(directory, config, f"{request}/{method}", accept_no_guarantee=accept)
    except OblivionError as error:
        assert "None" not in str(error)
        return f"{type(error).__name__}: {error}"
    return ""


def evidence(root: Path) -> list[Path]:
    return sorted(root.glob("forgets/*/*/evidence.json"))


def missing_original(work: Path) -> None:
    root = run(work)
    shutil.rmtree(root / "adapters/original")
    assert give(root) == "" and len(evidence(root)) == 1


def folders_of_others(work: Path) -> None:
    root = run(work)
    own = ["adapters/mine", "adapters/oracle-thesis", "evaluations/mine", "evaluations/learned/plots", "forgets/notes"]
    for name in own:
        (root / name).mkdir(parents=True)
        (root / name / "notes.json").write_text("mine")
    assert give(root) == ""
    assert {(root / name / "notes.json").read_text() for name in own} == {"mine"}


def link(work: Path) -> None:
    root = run(work)
    (root / "adapters/original").rename(work / "elsewhere")
    (root / "adapters/original").symlink_to(work / "elsewhere")
    said = give(root)
    assert "is a link" in said and "Nothing was changed" in said and not evidence(root)
    shutil.rmtree(work / "elsewhere")  # now it leads nowhere
    assert give(root) == "" and not os.path.lexists(root / "adapters/original")


def lost_afterwards(work: Path) -> None:
    import oblivion.federation.commits as committing

    root, real = run(work), committing.finish_commits

    def interrupted(opened: Any) -> dict[str, str]:
        if opened.register.removals():
            raise KeyboardInterrupt
        return real(opened)

    committing.finish_commits = interrupted
    with suppress(KeyboardInterrupt):
        give(root)
    committing.finish_commits = real
    for path in ("adapters/original", "evaluations"):
        shutil.rmtree(root / path)
    for path in root.glob("forgets/*/rollback/plan.json"):
        path.unlink()
    assert give(root) == "" and len(evidence(root)) == 1


def stuck_blocks_nobody(work: Path) -> None:
    import oblivion.federation.erasing as erasing

    root, real = run(work), erasing.erase

    def refuses(path: Path) -> None:
        if path.name == "original":
            raise OblivionError(f"{path} could not be removed: Operation not permitted; make it writable and try again")
        real(path)

    erasing.erase = refuses
    said = give(root)
    assert "adapters/original could not be removed" in said and "oblivion commit" in said and not evidence(root)
    config = configure(work)
    COMMANDS["forget-samples"](config, root, work)
    commit("client-0", "rollback")(config, root, work)
    assert len(evidence(root)) == 1
    erasing.erase = real
    assert give(root) == "" and len(evidence(root)) == 2 and not (root / "adapters/original").exists()


def guarantee(work: Path) -> None:
    root = run(work)
    said = give(root, "exclude")
    assert said.startswith(PlanRefusedError.__name__) and "--accept-no-guarantee" in said and not evidence(root)
    (plan,) = root.glob("forgets/*/exclude/plan.json")
    text = plan.read_text()
    plan.write_text(text.replace('"guarantee": "none"', '"guarantee": "suppression"'))
    assert give(root, "exclude", accept=True).startswith(PlanRefusedError.__name__) and not evidence(root)
    plan.write_text(text)
    assert give(root, "exclude", accept=True) == "" and len(evidence(root)) == 1


def incomplete(work: Path) -> None:
    root = run(work)
    (plan,) = root.glob("forgets/*/rollback/plan.json")
    plan.write_text(json.dumps({"guarantee": "exact"}))
    assert "plan.json: method is missing" in give(root) and not evidence(root) and (root / "adapters/original").is_dir()


def erased_numbers(work: Path) -> None:
    """What is left does not depend on what the forgotten client said of its visits: so nothing can be computed back."""
    for method in ("rollback", "exclude"):
        left = []
        for number, (loss, tokens) in enumerate(((1.0, 10.0), (3.7, 1234.0))):
            LOSSES["client-2"], TOKENS["client-2"] = loss, tokens
            place = work / f"{method}-{number}"
            place.mkdir()
            root = run(place)
            known = sorted(numbers(root))
            assert give(root, method, accept=True) == ""
            left.append((known, state_of(root), sorted(numbers(root))))
            assert "client-2" not in (root / "events.jsonl").read_text()
            assert "client-2" not in RunDirectory.open(root)[1].federation.joins
        (known, state, after), (known_too, state_too, after_too) = left
        assert known != known_too  # before the commit it could be seen
        assert after == after_too and len(after) > 20
        assert state == state_too


def numbers(root: Path) -> Iterator[str]:
    """Every number in the JSON and JSON lines of a run, with the name that it has there; without times."""

    def leaves(name: str, value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, item in value.items():
                if key not in ("seconds", "time"):
                    yield from leaves(key, item)
        elif isinstance(value, list):
            for item in value:
                yield from leaves(name, item)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{name}={value!r}"

    for path in sorted([*root.rglob("*.json"), root / "events.jsonl"]):
        if path.relative_to(root).parts[0] not in ("keys", "ledger"):
            for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                yield from leaves("", json.loads(text))


def leads_outside(work: Path) -> None:
    """Ids in metrics.json were looked for as patterns, and links to another run's folders were followed."""
    root, victim, home = run(work), work / "victim", work / "home"
    home.mkdir()
    (home / "own.json").write_text("mine")
    shutil.copytree(root, victim)
    metrics, text = root / "metrics.json", (root / "metrics.json").read_text()
    edited = json.loads(text)
    edited["requests"].append({**edited["requests"][0], "id": "../../home"})
    metrics.write_text(json.dumps(edited))
    assert "is no id of a request" in give(root)
    metrics.write_text(text)
    before = state_of(victim)
    for name in ("adapters", "forgets", "evaluations"):
        (root / name).rename(work / "aside")
        (root / name).symlink_to(victim / name)
        said = give(root)
        assert "is a link, which may lead into another run" in said and "Nothing was changed" in said
        (root / name).unlink()
        (work / "aside").rename(root / name)
    assert state_of(victim) == before and (home / "own.json").read_text() == "mine"
    assert give(root) == "" and len(evidence(root)) == 1


def says_to_erase_elsewhere(work: Path) -> None:
    """Whoever hands over a run hands over its keys, too: its ledger may say anything, also what is still to erase."""
    root, home = run(work), work / "home"
    assert give(root) == ""
    home.mkdir()
    (home / "own.json").write_text("mine")
    names = [str(home / "own.json"), "../home/own.json", "adapters/../../home/own.json", "adapters", "", "adapters/\0"]
    for change in ({"erases": {"adapters": names, "files": names}}, {"branch": "../../home"}):
        place = work / f"run-{len(change)}-{next(iter(change))}"
        shutil.copytree(root, place)
        ledger, register = open_run_ledger(place)
        (removal,) = register.removals()
        said = {**removal.content, **change}
        facts = {name: said[name] for name in ("request", "guarantee", "before", "after")}
        with ledger.book.transaction(anchor=True) as writer:
            writer.erase([removal.seq], "a stranger edits the ledger")
            writer.add("removal", removal.key, said, facts=facts)
        ledger.close()
        for path in evidence(place):
            path.unlink()
        assert give(place) != ""
        assert (home / "own.json").read_text() == "mine" and [p.name for p in home.iterdir()] == ["own.json"]


TESTS: dict[str, Callable[[Path], None]] = {
    test.__name__: test
    for test in (
        missing_original,
        link,
        lost_afterwards,
        stuck_blocks_nobody,
        guarantee,
        incomplete,
        folders_of_others,
        erased_numbers,
        leads_outside,
        says_to_erase_elsewhere,
    )
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="oblivion-commit-") as folder:
        TESTS[sys.argv[1]](Path(folder))
