"""The ledger on the command line: what it prints, and what happens when another process, a disk, a key or a blob is in
the way: one clear error, nothing corrupted, and the same command works when the cause is gone."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import oblivion
from small_ledger import SETTINGS, World, build

from oblivion.config import load_config
from oblivion.files import watch_steps, write_atomically
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.requests import issue, to_json
from simulations import RunResult, simulate

USAGE, INPUT, CHANGED, REFUSED = 2, 3, 4, 5
MICRO = """
model.name = "{model}"
engine = "inline"
lora.rank = 4
lora.alpha = 8
federation.clients = 3
federation.rounds = 2
federation.clients-per-round = 3
federation.joins.client-2 = 2
train.local-epochs = 1
data.parameters.rows_per_client = 8
data.parameters.holdout_authors = 1
ledger.checkpoint-every = 1
forget.client = "client-2"
forget.methods = ["rollback"]
evaluate.limit = 2
evaluate.max-new-tokens = 2
simulation.hosts = 1
"""
OPEN = """
import sys
from pathlib import Path
from oblivion.config import LedgerConfig
from oblivion.ledger.opening import open_ledger
ledger, _ = open_ledger(Path(sys.argv[1]), LedgerConfig())
print("open", flush=True)
sys.stdin.read()
ledger.close()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="module")
def trained(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "micro.toml").write_text(MICRO.format(model=micro_model))
    return simulate(load_config(folder / "micro.toml"), folder / "run")


@pytest.fixture
def small(world: World, tmp_path: Path) -> Path:
    """A copy of a ledger without a model, to be changed."""
    return Path(shutil.copytree(world.root, tmp_path / "small"))


@pytest.fixture
def run(trained: RunResult, tmp_path: Path) -> Path:
    """A copy of a run whose client-2 asked to be forgotten, with one trial."""
    return Path(shutil.copytree(trained.directory, tmp_path / "run"))


@pytest.fixture
def trial(trained: RunResult) -> str:
    (entry,) = trained.metrics["requests"]
    return f"{entry['id']}/rollback"


def good(*arguments: object) -> str:
    code, out, err = oblivion(*arguments)
    assert code == 0, err
    return out


def fails(expected: int, words: str, *arguments: object) -> str:
    """Check that a command ends with a code, one error line with all the words, and nothing on standard output."""
    code, out, err = oblivion(*arguments)
    assert (code, out) == (expected, ""), (code, out, err)
    message = " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err and all(word in message for word in words.split("|")), (words, message)
    return message


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def size(root: Path) -> int:
    return int(json.loads(good("ledger", "show", root, "--json"))["checkpoint"]["size"])


# What is printed


def test_show(world: World, small: Path) -> None:
    held = json.loads(good("ledger", "show", small, "--json"))
    assert set(held) == {"federation", "head", "checkpoint", "branches", "requests", "exclusions", "bytes"}
    assert held["head"] == f"{world.request}/rollback" and held["exclusions"] == [{"client": "eve", "samples": None}]
    main, head, other = held["branches"]
    assert (main["name"], main["rounds"], main["contributions"]) == ("main", [1], 4), "the rest had eve"
    assert (head["name"], head["parent"], head["fork"], head["rounds"]) == (held["head"], "main", 1, [2, 3, 4])
    assert head["restorable"] == [0, 1, 2, 3, 4] and other["parent"] == held["head"]
    assert [(r["client"], r["samples"], r["state"]) for r in held["requests"]] == [
        ("eve", None, "committed"), ("ben", 2, "running"),
    ]  # fmt: skip
    assert held["bytes"] >= sum(len(data) for name, data in tree(small / "ledger").items() if name.startswith("blobs"))
    text = good("ledger", "show", small)
    for word in (
        held["federation"],
        held["head"],
        held["checkpoint"]["root"],
        "excluded for good: eve",
        "2 samples of ben",
    ):
        assert word in text
    assert f"branch {held['head']} from round 1 of main: rounds 2 to 4, 12 contributions" in text


