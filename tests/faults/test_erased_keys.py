"""What is erased is overwritten on the disk before its name goes: the place that it lay in holds it no more.

A second name of the file (a hard link), made beforehand, shows what its place on the disk holds afterwards.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from small_ledger import SETTINGS, ask, build, commit, learned, trial

from oblivion.errors import IntegrityError, OblivionError
from oblivion.files import erase, remove, remove_partial, rewrite, watch_steps
from oblivion.ledger.blobs import unseal
from oblivion.ledger.keys import Keys
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.register import EXCLUSIONS, NAMES, SIMULATED
from oblivion.ledger.store import blob_context, key_name


class Killed(BaseException):
    """The process ends here."""


def kill_at(number: int) -> list[str]:
    """Stop before the durable step with this number; the list names the steps that came."""
    steps: list[str] = []

    def watch(moment: str, kind: str) -> None:
        if moment == "before":
            steps.append(kind)
            if len(steps) > number:
                raise Killed

    watch_steps(watch)
    return steps


def second_names(root: Path, to: Path) -> dict[str, tuple[Path, bytes]]:
    """A hard link to every file of a folder, with what it holds."""
    found = {}
    for number, path in enumerate(sorted(path for path in root.rglob("*") if path.is_file())):
        link = to / str(number)
        to.mkdir(exist_ok=True)
        os.link(path, link)
        found[path.relative_to(root).as_posix()] = (link, path.read_bytes())
    return found


def test_a_commit_leaves_no_key_where_it_lay(tmp_path: Path) -> None:
    ledger, register = learned(tmp_path / "run")
    register.enrol_simulated(dict.fromkeys(register.clients()), {"eve": "Eve Ouest"})
    asked = ask(register, "eve")
    branch = trial(ledger, register, asked, "rollback", fork=1, last=4)
    register.move(asked.request.id, "verified")
    record = next(r for r in ledger.book.find("contribution") if r.client == "eve")
    sealed = ledger.blobs.get(str(record.blob))
    own = register.simulated_key("eve").private_bytes_raw().hex()
    before = second_names(tmp_path / "run/keys", tmp_path / "names")
    commit(ledger, register, asked, branch)

    gone = [name for name in before if not (tmp_path / "run/keys" / name).exists()]
    assert f"{key_name(record)}.key" in gone
    for name in gone:
        link, key = before[name]
        assert link.stat().st_size == len(key) and link.read_bytes() != key, name
    context = blob_context("contribution", record.branch, record.round, record.client)
    assert unseal(before[f"{key_name(record)}.key"][1], sealed, context), "the key that was there opened it"
    with pytest.raises(IntegrityError, match="cannot be opened"):
        unseal(before[f"{key_name(record)}.key"][0].read_bytes(), sealed, context)
    for name, text in ((SIMULATED, own), (NAMES, "Eve Ouest")):
        assert text in before[name][1].decode()
        assert text.encode() not in before[name][0].read_bytes(), name
        assert text not in (tmp_path / "run/keys" / name).read_text()
    ledger.close()


def test_a_key_that_was_overwritten_in_part_is_finished(tmp_path: Path) -> None:
    """At whatever step the process dies: what has no record any more is overwritten and goes at the next opening."""
    for number in range(40):
        root = tmp_path / str(number)
        ledger, register = learned(root)
        asked = ask(register, "eve")
        branch = trial(ledger, register, asked, "rollback", fork=1, last=4)
        register.move(asked.request.id, "verified")
        seqs = [r.seq for r in ledger.book.find("contribution") if r.client == "eve"]
        before = second_names(root / "keys/contributions/eve", tmp_path / f"names-{number}")
        try:
            kill_at(7 * number)  # every seventh; each one is in `test_crash_points`
            commit(ledger, register, asked, branch)
            ended = True
        except Killed:
            ended = False
        finally:
            watch_steps(None)
            ledger.close()
        ledger, register = open_ledger(root, SETTINGS)
        committed = bool(register.removals())
        assert ledger.book.find("contribution", client="eve") == [] or not committed
        for name, (link, key) in before.items():
            assert (link.read_bytes() != key) == committed, name
            assert (root / "keys/contributions/eve" / name).exists() != committed, name
        if not committed:
            held = [r for r in ledger.book.find("contribution") if r.client == "eve"]
            assert [r.seq for r in held] == seqs and all(ledger.open_blob(r) for r in held)
        ledger.close()
        if ended:
            break
    else:
        pytest.fail("the commit did not end")


@pytest.mark.parametrize("number", range(12))
def test_a_rewrite_that_was_interrupted_leaves_either_content_whole_and_no_old_one(tmp_path: Path, number: int) -> None:
    path = tmp_path / "keys" / "secrets.json"
    rewrite(path, b"the old secret")
    os.link(path, tmp_path / "place")
    try:
        kill_at(number)
        rewrite(path, b"the new one")
    except Killed:
        pass
    finally:
        watch_steps(None)
    remove_partial(tmp_path, ["keys"])
    assert [one.name for one in path.parent.iterdir()] == ["secrets.json"]
    if path.read_bytes() == b"the new one":
        # While the test's own second name exists a leftover is not told from the file itself, and is only removed.
        assert number < 8 or (tmp_path / "place").read_bytes() != b"the old secret"
    else:
        assert path.read_bytes() == (tmp_path / "place").read_bytes() == b"the old secret"


def test_what_an_interrupted_rewrite_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "secrets.json"
    rewrite(path, b"the old secret")
    steps = kill_at(10**6)
    rewrite(path, b"the newer secret")
    watch_steps(None)
    overwriting = len(steps) - 1 - steps[::-1].index("write")
    handle = os.open(path, os.O_RDONLY)  # its place on the disk, without a further name
    try:
        kill_at(overwriting)
        with pytest.raises(Killed):
            rewrite(path, b"the newest secret")
        watch_steps(None)
        assert os.pread(handle, 100, 0) == b"the newer secret"
        remove_partial(tmp_path, ["keys"])
        assert os.pread(handle, 100, 0) != b"the newer secret"
    finally:
        watch_steps(None)
        os.close(handle)
    assert path.read_bytes() == b"the newest secret"


def test_adapters_are_overwritten_and_links_are_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis").write_bytes(b"mine")
    folder = tmp_path / "adapters" / "original"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "weights").write_bytes(b"w" * 3_000_000)
    (folder / "link").symlink_to(outside / "thesis")
    (folder / "folder").symlink_to(outside)
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe")  # opening it would wait for ever
    os.link(folder / "inner" / "weights", tmp_path / "place")
    erase(folder)
    assert not folder.exists() and (outside / "thesis").read_bytes() == b"mine"
    left = (tmp_path / "place").read_bytes()
    assert len(left) == 3_000_000 and left.count(b"w") < 30_000
    assert b"w" * 8 not in left


@pytest.mark.parametrize("take_away", [remove, erase])
def test_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path, take_away: object) -> None:
    assert callable(take_away)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "weights").write_bytes(b"mine")
    for name, target in (("folder", "disk"), ("file", "disk/weights"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
        take_away(tmp_path / name)
        assert not os.path.lexists(tmp_path / name)
    assert (tmp_path / "disk" / "weights").read_bytes() == b"mine"


def test_an_error_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")

    def refuse(*_: object) -> None:
        raise OSError("cannot do that")  # an error without a number has no `strerror`

    monkeypatch.setattr("oblivion.files.os.pwrite", refuse)
    with pytest.raises(OblivionError, match="could not be overwritten: cannot do that"):
        erase(path)
    monkeypatch.setattr("oblivion.files.Path.unlink", refuse)
    with pytest.raises(OblivionError, match="could not be removed: cannot do that"):
        remove(path)


def test_keys_in_a_folder_that_is_a_link_are_overwritten_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "keys").symlink_to(tmp_path / "disk")
    keys = Keys(tmp_path / "keys")
    key = keys.make("states/1/1")
    os.link(tmp_path / "disk/states/1/1.key", tmp_path / "place")
    keys.destroy("states/1/1")
    assert not (tmp_path / "disk/states/1/1.key").exists()
    assert (tmp_path / "place").read_bytes() != key


def test_the_list_of_exclusions_is_rewritten_too(tmp_path: Path) -> None:
    world = build(tmp_path / "run")
    keys = Keys(world.root / "keys")
    os.link(world.root / "keys" / EXCLUSIONS, tmp_path / "place")
    listed = json.loads((world.root / "keys" / EXCLUSIONS).read_text())
    keys.write_json(EXCLUSIONS, [*listed, {"client": "ben", "samples": None}])
    assert b"eve" not in (tmp_path / "place").read_bytes()
