"""A clock that was ahead is set right and revives nothing; a client enrols its own key; keys serve one ledger."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from command_line import oblivion
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from small_ledger import CLIENTS, SETTINGS, START, Clock, ask, build, commit, learned, trial

from oblivion.errors import ConfigError, InputError, IntegrityError, OblivionError
from oblivion.ledger.binding import BINDING
from oblivion.ledger.clock import look, set_back
from oblivion.ledger.curve import key_fault
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.register import SIMULATED, Register
from oblivion.ledger.requests import due_at, issue
from oblivion.ledger.schema import Lock
from oblivion.ledger.store import StoredLedger
from oblivion.ledger.verify import verify_ledger

P = 2**255 - 19
EIGHT = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
LOW_ORDER = [
    (number | sign << 255).to_bytes(32, "little")
    for number in (0, 1, P - 1, P, P + 1, EIGHT, P - EIGHT)
    for sign in (0, 1)
]
"""The eight points of low order, with every second spelling of them."""


# The clock


def opened(root: Path, at: datetime) -> tuple[StoredLedger, Register]:
    return open_ledger(root, SETTINGS, now=Clock(at))


@pytest.fixture
def ahead(tmp_path: Path) -> tuple[Path, str]:
    """A run that was opened once by a machine whose clock was 400 days ahead; a request was received then."""
    root = tmp_path / "run"
    ledger, _ = learned(root)
    ledger.close()
    ledger, register = opened(root, START + timedelta(days=400))
    asked = ask(register, "ben")
    ledger.close()
    return root, asked.request.id


def test_a_request_is_not_taken_in_at_a_wrong_time(ahead: tuple[Path, str]) -> None:
    root, _ = ahead
    now = START + timedelta(hours=1)
    ledger, register = opened(root, now)
    way_out = rf"oblivion ledger clock {root} --set-back"
    for days in (30, 366):
        request = issue("ana", None, register.simulated_key("ana"), register.federation, now, valid_days=days)
        with pytest.raises(IntegrityError, match=rf"expired.*{way_out}"):
            register.receive(request)
    ledger.close()


def test_a_clock_that_was_ahead_is_set_right(ahead: tuple[Path, str]) -> None:
    root, known = ahead
    now = START + timedelta(hours=1)
    ledger, register = opened(root, now)
    entries, before = ledger.book.entries(), look(ledger.book)
    assert before.wrong and before.to_come == 2 and before.repairs == ()
    nonce = register.asked(known).request
    after = set_back(ledger.book, register)
    assert not after.wrong and after.to_come == 0 and after.repairs == ((before.ledger, after.ledger),)
    assert after.ledger.startswith("2026-03-01T13:00")
    assert ledger.book.entries()[: len(entries)] == entries, "the log keeps what it said"

    fresh = register.receive(issue("ana", None, register.simulated_key("ana"), register.federation, ledger.book.now()))
    assert fresh.received_at.startswith("2026-03-01") and fresh.due_at.startswith("2026-04-01")
    moved = register.asked(known)
    last = max(time for time in (json.loads(entry)["time"] for entry in entries) if time < "2027")
    assert moved.received_at == last and moved.due_at.startswith("2026-04-01")
    assert register.receive(nonce) == moved, "its nonce stays used"
    with pytest.raises(ConfigError, match="is not ahead"):
        set_back(ledger.book, register)
    ledger.close()
    ledger, register = opened(root, now + timedelta(minutes=5))
    assert ledger.book.ahead() is None and ledger.book.now() < now + timedelta(hours=1)
    ledger.close()
    assert verify_ledger(root).findings == []


def test_a_repair_revives_no_request(tmp_path: Path) -> None:
    root = tmp_path / "run"
    ledger, register = learned(root)
    old = issue("ana", None, register.simulated_key("ana"), register.federation, START, valid_days=1)
    used = ask(register, "ben").request
    ledger.close()
    ledger, register = opened(root, START + timedelta(days=400))
    register.move(used.id, "refused", "a ground")
    ledger.close()
    ledger, register = opened(root, START + timedelta(days=3))
    set_back(ledger.book, register)
    with pytest.raises(IntegrityError, match="expired"):
        register.receive(old)
    assert register.receive(used).state == "refused"
    ledger.close()
    ledger, register = opened(root, START + timedelta(days=2, hours=12))  # backwards within a day
    with pytest.raises(IntegrityError, match="expired"):
        register.receive(old)
    ledger.close()


def test_the_time_is_not_set_back_before_the_ledger_began(ahead: tuple[Path, str]) -> None:
    root, _ = ahead
    ledger, register = opened(root, START - timedelta(days=2))
    with pytest.raises(ConfigError, match=r"was begun at 2026-03-01.*set the clock right"):
        set_back(ledger.book, register)
    ledger.close()


def test_nothing_is_committed_at_a_wrong_time(tmp_path: Path) -> None:
    root = tmp_path / "run"
    ledger, register = learned(root, Clock(START + timedelta(days=400)))
    asked = ask(register, "eve")
    branch = trial(ledger, register, asked, "rollback", fork=1, last=4)
    ledger.close()
    ledger, register = opened(root, START)
    entries = ledger.book.entries()
    with pytest.raises(OblivionError, match="nothing was committed: the ledger's last entry is of 2027"):
        commit(ledger, register, asked, branch)
    assert ledger.book.entries() == entries
    ledger.close()


def test_the_command(tmp_path: Path) -> None:
    root = build(tmp_path / "run").root
    code, out, _ = oblivion("ledger", "clock", root)
    assert code == 0 and len(out.splitlines()) == 1 and "the ledger's last entry: 2026-03-01T" in out
    ledger, register = opened(root, START + timedelta(days=10**5))
    register.move(next(a for a in register.all_asked() if a.open).request.id, "planned")
    ledger.close()
    code, out, _ = oblivion("ledger", "clock", root)
    assert code == 0 and "1 entry dated later than now" in out and "--set-back" in out
    code, out, _ = oblivion("ledger", "clock", root, "--set-back")
    assert code == 0 and "set back from 2299-" in out and "later than now" not in out
    assert oblivion("ledger", "clock", root, "--set-back")[0] == 2
    told = json.loads(oblivion("ledger", "clock", root, "--json")[1])
    assert not told["wrong"] and len(told["repairs"]) == 1


# Keys of clients


@pytest.mark.parametrize("key", LOW_ORDER, ids=lambda key: key.hex()[:6] + key.hex()[-4:])
def test_points_of_low_order_are_refused(key: bytes) -> None:
    assert key_fault(key) in (
        "it is a point of low order, for which anybody can sign",
        "it is a second spelling of a point",
        "it is no point of the curve",  # x = 0 has no sign
    )
    if int.from_bytes(key, "little") % 2**255 in (EIGHT, P - EIGHT):
        assert "low order" in str(key_fault(key))


def test_honest_keys_are_taken_and_others_refused() -> None:
    keys = [Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)).public_key().public_bytes_raw() for n in range(20)]
    assert [key for key in keys if key_fault(key)] == []
    number = int.from_bytes(key := keys[0], "little")
    faults = [key_fault((number ^ 1 << bit).to_bytes(32, "little")) for bit in range(250)]
    assert faults.count("it is no point of the curve") > 100
    assert faults.count("it is no multiple of the base point, as every public key is") > 80
    assert faults.count(None) < 50, "one in sixteen is the key of somebody"
    for wrong in (b"", key[:31], key + b"0", b"\xff" * 32, (2).to_bytes(32, "little")):
        assert key_fault(wrong)


def forms(public: Ed25519PublicKey) -> list[bytes]:
    raw = public.public_bytes_raw()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return [raw, raw.hex().encode(), raw.hex().upper().encode() + b"\n", pem]


@pytest.mark.parametrize("form", range(4))
def test_a_client_signs_with_its_own_key_alone(tmp_path: Path, form: int) -> None:
    root = tmp_path / "run"
    ledger, register = learned(root)
    simulated = register.simulated_key("ana")
    ledger.close()
    own = Ed25519PrivateKey.generate()
    (tmp_path / "key").write_bytes(forms(own.public_key())[form])
    for _ in range(2):
        code, out, error = oblivion("ledger", "enrol", root, "--client", "ana", "--key", tmp_path / "key")
        assert code == 0 and "ana is enrolled with its own key" in out, error
    assert "ana" not in json.loads((root / "keys" / SIMULATED).read_text())
    ledger, register = opened(root, datetime.now(START.tzinfo))
    register.enrol_simulated(dict.fromkeys(CLIENTS))
    with pytest.raises(ConfigError, match="'ana' has no key here"):
        register.simulated_key("ana")
    with pytest.raises(IntegrityError, match="signature is not that of client 'ana'"):
        register.receive(issue("ana", None, simulated, register.federation, register.book.now()))
    taken = register.receive(issue("ana", None, own, register.federation, register.book.now()))
    assert taken.due_at[:10] == due_at(register.book.now()).isoformat()[:10]
    ledger.close()
    assert verify_ledger(root).findings == []


def test_what_is_not_enrolled(tmp_path: Path) -> None:
    root = build(tmp_path / "run").root
    own, other = (Ed25519PrivateKey.generate() for _ in range(2))
    public = own.public_key().public_bytes_raw()
    private = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    before = (root / "keys" / SIMULATED).read_text()

    def refused(client: str, data: bytes, code: int, words: str) -> None:
        (tmp_path / "key").write_bytes(data)
        found, out, error = oblivion("ledger", "enrol", root, "--client", client, "--key", tmp_path / "key")
        assert (found, out) == (code, "") and words in " ".join(error.split()), error

    refused("eve", public, 2, "'eve' was forgotten, and can be enrolled no more")
    refused("nobody", public, 2, "the run has no client 'nobody'")
    for client in ("../x", "", "Ana", "ana\n"):
        refused(client, public, 2, "the run has no client")
    refused("ana", private, 3, "a private key")
    for data in (public[:31], b"", b"x" * 100, public.hex().encode()[:-1], b"0" * 5000):
        refused("ana", data, 3, "expected an Ed25519 public key")
    for data in LOW_ORDER:
        refused("ana", data, 3, "the key for 'ana' is not taken: it is")
    assert (root / "keys" / SIMULATED).read_text() == before
    (tmp_path / "key").write_bytes(public)
    assert oblivion("ledger", "enrol", root, "--client", "ana", "--key", tmp_path / "key")[0] == 0
    refused("ana", other.public_key().public_bytes_raw(), 2, "'ana' is enrolled with another key")
    refused("ben", public, 3, "is that of 'ana'; every client has its own")
    ledger, register = open_ledger(root, SETTINGS)
    for client in ("../x", "", "A"):
        with pytest.raises(ConfigError, match="no client id"):
            register.enrol({client: other.public_key().public_bytes_raw()})
    for key in (public[:31], LOW_ORDER[0]):
        with pytest.raises(InputError, match="not taken"):
            register.enrol({"new": key})
    ledger.close()


# Keys and the ledger that they serve


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A run whose keys/ is a link to a folder on another disk."""
    root = build(tmp_path / "run").root
    shutil.move(root / "keys", tmp_path / "disk")
    (root / "keys").symlink_to(tmp_path / "disk")
    open_ledger(root, SETTINGS)[0].close()
    return root