def test_verify_says_that_all_is_well_and_changes_nothing(small: Path) -> None:
    before = tree(small)
    assert good("ledger", "verify", small).splitlines()[0] == "everything holds"
    done = json.loads(good("ledger", "verify", small, "--json"))
    assert set(done) == {"entries", "records", "blobs", "findings", "unchecked"}
    assert done["findings"] == done["unchecked"] == []
    assert (done["entries"], done["records"], done["blobs"]) == (127, 70, 28)
    assert tree(small) == before


def test_verify_prints_findings_and_ends_with_four(small: Path) -> None:
    blob = next((small / "ledger" / "blobs").glob("??/*"))
    blob.write_bytes(b"\x1b[2J")
    (small / "ledger" / "\x1b]0;x").write_bytes(b"")
    code, out, err = oblivion("ledger", "verify", small)
    assert code == CHANGED and err == "" and "everything holds" not in out
    assert f"blob {blob} was changed; restore the ledger from its backup" in out
    assert out.isascii() and all(character.isprintable() or character == "\n" for character in out)
    assert "127 entries, 70 records, 28 blobs" in out
    code, out, _ = oblivion("ledger", "verify", small, "--json")
    assert code == CHANGED and [set(finding) for finding in json.loads(out)["findings"]] == [{"where", "what"}] * 2


