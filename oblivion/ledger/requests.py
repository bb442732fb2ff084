"""Signed forget requests: only the client that owns the data can ask for it to be forgotten.

A request is signed with the client's Ed25519 key (RFC 8032) over its canonical bytes, and a federation checks it
against the key that it enrolled for that client. A replay is recognised by its nonce, which the ledger remembers.
"""

from __future__ import annotations

import calendar
import dataclasses
import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from oblivion.errors import ConfigError, InputError, IntegrityError
from oblivion.types import CLIENT_ID, ForgetRequest

if TYPE_CHECKING:  # `oblivion --help` does not wait for cryptography
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

VERSION = 1
CLOCK_SKEW = timedelta(minutes=5)
LONGEST_VALIDITY = timedelta(days=366)
LONGEST_SAMPLE_ID = 1024
MOST_SAMPLES = 1_000_000
ID = re.compile(r"req-[0-9a-f]{12}")
"""How a request's id is written; it is made from the content."""
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_NONCE = re.compile(r"[0-9a-f]{32}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_LONGEST = {"id": 64, "federation": 128, "client": 64, "issued": 20, "expires": 20, "nonce": 32, "signature": 128}
"""The text fields of a request's JSON, each with the most characters that it may have."""
_FIELDS = {"version", "samples", *_LONGEST}
_AGAIN = "issue the request again"


def canonical(request: ForgetRequest) -> bytes:
    """The bytes that are signed: JSON in ASCII with sorted keys, sorted samples and no spaces."""
    samples = None if request.sample_ids is None else sorted(request.sample_ids)
    return json.dumps(_content(request) | {"samples": samples}, sort_keys=True, separators=(",", ":")).encode("ascii")


def issue(
    client_id: str,
    sample_ids: Sequence[str] | None,
    key: Ed25519PrivateKey,
    federation: str,
    now: datetime,
    valid_days: int = 30,
) -> ForgetRequest:
    """Make and sign a request.

    Parameters
    ----------
    client_id : str
        Who asks.
    sample_ids : sequence of str or None
        What to forget, in any order; None for all that the client has.
    key : Ed25519PrivateKey
        The client's key.
    federation : str
        Id of the run that the request is for, at most 128 characters.
    now : datetime
        The time, with its zone; fractions of a second are dropped.
    valid_days : int, default 30
        Days until the request counts no more, 1 to 366.

    Returns
    -------
    ForgetRequest
        With a nonce of its own, its samples sorted.

    Raises
    ------
    ConfigError
        If `check` would refuse such a request for its client, samples, federation or time.
    """
    if not 1 <= valid_days <= LONGEST_VALIDITY.days:
        raise ConfigError(f"valid_days = {valid_days} is not allowed; use 1 to {LONGEST_VALIDITY.days}")
    if not _is_text(federation, _LONGEST["federation"]):
        raise ConfigError(f"federation is {_quote(federation)}; use the id of the run, 1 to 128 characters")
    if fault := _client_fault(client_id) or _samples_fault(sample_ids):
        raise ConfigError(f"no forget request was made: {fault}")
    start = _in_utc(now)
    request = ForgetRequest(
        id="",
        client_id=client_id,
        sample_ids=None if sample_ids is None else tuple(sorted(sample_ids)),
        federation=federation,
        issued_at=_stamp(start),
        expires_at=_stamp(start + timedelta(days=valid_days)),
        nonce=secrets.token_hex(16),
    )
    message = canonical(request)
    return dataclasses.replace(request, id=_id_of(message), signature=key.sign(message).hex())


def check(request: ForgetRequest, key: Ed25519PublicKey | None, federation: str, now: datetime) -> None:
    """Refuse a request that its client did not sign for this federation, or that counts no more or not yet.

    Parameters
    ----------
    request : ForgetRequest
        What came in.
    key : Ed25519PublicKey or None
        The key that was enrolled for ``request.client_id``; None if there is none.
    federation : str
        Id of this run.
    now : datetime
        The time of receipt, with its zone.

    Raises
    ------
    IntegrityError
        Saying what is wrong, what is accepted and what to do. Whether the nonce was used before is not checked
        here.
    """
    check_form(request)
    fault = _origin_fault(request, key, federation) or _time_fault(request, _in_utc(now))
    if fault:
        raise IntegrityError(f"the forget request is refused: {fault}")


def check_form(request: ForgetRequest) -> None:
    """Refuse a request whose fields are not what a request's are, before anything is looked up by them.

    Raises
    ------
    IntegrityError
        Saying which field.
    """
    if fault := _form_fault(request):
        raise IntegrityError(f"the forget request is refused: {fault}")


def to_json(request: ForgetRequest) -> dict[str, Any]:
    """The request as plain JSON values: what `canonical` signs, and ``id`` and ``signature``."""
    return {**_content(request), "id": request.id, "signature": request.signature}


def from_json(value: Any) -> ForgetRequest:
    """Read what `to_json` wrote. Whether the request is genuine is for `check` to say.

    Raises
    ------
    InputError
        If a field is unknown, missing, of another type or too long, the client is not a slug, or the samples are
        empty, too many, or name one twice.
    """
    if not isinstance(value, dict):
        raise InputError(f"a forget request is a JSON object; this is {_quote(value)}")
    if unknown := [name for name in value if name not in _FIELDS]:
        raise InputError(
            f"forget request: field {_quote(unknown[0])} is unknown; accepted are {', '.join(sorted(_FIELDS))}"
        )
    if missing := sorted(_FIELDS - value.keys()):
        raise InputError(f"forget request: {', '.join(missing)} missing; {_AGAIN}")
    version, samples = value["version"], value["samples"]
    if type(version) is not int or version != VERSION:  # True == 1
        raise InputError(f"forget request: the version is not known; {VERSION} is accepted; {_AGAIN}")
    for name, longest in _LONGEST.items():
        if value[name] != "" and not _is_text(value[name], longest):
            raise InputError(
                f"forget request: {name} is {_quote(value[name])}; text of at most {longest} characters is accepted"
            )
    if fault := _client_fault(value["client"]) or _samples_fault(samples):
        raise InputError(f"forget request: {fault}")
    return ForgetRequest(
        id=value["id"],
        client_id=value["client"],
        sample_ids=None if samples is None else tuple(samples),
        federation=value["federation"],
        issued_at=value["issued"],
        expires_at=value["expires"],
        nonce=value["nonce"],
        signature=value["signature"],
    )


def due_at(received_at: datetime) -> datetime:
    """By when a request has to be answered: one month after receipt, GDPR Art. 12(3).

    The same day of the next month, or that month's last day where there is no such day (Regulation (EEC, Euratom)
    No 1182/71, Art. 3). The time of day stays, so it is never later than the law's end of that day.
    """
    years, month = divmod(received_at.month, 12)
    year = received_at.year + years
    day = min(received_at.day, calendar.monthrange(year, month + 1)[1])
    return received_at.replace(year=year, month=month + 1, day=day)


def _content(request: ForgetRequest) -> dict[str, Any]:
    return {
        "version": VERSION,
        "federation": request.federation,
        "client": request.client_id,
        "samples": None if request.sample_ids is None else list(request.sample_ids),
        "issued": request.issued_at,
        "expires": request.expires_at,
        "nonce": request.nonce,
    }


def _id_of(message: bytes) -> str:
    return f"req-{hashlib.sha256(message).hexdigest()[:12]}"


def _form_fault(request: ForgetRequest) -> str | None:
    """What would let two contents share their canonical bytes, or have none."""
    if fault := _client_fault(request.client_id) or _samples_fault(request.sample_ids):
        return fault
    for name, value, form in (("nonce", request.nonce, _NONCE), ("signature", request.signature, _SIGNATURE)):
        if not isinstance(value, str) or not form.fullmatch(value):
            return f"{name} is {_quote(value)}; lower-case hex digits, {form.pattern}, are accepted; {_AGAIN}"
    for name, text in (("issued", request.issued_at), ("expires", request.expires_at)):
        try:
            _moment(text)
        except (ValueError, TypeError):
            return f"{name} is {_quote(text)}; a time in UTC such as 2026-11-25T22:00:00Z is accepted; {_AGAIN}"
    return None


def _client_fault(value: object) -> str | None:
    if isinstance(value, str) and CLIENT_ID.fullmatch(value):
        return None
    return (
        f"client id {_quote(value)} is not allowed; use 1 to 64 of a-z, 0-9, '_' and '-', "
        "beginning with a letter or digit"
    )


def _samples_fault(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST_SAMPLES:
        size = f"{len(value)} ids" if isinstance(value, list | tuple) else _quote(value)
        return f"samples is {size}; name 1 to {MOST_SAMPLES} sample ids, or none at all to forget the whole client"
    for sample in value:
        if not _is_text(sample, LONGEST_SAMPLE_ID):
            return f"sample id {_quote(sample)} is not allowed; text of 1 to {LONGEST_SAMPLE_ID} characters is"
    if len(set(value)) < len(value):
        return "samples names a sample twice; name each one once"
    return None


def _origin_fault(request: ForgetRequest, key: Ed25519PublicKey | None, federation: str) -> str | None:
    from cryptography.exceptions import InvalidSignature

    if key is None:
        return f"client '{request.client_id}' has no enrolled key; enrol its public key first"
    if not federation or request.federation != federation:
        return (
            f"federation is {_quote(request.federation)}, but this is {_quote(federation)}; "
            "issue a request for this federation"
        )
    message = canonical(request)
    if request.id != _id_of(message):
        return (
            f"id is {_quote(request.id)}, but the content makes it {_id_of(message)}; send the request as it was issued"
        )
    try:
        key.verify(bytes.fromhex(request.signature), message)
    except InvalidSignature:
        return (
            f"signature is not that of client '{request.client_id}' over this content; "
            "sign with the key that this client enrolled, and send the request as it was issued"
        )
    return None


def _time_fault(request: ForgetRequest, now: datetime) -> str | None:
    issued, expires = _moment(request.issued_at), _moment(request.expires_at)
    span = f"issued {request.issued_at}, expires {request.expires_at}, it is {_stamp(now)}"
    if not timedelta(0) < expires - issued <= LONGEST_VALIDITY:
        return f"expires is not within {LONGEST_VALIDITY.days} days after issued ({span}); {_AGAIN}"
    if issued > now + CLOCK_SKEW:
        return f"issued is in the future ({span}); set the client's clock right and {_AGAIN}"
    if now >= expires:
        return f"expired ({span}); {_AGAIN}"
    return None


def _moment(text: str) -> datetime:
    """Read a time that is written as `_stamp` writes it; any other spelling of it is a ValueError."""
    moment = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    if _stamp(moment) != text:
        raise ValueError(text)
    return moment


def _stamp(moment: datetime) -> str:
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone; use datetime.now(UTC)")
    return moment.astimezone(UTC)


def _is_text(value: object, longest: int) -> bool:
    """Whether it is text of 1 to `longest` characters without halves of surrogate pairs.

    JSON writes two such halves as it writes the character that they stand for: two ids would share a signature.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _quote(value: object) -> str:
    """At most 60 characters of a text, in ASCII, so that nothing in it acts on a terminal; of others the type."""
    if not isinstance(value, str):
        return f"of type {type(value).__name__}"
    shown = ascii(value[:60])
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
