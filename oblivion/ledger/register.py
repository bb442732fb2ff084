"""Who takes part, who asked to be forgotten, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from oblivion.errors import ConfigError, InputError, IntegrityError, nearest
from oblivion.ledger import requests
from oblivion.ledger.book import Book, Record, stamp
from oblivion.ledger.curve import key_fault
from oblivion.ledger.rounds import Absence
from oblivion.types import CLIENT_ID, ForgetRequest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

State = Literal["received", "planned", "running", "verified", "committed", "refused"]
MAIN = "main"
EXCLUSIONS = "exclusions.json"
SIMULATED = "simulated-clients.json"
"""The request keys of simulated clients, which have no disk of their own."""
NAMES = "client-names.json"
"""What the data calls the clients whose ids are not their names: for whoever runs the federation, and nobody else."""


@dataclass(frozen=True, kw_only=True)
class RequestStatus:
    """A request and where it stands; times are ISO 8601 in UTC."""

    request: ForgetRequest
    state: State
    ground: str
    received_at: str
    due_at: str

    @property
    def open(self) -> bool:
        """Whether it still waits for an answer."""
        return self.state not in ("committed", "refused")

    @property
    def absence(self) -> Absence:
        """What a model that answers it does without."""
        return Absence(client=self.request.client_id, samples=self.request.sample_ids)


def absences(listed: Iterable[Mapping[str, Any]]) -> tuple[Absence, ...]:
    """Exclusions as they are written, in the ledger and beside the keys.

    Raises
    ------
    IntegrityError
        If one is none.
    """
    try:
        return tuple(
            Absence(client=item["client"], samples=None if item["samples"] is None else tuple(item["samples"]))
            for item in listed
        )
    except (KeyError, TypeError):
        raise IntegrityError(f"keys/{EXCLUSIONS} is not what the run wrote; restore keys/ from its backup") from None


def _public(private: str) -> str:
    """The public half of an Ed25519 key, both in hex."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private)).public_key().public_bytes_raw().hex()