def test_a_copy_does_not_use_the_keys_of_the_original(elsewhere: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(elsewhere, tmp_path / "copy", symlinks=True))
    before = files(tmp_path / "disk")
    with pytest.raises(OblivionError, match=rf"whose keys serve the ledger {elsewhere}/ledger; give this run a copy"):
        open_ledger(copy, SETTINGS)
    assert {path: data for path, data in files(tmp_path / "disk").items() if path.name != "lock"} == {
        path: data for path, data in before.items() if path.name != "lock"
    }
    (copy / "keys").unlink()
    shutil.copytree(tmp_path / "disk", copy / "keys")
    ledger, register = open_ledger(copy, SETTINGS)
    asked = next(asked for asked in register.all_asked() if asked.open)
    commit(ledger, register, asked, next(b.name for b in ledger.branches() if b.name.startswith(asked.request.id)))
    ledger.close()
    open_ledger(elsewhere, SETTINGS)[0].close()
    assert verify_ledger(elsewhere).findings == []


def test_a_run_that_was_moved_or_copied_whole_opens(elsewhere: Path, tmp_path: Path) -> None:
    moved = elsewhere.rename(tmp_path / "moved")
    open_ledger(moved, SETTINGS)[0].close()
    whole = Path(shutil.copytree(moved, tmp_path / "whole"))  # with the keys themselves
    open_ledger(whole, SETTINGS)[0].close()
    assert json.loads((whole / "keys" / BINDING).read_text())["folder"] == str(whole / "ledger")
    again = Path(shutil.copytree(whole, tmp_path / "restored", ignore=shutil.ignore_patterns("keys")))
    (again / "keys").symlink_to(tmp_path / "disk")
    with pytest.raises(OblivionError, match=rf"or remove {tmp_path}/disk/{BINDING} if the other is gone for good"):
        open_ledger(again, SETTINGS)
    (tmp_path / "disk" / BINDING).unlink()
    open_ledger(again, SETTINGS)[0].close()