def test_export_writes_the_log_and_a_checkpoint(small: Path, tmp_path: Path) -> None:
    said = json.loads(good("ledger", "export", small))
    log, checkpoint = tmp_path / "far/log.jsonl", tmp_path / "far/checkpoint.json"
    assert json.loads(good("ledger", "export", small, "--out", log, "--checkpoint", checkpoint)) == said
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["seq"] for entry in entries] == list(range(1, said["size"] + 1))
    assert "eve" not in log.read_text() and json.loads(checkpoint.read_text()) == said
    good("ledger", "verify", small, "--checkpoint", checkpoint)
    fails(1, "could not be written", "ledger", "export", small, "--out", small)
    fails(1, "could not be written", "ledger", "export", small, "--checkpoint", small / "config.toml" / "below")


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_what_is_no_run(small: Path, tmp_path: Path, command: str) -> None:
    fails(INPUT, "nowhere has no ledger: there is no such folder", "ledger", command, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    fails(USAGE, "Missing argument", "ledger", command)
    shutil.rmtree(small / "ledger")
    fails(INPUT, "has no ledger", "ledger", command, small)
    (small / "ledger").mkdir()
    fails(INPUT, "a run of a version before the ledger must be run again", "ledger", command, small)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b"null", b"{}", b'{"size": 1}', b'{"size": true, "root": "", "signature": ""}',
     b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000],
)  # fmt: skip
def test_what_is_no_checkpoint(small: Path, tmp_path: Path, content: bytes) -> None:
    bad, none = tmp_path / "bad.json", tmp_path / "none.json"
    bad.write_bytes(content)
    message = fails(INPUT, "bad.json: |an exported checkpoint", "ledger", "verify", small, "--checkpoint", bad)
    assert len(message) < 600
    fails(INPUT, "none.json: |an exported checkpoint", "ledger", "verify", small, "--checkpoint", none)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[" * 100_000, b"7", b'{"version": 1}'])
def test_what_is_no_request(run: Path, tmp_path: Path, content: bytes | None) -> None:
    path, before = tmp_path / "request.json", size(run)
    if content is not None:
        path.write_bytes(content)
    fails(INPUT, "request", "forget", run, "--request", path, "--method", "exclude")
    assert size(run) == before


def test_a_request_that_expired_or_was_forged_is_not_taken_in(run: Path, tmp_path: Path) -> None:
    ledger, register = open_ledger(run, load_config(run / "config.toml").ledger)
    now, key = ledger.book.now(), register.simulated_key("client-1")
    genuine = to_json(issue("client-1", None, key, register.federation, now))
    old = to_json(issue("client-1", None, key, register.federation, now.replace(year=now.year - 2)))
    foreign = to_json(issue("client-1", None, register.simulated_key("client-0"), register.federation, now))
    ledger.close()
    before, path = size(run), tmp_path / "request.json"
    asking, altered = ("forget", run, "--request", path, "--method", "exclude"), genuine | {"nonce": "0" * 32}
    for value, words in ((old, "expired"), (foreign, "signature is not that"), (altered, "id is")):
        path.write_text(json.dumps(value))
        fails(CHANGED, f"the forget request is refused|{words}", *asking)
    path.write_text(json.dumps(genuine))
    good(*asking, "--plan")
    assert size(run) == before, "a plan takes nothing in"


def test_what_cannot_be_committed(run: Path, trial: str) -> None:
    request = trial.partition("/")[0]
    for wrong, words in (
        ("req-0", f"there is no request 'req-0'|{request}"),
        ("", "there is no request ''"),
        (request, f"{request} has no trial ''|rollback|give {request}/TRIAL"),
        (f"{request}/rollbak", "has no trial 'rollbak' at the present head; did you mean 'rollback'"),
        (f"{request}/oracle", "has no trial 'oracle'"),
        (f"{request}/../{trial}", "has no trial"),
        (f"{trial}/..", "has no trial"),
    ):
        before = tree(run)
        fails(USAGE, words, "commit", run, wrong)
        after = tree(run)
        assert {n for n in before | after if before.get(n) != after.get(n)} <= {
            "ledger/lock",
            "keys/lock",
            "keys/ledger.json",
            "events.jsonl",
        }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("commit", "RUN", "TRIAL", "--plan"), "No such option|--plan"),
        (("commit", "RUN", "TRIAL", "--client", "client-1"), "No such option|--client"),
        (("refuse", "RUN", "REQUEST"), "Missing option '--ground'"),
        (("refuse", "RUN", "REQUEST", "--ground", "a law", "--plan"), "No such option|--plan"),
        (("forget", "RUN", "--client", "client-1", "--method", "exclude", "--ground", "a law"), "--ground"),
        (("forget", "RUN", "--commit", "TRIAL"), "No such option|--commit"),
        (
            ("forget", "RUN", "--request", "x.json", "--method", "exclude", "--samples", "x"),
            "--samples does not go with --request",
        ),
    ],
)
def test_what_would_not_be_heeded_is_refused(run: Path, trial: str, arguments: tuple[str, ...], words: str) -> None:
    places = {"RUN": str(run), "TRIAL": trial, "REQUEST": trial.partition("/")[0]}
    before = tree(run)
    fails(USAGE, words, *(places.get(word, word) for word in arguments))
    assert tree(run) == before


def test_a_log_and_a_checkpoint_are_two_files(small: Path, tmp_path: Path) -> None:
    both = tmp_path / "kept.json"
    fails(USAGE, "give them two names", "ledger", "export", small, "--out", both, "--checkpoint", both)
    assert not both.exists()


def test_a_request_that_is_open_again_says_what_to_do(run: Path, trial: str) -> None:
    (run / "ids.txt").write_text("\n".join(row["plain"] for row in json.loads(
        good("ids", run, "--client", "client-1", "--json"))[:2]))  # fmt: skip
    asked = ("forget", run, "--client", "client-1", "--samples", run / "ids.txt", "--method", "exclude")
    planned = good(*asked, "--plan")
    assert "the client's keys of rounds 1 to 2 (the client and its other requests stay)" in planned
    assert "and its other requests" in good("forget", run, "--client", "client-1", "--method", "exclude", "--plan")
    good(*asked)
    good("commit", run, trial)
    closed, still = [line for line in good("ledger", "show", run).splitlines() if line.startswith("req-")]
    assert closed.endswith("committed")
    assert "received (another removal was committed since; try one for it again), due " in still


# Another process