class Register:
    """The part of a ledger that is about requests; it shares the ledger's `Book`."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.keys = book.keys

    @property
    def federation(self) -> str:
        """The id of this run, which every request names."""
        (record,) = self.book.find("federation")
        return record.key

    def begin(self) -> None:
        """Give a new ledger its id."""
        import secrets

        if not self.book.find("federation"):
            with self.book.transaction(anchor=True) as writer:
                writer.add("federation", secrets.token_hex(16), {})

    def enrol(self, keys: Mapping[str, bytes]) -> None:
        """Enter the public keys (raw Ed25519, 32 bytes) of clients, all or none.

        A key takes the place of the one that the run made for a simulated client, which goes from ``keys/``: from then
        on only the client can sign. Nothing happens where it is the client's already.

        Raises
        ------
        ConfigError
            If an id is not allowed, was forgotten, or has another key of its own already.
        InputError
            If a key is no Ed25519 public key that an honest client can have, or another client's.
        """
        present = {record.client: record for record in self.book.find("client")}
        owners = {record.content["public_key"]: client for client, record in present.items()}
        gone = {absence.client for absence in self.exclusions() if absence.samples is None}
        for client, key in keys.items():
            self._check_key(client, key, gone)
            if owners.setdefault(key.hex(), client) != client:
                raise InputError(f"the key for '{client}' is that of '{owners[key.hex()]}'; every client has its own")
        new = {c: key for c, key in keys.items() if c not in present or present[c].content["public_key"] != key.hex()}
        made = self.keys.read_json(SIMULATED) or {}
        for client in sorted(new.keys() & present.keys()):
            if client not in made or present[client].content["public_key"] != _public(made[client]):
                raise ConfigError(
                    f"'{client}' is enrolled with another key, and only that one counts; nothing was changed"
                )
        if new:
            with self.book.transaction(anchor=True) as writer:
                writer.erase([present[c].seq for c in sorted(new.keys() & present.keys())], "another key was enrolled")
                for client in sorted(new):
                    writer.add("client", client, {"public_key": new[client].hex()}, client=client)
        self.forget_simulated_keys()

    def enrol_own(self, client: str, key: bytes) -> None:
        """Enter a client's own key in place of the one that the run made for it.

        Raises
        ------
        ConfigError
            Also if the run knows no such client.
        """
        gone = {absence.client for absence in self.exclusions()}
        if client not in self.clients() and client not in gone:
            raise ConfigError(f"the run has no client {ascii(client)[:80]}; {nearest(client, self.clients())}")
        self.enrol({client: key})

    def _check_key(self, client: str, key: bytes, gone: Set[str]) -> None:
        if not isinstance(client, str) or not CLIENT_ID.fullmatch(client):
            raise ConfigError(
                f"{ascii(client)[:80]} is no client id; use 1 to 64 of a-z, 0-9, '_' and '-', beginning with a letter "
                "or digit"
            )
        if client in gone:
            raise ConfigError(f"'{client}' was forgotten, and can be enrolled no more")
        if fault := key_fault(bytes(key)):
            raise InputError(f"the key for '{client}' is not taken: {fault}")

    def forget_simulated_keys(self) -> None:
        """Remove the request keys that the run made for clients which have enrolled their own since."""
        own = self.keys.read_json(SIMULATED) or {}
        enrolled = {record.client: record.content["public_key"] for record in self.book.find("client")}
        left = {client: key for client, key in own.items() if enrolled.get(client, "") in ("", _public(key))}
        if left != own:
            self.keys.write_json(SIMULATED, left)

    def enrol_simulated(self, clients: Mapping[str, Any], names: Mapping[str, str] | None = None) -> None:
        """Make a request key for every simulated client and enter it; keep what the data calls them (`names`)."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        own: dict[str, str] = self.keys.read_json(SIMULATED) or {}
        gone = {absence.client for absence in self.exclusions() if absence.samples is None}
        new = sorted(set(clients) - own.keys() - gone - set(self.clients()))
        if new:
            own |= {client: Ed25519PrivateKey.generate().private_bytes_raw().hex() for client in new}
            self.keys.write_json(SIMULATED, own)
        missing = sorted(own.keys() - set(self.clients()) - gone)
        if missing:
            with self.book.transaction() as writer:
                for client in missing:
                    writer.add("client", client, {"public_key": _public(own[client])}, client=client)
        known = {client: name for client, name in (names or {}).items() if client not in gone}
        if known != (self.keys.read_json(NAMES) or {}):
            self.keys.write_json(NAMES, known)

    def simulated_key(self, client: str) -> Ed25519PrivateKey:
        """The request key of a simulated client.

        Raises
        ------
        ConfigError
            If it has none here: it signs its requests itself.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        own = self.keys.read_json(SIMULATED) or {}
        if client not in own:
            raise ConfigError(
                f"'{client}' has no key here; it signs its request itself: give that with --request. If it was the run "
                f"that made its key, keys/{SIMULATED} is not complete: restore it from the backup of keys/"
            )
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(own[client]))

    def clients(self) -> tuple[str, ...]:
        """The enrolled clients; who was forgotten is not among them."""
        return tuple(sorted(record.client for record in self.book.find("client")))

    def public_key(self, client: str) -> Ed25519PublicKey | None:
        """The key that a client's requests are checked with."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        for record in self.book.find("client", client=client):
            return Ed25519PublicKey.from_public_bytes(bytes.fromhex(record.content["public_key"]))
        return None

    def receive(self, request: ForgetRequest) -> RequestStatus:
        """Take a request in; the same one again is the one that is there.

        Raises
        ------
        IntegrityError
            If it is forged, altered, expired, for another run, or uses a nonce again.
        """
        requests.check_form(request)
        place = f"{request.client_id}/{request.nonce}"  # another client cannot use up a nonce by being faster
        known = self.book.find("request", key=place)
        now = self.book.now()
        if known:
            asked = self._asked(known[0])
            if asked.request == request:
                return asked
            raise IntegrityError("the forget request is refused: its nonce was used before; issue the request again")
        try:
            requests.check(request, self.public_key(request.client_id), self.federation, now)
        except IntegrityError as error:
            ahead = self.book.ahead()
            raise IntegrityError(f"{error}. Besides, {ahead}" if ahead else str(error)) from None
        content = {
            **requests.to_json(request),
            "received_at": stamp(now),
            "due_at": stamp(requests.due_at(now)),
        }
        with self.book.transaction(anchor=True) as writer:
            writer.add("request", place, content, client=request.client_id)
            writer.add("request.state", f"{request.id}/1", {"request": request.id, "state": "received", "ground": ""})
        return self.asked(request.id)

    def all_asked(self) -> tuple[RequestStatus, ...]:
        """Every request in the order of receipt."""
        return tuple(self._asked(record) for record in self.book.find("request"))

    def asked(self, request_id: str) -> RequestStatus:
        """Return the request with this id, and where it stands.

        Raises
        ------
        ConfigError
            If there is none with this id.
        """
        everything = {asked.request.id: asked for asked in self.all_asked()}
        if request_id not in everything:
            raise ConfigError(f"there is no request '{request_id}'; {nearest(request_id, everything)}")
        return everything[request_id]

    def open_request(self, client: str, samples: tuple[str, ...] | None) -> RequestStatus | None:
        """The open request of a client for exactly this, if there is one."""
        wanted = None if samples is None else sorted(samples)
        for asked in self.all_asked():
            own = asked.request.sample_ids
            if asked.open and asked.request.client_id == client and (None if own is None else sorted(own)) == wanted:
                return asked
        return None

    def _asked(self, record: Record) -> RequestStatus:
        content = dict(record.content)
        received, due = content.pop("received_at"), content.pop("due_at")
        request = requests.from_json(content)
        moves = [move for move in self.book.find("request.state") if move.content["request"] == request.id]
        last = moves[-1].content
        return RequestStatus(
            request=request, state=last["state"], ground=last["ground"], received_at=received, due_at=due
        )

    def move(self, request_id: str, state: State, ground: str = "") -> None:
        """Let a request go on to another state; nothing happens where it is there already."""
        asked = self.asked(request_id)
        if not asked.open:
            raise ConfigError(f"{request_id} is {asked.state} already")
        if asked.state != state:
            key, content = self.next_state_key(request_id), {"request": request_id, "state": state, "ground": ground}
            with self.book.transaction(anchor=True) as writer:
                writer.add("request.state", key, content)

    def next_state_key(self, request_id: str) -> str:
        """The key of the next record of a request's state."""
        done = [move for move in self.book.find("request.state") if move.content["request"] == request_id]
        return f"{request_id}/{len(done) + 1}"

    def exclusions(self) -> tuple[Absence, ...]:
        """Who and what may never come back."""
        return absences(record.content for record in self.book.find("exclusion"))

    def check_exclusions(self) -> None:
        """Compare with the list beside the keys, which is written after the ledger and so can know no more.

        Raises
        ------
        IntegrityError
            If it does: the ledger is a copy from before somebody was forgotten.
        """
        known = self.exclusions()
        whole = {absence.client for absence in known if absence.samples is None}
        for absence in absences(self.keys.read_json(EXCLUSIONS) or []):
            if absence not in known and absence.client not in whole:
                raise IntegrityError(
                    f"{self.book.path} is an older copy: it does not know that {absence.client} "
                    f"{'was' if absence.samples is None else 'had samples'} forgotten; restore the newer ledger"
                )

    def removals(self) -> tuple[Record, ...]:
        """The committed removals in order; the last one's branch is the head of the run."""
        return tuple(self.book.find("removal"))

    def head(self) -> str:
        """The name of the branch that is the head of the run."""
        removals = self.removals()
        return str(removals[-1].content["branch"]) if removals else MAIN