def test_two_processes_do_not_share_keys(elsewhere: Path) -> None:
    lock = Lock(elsewhere / "keys" / "lock")
    with pytest.raises(OblivionError, match="keys is in use by process"):
        open_ledger(elsewhere, SETTINGS)
    lock.release()
    open_ledger(elsewhere, SETTINGS)[0].close()


@pytest.mark.parametrize(
    "place", ["ledger", "ledger/blobs", "ledger/blobs/*", "ledger/ledger.db", "keys/contributions", "keys/states/*"]
)
def test_a_link_into_another_run_is_refused(tmp_path: Path, place: str) -> None:
    one, other = (build(tmp_path / name).root for name in ("one", "other"))
    path, target = next(one.glob(place)), next(other.glob(place))
    before = files(other)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)
    with pytest.raises(OblivionError, match=f"{path} is a link, and erasing would reach what it leads to"):
        open_ledger(one, SETTINGS)
    oblivion("ledger", "show", one)
    assert files(other) == before


@pytest.mark.parametrize("folder", ["ledger", "keys"])
def test_a_copy_by_hard_links_is_refused(tmp_path: Path, folder: str) -> None:
    root = build(tmp_path / "run").root
    before = files(root)
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    shutil.rmtree(copy / folder)
    shutil.copytree(root / folder, copy / folder, copy_function=os.link)
    with pytest.raises(OblivionError, match=r"has a second name somewhere .* copy the run anew"):
        open_ledger(copy, SETTINGS)
    after = files(root)
    assert {path for path in before if before[path] != after[path]} <= {root / "ledger/lock", root / "keys/lock"}


def test_an_older_copy_of_the_keys_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    ledger, register = learned(root)
    ledger.close()
    shutil.copytree(root / "keys", tmp_path / "older")
    ledger, register = open_ledger(root, SETTINGS)
    trial(ledger, register, ask(register, "eve"), "rollback", fork=1, last=4)
    ledger.close()
    shutil.move(root / "keys", tmp_path / "newer")
    shutil.copytree(tmp_path / "older", root / "keys")
    with pytest.raises(IntegrityError, match=r"\.key \(and \d+ more\) is missing.*restore keys/ from its backup"):
        open_ledger(root, SETTINGS)
    assert oblivion("ledger", "verify", root)[0] == 4
    shutil.rmtree(root / "keys")
    shutil.move(tmp_path / "newer", root / "keys")
    open_ledger(root, SETTINGS)[0].close()
    assert verify_ledger(root).findings == []