@contextlib.contextmanager
def holding(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the ledger open until its standard input is closed."""
    command = [sys.executable, "-c", OPEN, str(root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)


def test_a_second_process_is_refused_and_told_who_has_it(run: Path) -> None:
    with holding(run) as other:
        words = f"{run / 'ledger'} is in use by process {other.pid}; wait until it has ended"
        for command in ("verify", "show", "export"):
            fails(1, words, "ledger", command, run)
        fails(1, words, "run", "--resume", "--out", run)
        other.send_signal(signal.SIGKILL)  # it never says that it has left
        other.wait(60)
        assert good("ledger", "verify", run).startswith("everything holds")
    good("run", "--resume", "--out", run)


@pytest.mark.parametrize("what", ["plan", "refuse", "commit", "forget"])
def test_forget_waits_for_its_turn(run: Path, trial: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: dict[str, list[str]] = {
        "plan": ["forget", str(run), "--client", "client-1", "--method", "exclude", "--plan"],
        "refuse": ["refuse", str(run), trial.partition("/")[0], "--ground", "a law"],
        "commit": ["commit", str(run), trial],
        "forget": ["forget", str(run), "--client", "client-1", "--method", "exclude"],
    }
    slept = []
    with holding(run) as other, monkeypatch.context() as patch:

        def sleep(seconds: float) -> None:
            patch.undo()  # the time is everybody's
            slept.append(other.poll())
            release(other)

        patch.setattr("oblivion.ledger.schema.time.sleep", sleep)
        good(*commands[what])
    assert slept and slept[0] is None, "the other one was still there"
    if what == "forget":
        assert f"waiting: {run / 'ledger'} is in use by process {other.pid}" in (run / "events.jsonl").read_text()
    assert good("ledger", "verify", run).startswith("everything holds")


# Keys, blobs, versions


def put_away(path: Path, tmp_path: Path, instead: bytes | None = None) -> Callable[[], None]:
    """Take a file or folder away, or put something else there; return what puts it back."""
    kept = tmp_path / "kept"
    shutil.move(path, kept)
    if instead is not None:
        path.write_bytes(instead)

    def back() -> None:
        path.unlink(missing_ok=True)
        shutil.move(kept, path)

    return back


def a_contribution(root: Path, column: str) -> Any:
    connection = sqlite3.connect(root / "ledger" / "ledger.db")
    query = f"SELECT {column} FROM records WHERE kind = 'contribution' AND key LIKE 'req-%' ORDER BY seq LIMIT 1"
    try:
        return connection.execute(query).fetchone()[0]
    finally:
        connection.close()


CAUSES = [
    # what is taken away or changed, by what, the words of the error, whether opening the ledger sees it already
    ("blob", None, "is missing; restore the ledger from its backup", False),
    ("blob", b"short", "was changed; restore the ledger from its backup", False),
    ("contribution key", None, "is missing: what it sealed cannot be read; restore keys/ from its backup", False),
    ("contribution key", b"k" * 32, "cannot be opened: its key in keys/ is not the one it was sealed with", False),
    ("contribution key", b"k", "is not a key of 32 bytes; restore keys/ from its backup", False),
    ("keys", None, "keys is missing|restore keys/ from its backup", True),
    ("log.key", None, "log.key is missing|restore keys/ from its backup", True),
    ("log.key", b"k" * 32, "its last entry was changed, or keys/ is another run's", True),
    ("signing.key", None, "signing.key is missing|restore keys/ from its backup", True),
    ("signing.key", b"k" * 32, "is not signed by this run's key", True),
    ("checkpoint.json", None, "checkpoint.json is missing|restore keys/ from its backup", True),
    ("checkpoint.json", b"{", "checkpoint.json: not JSON|restore keys/ from its backup", True),
    ("ledger.db", b"", "is not a ledger|restore it from its backup", True),
    ("ledger.db", b"x" * 8192, "is not a ledger: file is not a database; restore it from its backup", True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "instead", "words", "at_once"), CAUSES, ids=[f"{c[0]}-{c[1] and len(c[1])}" for c in CAUSES]
)
def test_a_missing_or_wrong_part(
    run: Path, trial: str, tmp_path: Path, what: str, instead: bytes | None, words: str, at_once: bool
) -> None:
    blob = a_contribution(run, "blob")
    paths = {
        "blob": run / "ledger" / "blobs" / blob[:2] / blob,
        "contribution key": run
        / f"keys/contributions/{a_contribution(run, 'client')}/{a_contribution(run, 'branch')}.key",
        "keys": run / "keys",
        "ledger.db": run / "ledger" / "ledger.db",
    }
    path, before = paths.get(what, run / "keys" / what), tree(run)
    back = put_away(path, tmp_path, instead)
    fails(CHANGED, words, "commit", run, trial)
    for command in ("show", "export", "verify"):
        code, out, err = oblivion("ledger", command, run)
        assert code == (CHANGED if at_once or command == "verify" else 0), (command, out, err)
        assert "Traceback" not in err
    back()
    after = tree(run)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"events.jsonl", "ledger/lock", "keys/checkpoint.json", "keys/lock", "keys/ledger.json"}, (
        "nothing was made in the place of what is missing"
    )
    assert json.loads(good("commit", run, trial, "--json"))["committed"] == trial
    assert good("ledger", "verify", run).startswith("everything holds")


def test_a_ledger_of_another_version_is_refused_with_the_way_out(small: Path) -> None:
    for version in ("r0002", "r9999", "\x1b[2J"):
        connection = sqlite3.connect(small / "ledger" / "ledger.db", isolation_level=None)
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
        connection.close()
        for command in ("show", "verify", "export"):
            words = f"has the format {version!a}, this version reads 'r0001'; use the version of oblivion that"
            fails(CHANGED, words, "ledger", command, small)
    connection = sqlite3.connect(small / "ledger" / "ledger.db", isolation_level=None)
    connection.execute("UPDATE alembic_version SET version_num = 'r0001'")
    connection.close()
    assert good("ledger", "verify", small).startswith("everything holds")


# A disk that cannot be written


@pytest.mark.skipif(os.getuid() != 0, reason="gives up root's rights to be refused")
def test_a_ledger_that_may_not_be_written(world: World) -> None:
    """By a user who may read all of it and write none of it: it can be looked at, and nothing of it changes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        root = Path(shutil.copytree(world.root, Path(folder) / "run"))
        os.chmod(folder, 0o755)
        (root / "keys" / "lock").unlink(missing_ok=True)
        (root / "ledger" / "lock").unlink()
        for path in [root, *root.rglob("*")]:
            os.chmod(path, 0o555 if path.is_dir() else 0o444)
        before = tree(root)
        for command, words in (("verify", "everything holds"), ("show", "federation "), ("export", '{"size": ')):
            code, out, err = as_nobody("ledger", command, root)
            assert (code, err) == (0, "") and out.startswith(words), (out, err)
        assert tree(root) == before
        log = root / "ledger" / "ledger.db-wal"
        log.write_bytes(b"what a process that was killed left")
        log.chmod(0o444)
        for command in ("verify", "show", "export"):
            code, out, err = as_nobody("ledger", command, root)
            assert (code, out) == (1, "") and "copy the run to where you can write" in err, (out, err)


def as_nobody(*arguments: object) -> tuple[int, str, str]:
    """Run a command in a child process without root's rights."""
    inside, outside = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(inside)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(outside, json.dumps(oblivion(*arguments)).encode())
        finally:
            os._exit(0)
    os.close(outside)
    with os.fdopen(inside, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    code, out, err = json.loads(said)
    return code, out, err


def test_a_database_that_may_not_be_written(run: Path, trial: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder can be written, the database only read: SQLite says so itself."""
    import oblivion.ledger.book as book

    connect = book.schema.connect

    def reading(path: Path) -> Any:
        engine = connect(path)
        with engine.connect() as connection:
            connection.connection.driver_connection.execute("PRAGMA query_only=ON")  # type: ignore[union-attr]
        return engine

    request = trial.partition("/")[0]
    with monkeypatch.context() as patch:
        patch.setattr(book.schema, "connect", reading)
        for command in (["commit", run, trial], ["refuse", run, request, "--ground", "a law"]):
            fails(
                1,
                "ledger.db could not be written|attempt to write a readonly database|make it writable",
                *command,
            )
    assert good("ledger", "verify", run).startswith("everything holds")
    assert json.loads(good("ledger", "show", run, "--json"))["requests"][0]["state"] == "verified"
    good("commit", run, trial)


def quick_report(roots: list[Path], path: Path) -> None:
    write_atomically(path, b"<html>a report</html>")


class Disk:
    """Counts durable steps, and is full from one of them on."""

    def __init__(self, full_at: tuple[str, int] | None = None) -> None:
        self.seen: Counter[str] = Counter()
        self.full_at = full_at
        self.full = False

    def __call__(self, when: str, step: str) -> None:
        if when == "before":
            self.seen[step] += 1
            self.full = self.full or (step, self.seen[step]) == self.full_at
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def disk(full_at: tuple[str, int] | None = None) -> Iterator[Disk]:
    made = Disk(full_at)
    watch_steps(made)
    try:
        yield made
    finally:
        watch_steps(None)


def outcome(root: Path) -> dict[str, Any]:
    """What a commit made, without times and random bits."""
    connection = sqlite3.connect(root / "ledger" / "ledger.db")
    rows = connection.execute("SELECT seq, kind, key, branch, round, client FROM records ORDER BY seq").fetchall()
    log = [json.loads(entry) for (entry,) in connection.execute("SELECT entry FROM log ORDER BY seq")]
    connection.close()
    (evidence,) = root.glob("forgets/*/*/evidence.json")
    predicate = json.loads(base64.b64decode(json.loads(evidence.read_text())["payload"]))["predicate"]
    metrics = json.loads((root / "metrics.json").read_text())
    for entry in metrics["requests"]:
        entry.pop("committed_at", None)
    files = [name for name in tree(root) if not name.startswith(("ledger/ledger.db-", "ledger/blobs"))]
    adapters = {
        name: hashlib.sha256(data).hexdigest() for name, data in tree(root).items() if name.endswith(".safetensors")
    }
    return {
        "records": rows,
        "log": [(entry["kind"], entry.get("why"), entry.get("seqs")) for entry in log],
        "erased": predicate["erased"],
        "plan": predicate["plan"],
        "metrics": metrics,
        "manifest": (root / "manifest.json").read_text(),
        "files": files,
        "blobs": len(list((root / "ledger" / "blobs").glob("??/*"))),
        "adapters": adapters,
    }


@pytest.fixture(scope="module")
def uninterrupted(trained: RunResult, tmp_path_factory: pytest.TempPathFactory) -> tuple[Counter[str], dict[str, Any]]:
    """The durable steps of a commit, and what it makes."""
    root = Path(shutil.copytree(trained.directory, tmp_path_factory.mktemp("whole") / "run"))
    (entry,) = trained.metrics["requests"]
    with pytest.MonkeyPatch.context() as patch, disk() as steps:
        patch.setattr("oblivion.federation.commits.write_report", quick_report)
        good("commit", root, f"{entry['id']}/rollback")
    assert set(steps.seen) == {"write", "fsync", "rename", "unlink", "commit", "checkpoint"}
    return steps.seen, outcome(root)


def check_full_at(run: Path, trial: str, step: str, number: int, expected: dict[str, Any]) -> None:
    """Let the disk be full from one step on; then give the same command again with space."""
    with disk((step, number)) as steps:
        code, out, err = oblivion("commit", run, trial)
    assert steps.full and (code, out) == (1, ""), (step, number, err)
    assert "No space left on device" in err and "Traceback" not in err and err.count("error: ") == 1, err
    assert "free some space" in err or "make it writable" in err, err
    done = list(run.glob("forgets/*/*/evidence.json"))
    code, _, err = oblivion("commit", run, trial)
    # Only where all was done but the last fsync, it says so.
    assert code == 0 or (done and code == REFUSED and "is committed already" in err), (step, number, err)
    assert outcome(run) == expected, (step, number)
    code, out, _ = oblivion("ledger", "verify", run)
    assert code == 0, (step, number, out)


@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("step", ["write", "fsync", "rename", "unlink", "commit", "checkpoint"])
def test_a_disk_that_is_full_during_a_commit(
    run: Path,
    trial: str,
    uninterrupted: tuple[Counter[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    which: str,
) -> None:
    monkeypatch.setattr("oblivion.federation.commits.write_report", quick_report)
    counts, expected = uninterrupted
    if which == "last" and counts[step] == 1:
        pytest.skip("there is one only")
    check_full_at(run, trial, step, 1 if which == "first" else counts[step], expected)


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_step_of_a_commit(
    trained: RunResult,
    trial: str,
    uninterrupted: tuple[Counter[str], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("oblivion.federation.commits.write_report", quick_report)
    counts, expected = uninterrupted
    for step, count in sorted(counts.items()):
        for number in range(1, count + 1):
            root = Path(shutil.copytree(trained.directory, tmp_path / "run"))
            check_full_at(root, trial, step, number, expected)
            shutil.rmtree(root)


def test_the_report_cannot_be_written(run: Path, trial: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last thing before the evidence; the same command then writes both."""

    def full(roots: list[Path], path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("oblivion.federation.commits.write_report", full)
        fails(1, "report.html: No space left on device", "commit", run, trial)
    (run / "report.html").unlink()
    answer = json.loads(good("commit", run, trial, "--json"))
    assert Path(answer["report"]).is_file() and Path(answer["evidence"]).is_file()


def test_a_wrong_command_takes_nothing_in(small: Path) -> None:
    """A ledger that is opened and left again is the ledger that it was."""
    before = size(small)
    for _ in range(3):
        open_ledger(small, SETTINGS)[0].close()
    assert size(small) == before and good("ledger", "verify", small).startswith("everything holds")


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of so many bytes at a folder; the value makes it larger."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield lambda more: subprocess.run(["mount", "-o", f"remount,size={more}", str(folder)], check=True)  # type: ignore[misc]
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_file_system_that_is_really_full(
    trained: RunResult,
    trial: str,
    uninterrupted: tuple[Counter[str], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without any stand-in: SQLite's own errors, its log and its index included."""
    monkeypatch.setattr("oblivion.federation.commits.write_report", quick_report)
    folder, ended = tmp_path / "disk", []
    with small_disk(folder, 64 * 2**20) as resize:
        root = Path(shutil.copytree(trained.directory, folder / "run"))
        resize(shutil.disk_usage(folder).used + 256 * 1024)
        fails(1, "free some space. Nothing was changed", "commit", root, trial)
    folder.rmdir()
    # The disk may still fill up in between.
    monkeypatch.setattr("oblivion.federation.commits._check_writable", lambda *_: None)
    for free in (0, 16, 32, 40, 48, 56, 64, 72, 80, 88, 96, 128, 1024):
        with small_disk(folder, 64 * 2**20) as resize:
            root = Path(shutil.copytree(trained.directory, folder / "run"))
            used = shutil.disk_usage(folder).used
            resize(used + free * 1024)
            code, out, err = oblivion("commit", root, trial)
            ended.append(code)
            if code:
                assert (code, out) == (1, "") and "Traceback" not in err, (free, err)
                assert "No space left on device" in err or "is full" in err or "disk I/O error" in err, (free, err)
            resize(64 * 2**20)
            if code:
                done = list(root.glob("forgets/*/*/evidence.json"))
                code, _, err = oblivion("commit", root, trial)
                assert code == 0 or (done and code == REFUSED), (free, err)
            assert outcome(root) == uninterrupted[1], free
            assert good("ledger", "verify", root).startswith("everything holds")
        folder.rmdir()
    assert ended[0] == 1 and ended[-1] == 0
