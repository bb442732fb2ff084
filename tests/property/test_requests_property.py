"""Forget requests survive JSON, have one canonical form each, and nothing that comes in is echoed or crashes."""

from __future__ import annotations

import calendar
import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.errors import InputError, IntegrityError
from oblivion.ledger.requests import canonical, check, due_at, from_json, issue, to_json
from oblivion.types import ForgetRequest

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = KEY.public_key()
NOW = datetime(2026, 11, 25, 22, tzinfo=UTC)

slugs = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
samples = st.none() | st.lists(text, min_size=1, max_size=6, unique=True)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
requests = st.builds(
    ForgetRequest,
    id=text,
    client_id=slugs,
    sample_ids=samples.map(lambda ids: None if ids is None else tuple(ids)),
    federation=st.just("") | text,
    issued_at=st.just("") | text,
    expires_at=st.just("") | text,
    nonce=st.just("") | st.binary(min_size=16, max_size=16).map(bytes.hex),
    signature=st.just("") | st.binary(min_size=64, max_size=64).map(bytes.hex),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150)
@given(request=requests)
def test_json_round_trip(request: ForgetRequest) -> None:
    assert from_json(json.loads(json.dumps(to_json(request)))) == request
    assert from_json(json.loads(json.dumps(to_json(request), ensure_ascii=False))) == request


@settings(max_examples=100)
@given(client=slugs, ids=samples, federation=text, now=moments, days=st.integers(1, 366))
def test_what_was_issued_is_accepted_while_it_counts(
    client: str, ids: list[str] | None, federation: str, now: datetime, days: int
) -> None:
    request = issue(client, ids, KEY, federation, now, days)
    sent = from_json(json.loads(json.dumps(to_json(request))))
    check(sent, PUBLIC, federation, now)
    check(sent, PUBLIC, federation, now + timedelta(days=days, seconds=-1))
    for late in (now + timedelta(days=days), now - timedelta(minutes=6)):
        with pytest.raises(IntegrityError):
            check(sent, PUBLIC, federation, late)
    with pytest.raises(IntegrityError, match="federation"):
        check(sent, PUBLIC, federation + "x", now)
    assert sent == request and json.loads(canonical(sent))["samples"] == (None if ids is None else sorted(ids))


@settings(max_examples=100)
@given(request=requests, data=st.data())
def test_the_order_of_samples_does_not_matter(request: ForgetRequest, data: st.DataObject) -> None:
    if request.sample_ids is not None:
        shuffled = data.draw(st.permutations(request.sample_ids))
        assert canonical(dataclasses.replace(request, sample_ids=tuple(shuffled))) == canonical(request)


@settings(max_examples=150)
@given(first=requests, second=requests, data=st.data())
def test_another_content_has_other_bytes(first: ForgetRequest, second: ForgetRequest, data: st.DataObject) -> None:
    names = ("client_id", "sample_ids", "federation", "issued_at", "expires_at", "nonce")
    name = data.draw(st.sampled_from(names))
    other = dataclasses.replace(first, **{name: getattr(second, name)})
    one, two = (
        [r.sample_ids and sorted(r.sample_ids) if n == "sample_ids" else getattr(r, n) for n in names]
        for r in (first, other)
    )
    assert (canonical(first) == canonical(other)) is (one == two)


@settings(max_examples=200)
@given(place=st.integers(0), character=st.characters(), ids=samples)
def test_one_changed_character_is_refused(place: int, character: str, ids: list[str] | None) -> None:
    request = issue("clinic-a", ids, KEY, "run-7", NOW)
    whole = json.dumps(to_json(request))
    place %= len(whole)
    changed = whole[:place] + character + whole[place + 1 :]
    try:
        received = from_json(json.loads(changed))
    except (ValueError, InputError):
        return
    if received != request:
        with pytest.raises(IntegrityError):
            check(received, PUBLIC, "run-7", NOW)


@settings(max_examples=200)
@given(value=plain)
def test_any_json_is_read_or_refused(value: Any) -> None:
    with pytest.raises(InputError):
        from_json(value)


@settings(max_examples=200)
@given(name=st.sampled_from(sorted(to_json(ForgetRequest(id="r", client_id="c")))), value=plain)
def test_any_value_in_a_field_is_read_or_refused(name: str, value: Any) -> None:
    message = {**to_json(issue("clinic-a", ["s"], KEY, "run-7", NOW)), name: value}
    try:
        request = from_json(message)
    except InputError:
        return
    # True where the value is the one that was there, or another that means the same (samples).
    if to_json(request) != to_json(request) | {name: value}:
        raise AssertionError(f"{name} was read as something else")


@settings(max_examples=100)
@given(
    long=st.text(st.characters(codec="ascii"), min_size=1025, max_size=1100),
    name=st.sampled_from(["client", "federation", "id", "issued", "expires", "nonce", "signature", "samples", "new"]),
)
def test_no_message_echoes_more_than_60_characters(long: str, name: str) -> None:
    request = issue("clinic-a", None, KEY, "run-7", NOW)
    with pytest.raises(InputError) as read:
        from_json({**to_json(request), name: [long] if name == "samples" else long})
    with pytest.raises(InputError) as unknown:
        from_json({**to_json(request), long: 1})
    fields = {
        "client": "client_id",
        "issued": "issued_at",
        "expires": "expires_at",
        "samples": "sample_ids",
        "new": "id",
    }
    change: dict[str, Any] = {fields.get(name, name): (long,) if name == "samples" else long}
    altered = dataclasses.replace(request, **change)
    with pytest.raises(IntegrityError) as checked:
        check(altered, PUBLIC, "run-7", NOW)
    for message in (str(read.value), str(unknown.value), str(checked.value)):
        assert message.isprintable() and message.isascii() and len(message) < 300
        assert not any(long[i : i + 61] in message for i in range(len(long) - 60))


@settings(max_examples=200)
@given(received=moments)
def test_due_is_the_same_day_or_the_last_of_the_next_month(received: datetime) -> None:
    due = due_at(received)
    assert (due.year * 12 + due.month) - (received.year * 12 + received.month) == 1
    assert due.day == received.day or due.day == calendar.monthrange(due.year, due.month)[1] < received.day
    assert due.timetz() == received.timetz() and 28 <= (due - received).days <= 31
