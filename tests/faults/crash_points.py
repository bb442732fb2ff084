"""Kills small runs at their durable steps and looks at what is left. Started by `test_crash_points`.

One process goes through the commands of `crash_scenario` once and notes every durable step. For a crash it forks a
child that gives one command in the state before it and is killed (SIGKILL) at one moment, and a second child that
goes on as a user would, and compares what is on disk with the uninterrupted pass.

To repeat one crash: ``python tests/faults/crash_points.py --points run#12/before``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import gc
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from crash_scenario import COMMANDS, configure, trained
from crash_state import blobs_of, difference, lost, orphans, state_of, unverified

import oblivion.federation.opened
from oblivion.config import RunConfig
from oblivion.errors import ConfigError, InputError
from oblivion.files import watch_steps
from oblivion.ledger.binding import bind, check_binding
from oblivion.ledger.book import Book
from oblivion.ledger.keys import Keys
from oblivion.ledger.store import StoredLedger
from oblivion.seeding import numpy_generator

ROOT = Path(__file__).resolve().parents[2]
NAMES = list(COMMANDS)


@dataclasses.dataclass(frozen=True)
class Step:
    """One durable step of the uninterrupted pass; `stack` says what is being called."""

    command: str
    index: int
    kind: str
    phase: str
    stack: str


@dataclasses.dataclass(frozen=True)
class Crash:
    """A moment to be killed at: before or after a step (`moment`), or a random time (`delay`, seconds).

    Attributes
    ----------
    kills : int
        How often: a second time while the command is given again.
    then : str
        How it goes on: "again" gives the command once more, "on" also all that follow, "skip" only those that follow.
    """

    command: str
    index: int = -1
    kind: str = ""
    phase: str = ""
    stack: str = ""
    moment: str = ""
    name: str = ""
    delay: float = 0.0
    kills: int = 1
    then: str = "again"


@dataclasses.dataclass(frozen=True)
class Reference:
    """The uninterrupted pass."""

    config: RunConfig
    work: Path
    steps: list[Step] = dataclasses.field(default_factory=list)
    states: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def before(self, command: str) -> Path:
        """The folder of the run as it was before a command; empty before the first."""
        return self.work / "before" / command


def where() -> list[str]:
    """The functions of this project that are being called, the innermost last."""
    names: list[str] = []
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT)) and "/tests/" not in path and "/.venv/" not in path:
            names.append(f"{Path(path).stem}.{frame.f_code.co_name}")
        frame = frame.f_back
    return [name for name in names[::-1] if name != "files.durable_step"]


def phase_of(command: str, stack: Sequence[str]) -> str:
    """Learning, removal, commit or erasure, from what is being called."""
    calls = {name.rpartition(".")[2] for name in stack}
    if calls & {"finish_erasure", "_erase_files"}:
        return "erasure"
    if command.startswith("commit"):
        return "commit"
    return "removal" if command.startswith("forget") or "answer" in calls else "learn"


def numbered(tell: Callable[[int, str, str], None]) -> Callable[[str, str], None]:
    """A watch of durable steps that is told their numbers, counted from 0."""
    begun, count = [], 0

    def watch(moment: str, kind: str) -> None:
        nonlocal count
        if moment == "before":
            begun.append(count)
            count += 1
        tell(begun[-1] if moment == "before" else begun.pop(), moment, kind)

    return watch


def draw_from(seed: str) -> None:
    """Let this process draw its secrets from a seed, so that its steps are those of the uninterrupted pass."""
    generator = numpy_generator(0, f"secrets of {seed}")
    secrets.token_bytes = lambda count=32: generator.bytes(count)
    secrets.token_hex = lambda count=32: generator.bytes(count).hex()


def go_through(config: RunConfig, work: Path) -> Reference:
    """Give every command once, note its steps and what came of it."""
    made = Reference(config=config, work=work)
    COMMANDS["run"](config, work / "imports" / "run", work)  # else most random times would fall into the first imports
    place = work / "first"
    place.mkdir()
    for command in NAMES:
        shutil.copytree(place, made.before(command))

        def note(index: int, moment: str, kind: str, command: str = command) -> None:
            if moment == "before":
                stack = where()
                made.steps.append(Step(command, index, kind, phase_of(command, stack), " > ".join(stack)))

        before = blobs_of(place / "run")
        draw_from(f"the pass, {command}")
        since = time.monotonic()
        watch_steps(numbered(note))
        COMMANDS[command](config, place / "run", work)
        watch_steps(None)
        made.seconds[command] = time.monotonic() - since
        wrong = orphans(place / "run", before - blobs_of(place / "run")) + unverified(place / "run")
        assert not wrong, f"{command}, uninterrupted: {wrong}"
        made.states[command] = state_of(place / "run")
    weights = "adapter_model.safetensors"
    learned, oracle, exact = (
        made.states["run"][f"{folder}/{weights}"]
        for folder in ("adapters/original", "adapters/oracle-R1", "forgets/R1/rollback/adapters")
    )
    assert exact == oracle != learned
    changed = difference(made.states["commit-last"], made.states["resume"])
    assert not changed, f"resuming a finished run changes it: {changed}"
    return made


def in_child(errors: Path, work: Callable[[], object], killed_after: float | None = None) -> int:
    """Do `work` in a forked process; return its exit status, negative for a signal."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writer, b"!")
            work()
            code = 0
        except BaseException:
            errors.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    if killed_after is not None:
        time.sleep(killed_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def until_killed(reference: Reference, crash: Crash, place: Path, seed: str) -> None:
    """Give the command, note what is acknowledged, and be killed at the moment that `crash` says."""
    notes = os.open(place.parent / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    original = Book.transaction

    @contextlib.contextmanager
    def transaction(self: Book, anchor: bool = False) -> Iterator[Any]:
        with original(self, anchor) as writer:
            first = writer.frontier.size + 1
            yield writer
        os.write(notes, "".join(f"{seq}\n" for seq in range(first, writer.frontier.size + 1)).encode())

    def kill(index: int, moment: str, kind: str) -> None:
        if index == crash.index and moment == crash.moment:
            os.write(notes, f"killed {kind} {' > '.join(where())}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    Book.transaction = transaction
    draw_from(seed)
    watch_steps(numbered(kill))
    COMMANDS[crash.command](reference.config, place / "run", reference.work)


def recover(reference: Reference, crash: Crash, place: Path, acknowledged: Sequence[int]) -> list[str]:
    """Go on as `crash.then` says; return what is wrong."""
    wrong: list[str] = []
    held: set[tuple[str, int, str]] = set()
    original = oblivion.federation.opened.open_ledger

    def opened(*arguments: Any, **options: Any) -> Any:
        oblivion.federation.opened.open_ledger = original
        store, register = original(*arguments, **options)
        wrong.extend(lost(store.book, store, acknowledged))
        held.update(stored_visits(store))
        return store, register

    oblivion.federation.opened.open_ledger = opened
    trained.clear()
    draw_from(f"going on after {crash.name}")
    following = NAMES[NAMES.index(crash.command) :]
    for command in {"again": following[:1], "on": following, "skip": following[1:]}[crash.then]:
        before = blobs_of(place / "run") | blobs_of(reference.before(command) / "run")
        give(command, reference, place / "run", strict=crash.then != "skip")
        found = orphans(place / "run", before - blobs_of(place / "run")) + unverified(place / "run")
        if crash.then != "skip":
            found += difference(reference.states[command], state_of(place / "run"))
        wrong += [f"after {command}: {line}" for line in found]
    return wrong + [f"trained again, though it was stored: {visit}" for visit in sorted(held & set(trained))]


def give(command: str, reference: Reference, root: Path, strict: bool) -> None:
    """Give a command; without `strict`, do first what it asks for, and pass over a trial that was never made."""
    try:
        COMMANDS[command](reference.config, root, reference.work)
    except InputError as error:
        if strict or not re.search("oblivion run|has no ledger|not a run directory", str(error)):
            raise
        COMMANDS["run"](reference.config, root, reference.work)
        COMMANDS[command](reference.config, root, reference.work)
    except ConfigError as error:
        if strict or not re.search("there is no request|has no trial", str(error)):
            raise


def stored_visits(store: StoredLedger) -> set[tuple[str, int, str]]:
    """(branch, round, client) of every contribution in the ledger."""
    names = {store.number(branch.name): branch.name for branch in store.branches()}
    return {(names[record.branch], record.round, record.client) for record in store.book.find("contribution")}


def note_the_copy(run: Path) -> None:
    """Note beside the keys of a copy that they serve its ledger: the pass, which is no copy, has no such step."""
    if (run / "ledger").is_dir():
        keys = Keys(run / "keys")
        here = check_binding(keys, run / "ledger")
        if here is not None:
            bind(keys, here)


def attempt(reference: Reference, crash: Crash, folder: Path) -> list[str]:
    """Crash and go on; return what is wrong."""
    place, errors, notes, result = (folder / name for name in ("place", "errors", "acknowledged", "result"))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(reference.before(crash.command), place)
    note_the_copy(place / "run")
    for kill in range(crash.kills):
        seed = f"{crash.name}, {kill}" if kill else f"the pass, {crash.command}"
        status = in_child(
            errors, lambda seed=seed: until_killed(reference, crash, place, seed), None if crash.moment else crash.delay
        )
        if status == 0 and not crash.moment:  # it ended before
            return attempt(reference, dataclasses.replace(crash, delay=0.8 * crash.delay), folder)
        if status != -signal.SIGKILL:
            return [f"was not killed: {errors.read_text() if status else 'it ended'}"]
    said = notes.read_text().splitlines() if notes.exists() else []
    if crash.moment and said[-1] != f"killed {crash.kind} {crash.stack}":
        return [f"was killed elsewhere: {said[-1]}"]
    acknowledged = [int(line) for line in said if line.isdigit()]
    status = in_child(errors, lambda: result.write_text(json.dumps(recover(reference, crash, place, acknowledged))))
    if status:
        return [f"could not go on: {errors.read_text() if status == 1 else status}"]
    wrong: list[str] = json.loads(result.read_text())
    return wrong


def every_crash(steps: Sequence[Step]) -> list[Crash]:
    """Before and after every step; some go on to the end, and some are made again and then not repeated."""
    crashes = []
    for step in steps:
        for moment in ("before", "after"):
            crash = Crash(**dataclasses.asdict(step), moment=moment, name=f"{step.command}#{step.index}/{moment}")
            crashes.append(dataclasses.replace(crash, then="on") if step.index % 80 == 0 else crash)
        if step.index % 40 == 20 or "_save_adapter" in step.stack:
            crashes.append(dataclasses.replace(crash, name=f"{crash.name}/skip", then="skip"))
    return crashes


def few_crashes(crashes: Sequence[Crash]) -> list[Crash]:
    """One of each kind of step in each phase, before and after it, from everywhere in the pass."""
    groups: dict[tuple[str, str, str], list[Crash]] = {}
    for crash in crashes:
        if crash.then != "skip":
            groups.setdefault((crash.phase, crash.kind, crash.moment), []).append(crash)
    return [group[len(group) * (number * 7 % 19) // 19] for number, group in enumerate(groups.values())]


def random_crashes(reference: Reference, count: int, seed: int) -> list[Crash]:
    """At times that are drawn evenly from the whole pass; every other is killed twice."""
    generator = numpy_generator(seed, "crashes at random times")
    total = sum(reference.seconds.values())
    crashes = []
    for number in range(count):
        at, command = generator.uniform(0, total), NAMES[0]
        while at > reference.seconds[command]:
            at, command = at - reference.seconds[command], NAMES[NAMES.index(command) + 1]
        crash = Crash(command, name=f"random-{number} ({command}, {at:.4f} s)", delay=at, kills=1 + number % 2)
        crashes.append(dataclasses.replace(crash, then="on" if number % 3 else "skip"))
    return crashes


def crash_all(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The pass, then the crashes, in a few workers."""
    since = time.monotonic()
    reference = go_through(configure(work), work)
    crashes = every_crash(reference.steps)
    chosen: list[Crash] = []
    for points in options.points:
        if points == "random":
            chosen += random_crashes(reference, options.random, seed=0)
        elif points in ("all", "few"):
            chosen += crashes if points == "all" else few_crashes(crashes)
        else:
            chosen += [crash for crash in crashes if fnmatch.fnmatch(crash.name, points)]
    gc.collect()
    gc.freeze()
    gc.disable()
    workers = []
    for number in range(options.workers):
        if (pid := os.fork()) == 0:
            with (work / f"results-{number}").open("w") as results:
                for crash in chosen[number :: options.workers]:
                    wrong = attempt(reference, crash, work / f"worker-{number}")
                    results.write(json.dumps({**dataclasses.asdict(crash), "wrong": wrong}) + "\n")
            os._exit(0)
        workers.append(pid)
    for pid in workers:
        assert os.waitpid(pid, 0)[1] == 0
    lines = [line for n in range(options.workers) for line in (work / f"results-{n}").read_text().splitlines()]
    return {
        "steps": [dataclasses.asdict(step) for step in reference.steps],
        "pass": reference.seconds,
        "crashes": [json.loads(line) for line in lines],
        "seconds": time.monotonic() - since,
    }


def main() -> None:
    """Make the crashes that are asked for; write what was found as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", nargs="+", default=["all"], help="all, few, random, or names such as 'run#3/*'")
    parser.add_argument("--random", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # SIGKILL needs no disk, and fsync is quicker there
    with tempfile.TemporaryDirectory(prefix="oblivion-crash-", dir=memory) as folder:
        json.dump(crash_all(Path(folder), options), sys.stdout)


if __name__ == "__main__":
    main()
