"""Signed forget requests: golden bytes, borders, and what is refused: forged, altered, foreign, expired, hostile."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from oblivion.errors import ConfigError, InputError, IntegrityError
from oblivion.ledger import requests
from oblivion.ledger.requests import canonical, check, due_at, from_json, issue, to_json
from oblivion.types import ForgetRequest

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = KEY.public_key()
NOW = datetime(2026, 11, 25, 22, tzinfo=UTC)
RUN = "run-7"
# The bytes written by hand; id with sha256sum; signature with the formulas of RFC 8032 in plain Python integers.
GOLDEN = (
    rb'{"client":"clinic-a","expires":"2026-12-25T22:00:00Z","federation":"run-7","issued":"2026-11-25T22:00:00Z",'
    rb'"nonce":"000102030405060708090a0b0c0d0e0f","samples":["a/1","b\u00e9"],"version":1}'
)
REQUEST = ForgetRequest(
    id="req-9636f98b81b3",
    client_id="clinic-a",
    sample_ids=("bé", "a/1"),
    federation=RUN,
    issued_at="2026-11-25T22:00:00Z",
    expires_at="2026-12-25T22:00:00Z",
    nonce="000102030405060708090a0b0c0d0e0f",
    signature="a19603f4e07475bb299e732dacaa81c2b33ec4c70adaec01b47a6d7f1ec91eda"
    "d8b4f5e9115bf75d80ae1758047ca92929ab550cd0ce91ed47054c2bc67c820a",
)
CLIENTS = [f"client-{k}" for k in range(20)]
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([k + 1]) * 32) for k in range(20)]
ALTERED: dict[str, list[Any]] = {
    "client_id": ["clinic-b", "clinic-", "clinic-a0"],
    "sample_ids": [None, ("a/1",), ("a/1", "be"), ("a/1", "bé", "c"), ('a/1","bé',)],
    "federation": ["run-8", "run-", "run-70"],
    "issued_at": ["2026-11-25T22:00:01Z", "2025-12-31T22:00:00Z"],
    "expires_at": ["2026-12-25T22:00:01Z", "2027-11-25T22:00:00Z"],
    "nonce": ["000102030405060708090a0b0c0d0e0e", "f" * 32],
}
HOSTILE = [
    "", " ", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "C:\\x", "CON", "Clinic-a", "-a", "_a", "a b", "a.b",
    "a\x00b", "clinic-a\n", "\u202eclinic-a", "clinic\u200b-a", "сlinic-a", "clinic–a", "clinic-a\u0301", "ﬁn", "١",
    "ſ", "\ud800", "a" * 65, "x" * 4096, "<script>alert(1)</script>", "'; drop table requests; --", "%2e%2e%2fx",
]  # fmt: skip


def renamed(request: ForgetRequest, **changes: Any) -> ForgetRequest:
    """With other fields and the id that belongs to them, so that only the signature can tell."""
    request = dataclasses.replace(request, **changes)
    return dataclasses.replace(request, id=f"req-{hashlib.sha256(canonical(request)).hexdigest()[:12]}")


def signed(key: Ed25519PrivateKey = KEY, **changes: Any) -> ForgetRequest:
    """With other fields, signed anew."""
    request = renamed(REQUEST, **changes)
    return dataclasses.replace(request, signature=key.sign(canonical(request)).hex())


def refusal(
    request: ForgetRequest, key: Ed25519PublicKey | None = PUBLIC, federation: str = RUN, now: datetime = NOW
) -> str:
    """Why a request is refused; empty if it is accepted. Any other exception is a failure."""
    try:
        check(request, key, federation, now)
    except IntegrityError as error:
        return str(error)
    return ""


def flips(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        for bit in range(8):
            yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def test_the_golden_request() -> None:
    assert canonical(REQUEST) == GOLDEN
    assert refusal(REQUEST) == ""
    assert signed().signature == REQUEST.signature and signed().id == REQUEST.id
    assert PUBLIC.public_bytes_raw().hex() == "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"


def test_the_golden_json() -> None:
    value = json.loads(GOLDEN) | {"samples": ["bé", "a/1"], "id": REQUEST.id, "signature": REQUEST.signature}
    assert to_json(REQUEST) == value and from_json(value) == REQUEST


def test_a_whole_client_is_null() -> None:
    request = signed(sample_ids=None)
    assert b'"samples":null' in canonical(request) and request.whole_client
    assert refusal(request) == "" and from_json(to_json(request)) == request


def test_issue_makes_what_check_accepts() -> None:
    now = NOW + timedelta(microseconds=999_999)
    request = issue("clinic-a", ["bé", "a/1"], KEY, RUN, now)
    assert refusal(request, now=now) == ""
    assert request == signed(sample_ids=("a/1", "bé"), nonce=request.nonce)
    assert request.nonce != issue("clinic-a", None, KEY, RUN, now).nonce


def test_issue_knows_time_zones() -> None:
    there = timezone(timedelta(hours=-7))
    request = issue("clinic-a", None, KEY, RUN, NOW.astimezone(there), valid_days=366)
    assert (request.issued_at, request.expires_at) == ("2026-11-25T22:00:00Z", "2027-11-26T22:00:00Z")
    assert refusal(request, now=NOW.astimezone(there)) == ""
    for act in (lambda now: issue("a", None, KEY, RUN, now), lambda now: check(request, PUBLIC, RUN, now)):
        with pytest.raises(ValueError, match="no time zone"):
            act(NOW.replace(tzinfo=None))


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "Clinic"}, {"sample_ids": []}, {"sample_ids": ["a", "a"]}, {"sample_ids": ["a", 1]},
        {"sample_ids": "abc"}, {"sample_ids": ["x" * 1025]}, {"federation": ""}, {"federation": "x" * 129},
        {"valid_days": 0}, {"valid_days": -1}, {"valid_days": 367},
    ],
)  # fmt: skip
def test_issue_refuses_what_check_would_refuse(changes: dict[str, Any]) -> None:
    values = {"client_id": "a", "sample_ids": None, "federation": RUN, "valid_days": 30} | changes
    with pytest.raises(ConfigError):
        issue(key=KEY, now=NOW, **values)


def test_every_flipped_bit_of_the_signed_bytes_is_noticed() -> None:
    signature, read = bytes.fromhex(REQUEST.signature), 0
    for flipped in flips(GOLDEN):
        with pytest.raises(InvalidSignature):
            PUBLIC.verify(signature, flipped)
        name = f"req-{hashlib.sha256(flipped).hexdigest()[:12]}"
        try:
            request = from_json({**json.loads(flipped), "id": name, "signature": REQUEST.signature})
        except (ValueError, InputError):
            continue
        read += 1
        for altered in (request, renamed(request)):
            # "\u00E9" is another spelling of the same content; it counts only under the id of what was signed.
            same = altered == dataclasses.replace(REQUEST, sample_ids=("a/1", "bé"))
            assert same or refusal(altered)
    assert read > 300


def test_every_digit_of_the_signature_counts() -> None:
    for place, digit in enumerate(REQUEST.signature):
        for other in set("0123456789abcdefA") - {digit}:
            text = REQUEST.signature[:place] + other + REQUEST.signature[place + 1 :]
            assert "signature is" in refusal(dataclasses.replace(REQUEST, signature=text))


def test_a_signature_has_one_spelling() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    raw = bytes.fromhex(REQUEST.signature)
    scalar = int.from_bytes(raw[32:], "little") + order  # RFC 8032, 5.1.7: must be below the order
    for text in (
        (raw[:32] + scalar.to_bytes(32, "little")).hex(), REQUEST.signature.upper(), f"{REQUEST.signature}\n",
        REQUEST.signature[:-2], REQUEST.signature + "00", "", f" {REQUEST.signature[1:]}", "0" * 128,
    ):  # fmt: skip
        assert "signature is" in refusal(dataclasses.replace(REQUEST, signature=text))


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in ALTERED for value in ALTERED[field]])
def test_an_altered_field_is_refused(field: str, value: Any) -> None:
    wrong = "federation is" if field == "federation" else "id is"
    assert wrong in refusal(dataclasses.replace(REQUEST, **{field: value}))
    wrong = "federation is" if field == "federation" else "signature is not that of client"
    assert wrong in refusal(renamed(REQUEST, **{field: value}))
    genuine = signed(**{field: value})
    assert refusal(genuine, federation=genuine.federation, now=NOW + timedelta(seconds=1)) == "", (
        "signed anew it is fine"
    )


def test_every_field_is_altered_by_a_test() -> None:
    assert {f.name for f in dataclasses.fields(ForgetRequest)} == {*ALTERED, "id", "signature"}


@pytest.mark.parametrize("other", ["", "req-", "req-9636f98b81b4", "REQ-9636F98B81B3", "req-9636f98b81b3 ", "../x"])
def test_the_id_follows_from_the_content(other: str) -> None:
    assert "id is" in refusal(dataclasses.replace(REQUEST, id=other))


def test_the_order_of_samples_has_no_meaning() -> None:
    assert refusal(dataclasses.replace(REQUEST, sample_ids=("a/1", "bé"))) == ""


def test_two_spellings_of_a_character_do_not_share_a_signature() -> None:
    request = signed(sample_ids=("\U0001f600",))
    halves = dataclasses.replace(request, sample_ids=("\ud83d\ude00",))
    assert canonical(halves) == canonical(request), "JSON cannot tell them apart, so check must"
    assert refusal(request) == "" and "sample id" in refusal(halves)


def test_only_the_owner_can_ask() -> None:
    passed = set()
    for i, requester in enumerate(KEYS):
        for j, target in enumerate(CLIENTS):
            request = issue(target, None, requester, RUN, NOW)
            if not refusal(request, KEYS[j].public_key()):
                passed.add((i, j))
    assert passed == {(k, k) for k in range(20)}


def test_a_client_without_a_key_is_refused() -> None:
    assert "clinic-a' has no enrolled key; enrol" in refusal(REQUEST, key=None)


def test_a_request_is_for_one_federation() -> None:
    for federation in ("run-8", "RUN-7", "run-7 ", "run", ""):
        assert "federation is" in refusal(REQUEST, federation=federation)
    assert "federation is" in refusal(signed(federation=""), federation="")


def test_clock_borders() -> None:
    tick, skew = timedelta(microseconds=1), timedelta(minutes=5)
    assert refusal(REQUEST, now=NOW - skew) == ""
    assert "in the future" in refusal(REQUEST, now=NOW - skew - tick)
    end = datetime(2026, 12, 25, 22, tzinfo=UTC)
    assert refusal(REQUEST, now=end - tick) == ""
    assert "expired" in refusal(REQUEST, now=end)
    assert "expired" in refusal(REQUEST, now=end + timedelta(days=3650))


def test_borders_of_validity() -> None:
    assert refusal(signed(expires_at="2026-11-25T22:00:01Z")) == ""
    assert refusal(signed(expires_at="2027-11-26T22:00:00Z")) == "", "366 days"
    for expires in ("2027-11-26T22:00:01Z", "9999-12-31T23:59:59Z", REQUEST.issued_at, "2026-11-25T21:59:59Z"):
        assert "expires is not within 366 days after issued" in refusal(signed(expires_at=expires))


@pytest.mark.parametrize(
    "text",
    [
        "", "2026-11-25", "2026-11-25T22:00:00", "2026-11-25T22:00:00+00:00", "2026-11-25t22:00:00z",
        "2026-11-25 22:00:00Z", "2026-11-25T22:00:00.0Z", "2026-11-24T24:00:00Z", "2026-13-25T22:00:00Z",
        "2026-02-30T22:00:00Z", "2026-11-25T22:00:60Z", "٢٠٢٦-11-25T22:00:00Z", " 2026-11-25T22:00:00Z",
        "2026-11-25T22:00:00Z\n", "2026-11-5T22:00:00Z", "0000-11-25T22:00:00Z", "20261125T220000Z", "now",
    ],
)  # fmt: skip
def test_a_time_has_one_spelling(text: str) -> None:
    assert "issued is" in refusal(signed(issued_at=text))
    assert "expires is" in refusal(signed(expires_at=text))


@pytest.mark.parametrize("client", HOSTILE, ids=lambda text: ascii(text)[:30])
def test_hostile_client_ids(client: str) -> None:
    request = signed(client_id=client)
    messages = [refusal(request)]
    with pytest.raises(InputError) as read:
        from_json(to_json(request))
    with pytest.raises(ConfigError) as made:
        issue(client, None, KEY, RUN, NOW)
    for message in (*messages, str(read.value), str(made.value)):
        assert "client" in message and message.isascii() and message.isprintable() and len(message) < 250


def test_sample_ids_are_any_text() -> None:
    texts = ("../x", "a\x00b", "\u202ex", "CON", "A/b\\c", "сlinic", '"', "\\u00e9", "é", "x" * 1024)
    assert refusal(signed(sample_ids=texts)) == ""
    assert from_json(json.loads(json.dumps(to_json(signed(sample_ids=texts))))).sample_ids == texts


@pytest.mark.parametrize(
    "samples", [(), ("a", "b", "a"), ("a", ""), ("a", "\udc00"), ("x" * 1025,)], ids=lambda value: ascii(value)[:20]
)
def test_samples_that_name_nothing_or_something_twice(samples: tuple[str, ...]) -> None:
    request = signed(sample_ids=samples)
    assert "sample" in refusal(request)
    with pytest.raises(InputError, match="sample"):
        from_json(to_json(request))


@pytest.mark.parametrize("nonce", ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 31 + "\n", "٠" * 32])
def test_a_nonce_is_32_hex_digits(nonce: str) -> None:
    assert "nonce is" in refusal(signed(nonce=nonce))


@pytest.mark.parametrize("value", [None, 0, 1.5, True, b"x", [], ["a"], {}, {"a": 1}, (1,), ({},), "abc"], ids=repr)
def test_values_of_another_type_are_refused(value: Any) -> None:
    for field in dataclasses.fields(ForgetRequest):
        if (field.name, value) not in (("sample_ids", None), ("sample_ids", ["a"])):
            assert refusal(dataclasses.replace(REQUEST, **{field.name: value}))
    for name in to_json(REQUEST):
        if (name, value) not in (("samples", None), ("samples", ["a"])) and value != "abc":
            with pytest.raises(InputError, match=name.removesuffix("s")):
                from_json({**to_json(REQUEST), name: value})


def test_json_has_exactly_its_fields() -> None:
    for name in to_json(REQUEST):
        with pytest.raises(InputError, match=f"{name} missing"):
            from_json({k: v for k, v in to_json(REQUEST).items() if k != name})
    for other in ("extra", "sample_ids", "Client", "", 3, None):
        with pytest.raises(InputError, match="is unknown; accepted are client, expires"):
            from_json(to_json(REQUEST) | {other: "x"})
    for value in (None, [], "x", 1, [to_json(REQUEST)]):
        with pytest.raises(InputError, match="is a JSON object"):
            from_json(value)


def test_versions_that_are_not_known() -> None:
    for version in (0, 2, True, 1.0, "1", None, 10**5000):
        with pytest.raises(InputError, match="version is not known; 1 is accepted"):
            from_json({**to_json(REQUEST), "version": version})


def test_oversized_json_is_refused_and_hardly_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(to_json(REQUEST)) - {"version", "samples"}:
        with pytest.raises(InputError) as caught:
            from_json({**to_json(REQUEST), name: "y" * 10_000_000})
        assert str(caught.value).count("y") < 70 and name in str(caught.value)
    with pytest.raises(InputError, match="1000001 ids; name 1 to 1000000"):
        from_json({**to_json(REQUEST), "samples": ["x"] * 1_000_001})
    monkeypatch.setattr(requests, "MOST_SAMPLES", 3)
    assert from_json({**to_json(REQUEST), "samples": list("abc")}).sample_ids == ("a", "b", "c")
    with pytest.raises(InputError, match="4 ids"):
        from_json({**to_json(REQUEST), "samples": list("abcd")})


def test_requests_without_a_signature_are_read_but_refused() -> None:
    plain = ForgetRequest(id="req-1", client_id="a", sample_ids=("s",))
    assert from_json(to_json(plain)) == plain and refusal(plain)


def forgeries(i: int) -> Iterator[tuple[str, ForgetRequest, dict[str, Any]]]:
    """Attacks on client i: what kind, the request, and what `check` gets if not the honest arguments."""
    honest = issue(CLIENTS[i], ("a/1", "bé"), KEYS[i], RUN, NOW)
    for place, digit in enumerate(honest.signature):
        for step in (1, 7, 8):
            other = f"{(int(digit, 16) + step) % 16:x}"
            text = honest.signature[:place] + other + honest.signature[place + 1 :]
            yield "digit", dataclasses.replace(honest, signature=text), {}
    for j in range(20):
        text = hashlib.sha512(f"{i} {j}".encode()).hexdigest()
        yield "random", dataclasses.replace(honest, signature=text), {}
        if j != i:
            yield "foreign key", issue(CLIENTS[i], ("a/1",), KEYS[j], RUN, NOW), {}
            yield "other target", renamed(honest, client_id=CLIENTS[j]), {"key": KEYS[j].public_key()}
            yield "own key", honest, {"key": KEYS[j].public_key()}
        yield "federation", honest, {"federation": f"run-{j + 8}"}
        yield "federation", renamed(honest, federation=f"run-{j + 8}"), {"federation": f"run-{j + 8}"}
        yield "late", honest, {"now": NOW + timedelta(days=30 + j)}
        yield "early", honest, {"now": NOW - timedelta(minutes=6 + j)}
        yield "extended", renamed(honest, expires_at=f"2027-01-{j + 1:02}T22:00:00Z"), {}
        yield "again", renamed(honest, nonce=f"{j:032x}"), {}
    for field, values in ALTERED.items():
        for value in values:
            yield "altered", renamed(honest, **{field: value}), {}
            yield "altered", dataclasses.replace(honest, **{field: value}), {}
    for client in HOSTILE:
        yield "hostile", renamed(honest, client_id=client), {}
    yield "no key", honest, {"key": None}


def test_none_of_ten_thousand_forgeries_is_accepted() -> None:
    tried: Counter[str] = Counter()
    accepted = []
    for i in range(20):
        public = KEYS[i].public_key()
        assert refusal(issue(CLIENTS[i], ("a/1", "bé"), KEYS[i], RUN, NOW), public) == "", "an honest one passes"
        for kind, request, arguments in forgeries(i):
            tried[kind] += 1
            if not refusal(request, **({"key": public} | arguments)):
                accepted.append((kind, request))
    assert accepted == [] and tried.total() >= 10_000
    assert len(tried) == 13 and min(tried.values()) >= 20


@pytest.mark.parametrize(
    ("received", "due"),
    [
        ("2026-11-25", "2026-12-25"), ("2026-12-15", "2027-01-15"), ("2026-12-31", "2027-01-31"),
        ("2027-01-28", "2027-02-28"), ("2027-01-29", "2027-02-28"), ("2027-01-31", "2027-02-28"),
        ("2028-01-31", "2028-02-29"), ("2028-02-29", "2028-03-29"), ("2026-03-31", "2026-04-30"),
    ],
)  # fmt: skip
def test_an_answer_is_due_after_a_month(received: str, due: str) -> None:
    assert due_at(datetime.fromisoformat(f"{received}T22:05:06Z")) == datetime.fromisoformat(f"{due}T22:05:06Z")


def test_the_module_is_light() -> None:
    code = "import sys, oblivion.ledger.requests; print({'cryptography', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
