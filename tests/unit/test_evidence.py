"""Evidence: what is sealed verifies, whatever was tampered with does not, and the verifier stands alone."""

from __future__ import annotations

import ast
import base64
import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oblivion.errors import IntegrityError
from oblivion.ledger import evidence
from oblivion.ledger import verify_evidence as verifier
from oblivion.ledger.evidence import LIMITS, PAYLOAD_TYPE, PREDICATE_TYPE, predicate, seal, statement
from oblivion.ledger.verify_evidence import UnreadableError, main, pae, root_from, verify

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
SOURCE = Path(verifier.__file__)
FILES = {
    "before": {"adapter_model.safetensors": b"learned", "adapter_config.json": b"{}"},
    "after": {"adapter_model.safetensors": b"forgotten", "adapter_config.json": b"{}"},
}
DIGESTS = {when: {n: hashlib.sha256(data).hexdigest() for n, data in files.items()} for when, files in FILES.items()}
WITHIN = types.MappingProxyType({"value": 0.25, "interval": (0.125, 0.5), "n": 40})


def pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def tree(entries: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, from its definition."""
    if len(entries) == 1:
        return sha256(b"\0" + entries[0])
    k = max(2**i for i in range(64) if 2**i < len(entries))
    return sha256(b"\1" + tree(entries[:k]) + tree(entries[k:]))


def path(m: int, entries: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1, from its definition."""
    if len(entries) == 1:
        return []
    k = max(2**i for i in range(64) if 2**i < len(entries))
    return [*path(m, entries[:k]), tree(entries[k:])] if m < k else [*path(m - k, entries[k:]), tree(entries[:k])]


def log(entry: Any = None, key: Ed25519PrivateKey = KEY) -> dict[str, Any]:
    """A log of eleven entries whose eighth is the commit."""
    default = {"kind": "removal", "request": "req-1", "guarantee": "exact", **DIGESTS}
    text = json.dumps(default if entry is None else entry, sort_keys=True, separators=(",", ":"))
    entries = [b"entry %d" % number for number in range(11)]
    entries[7] = text.encode()
    root = tree(entries).hex()
    return {
        "entry": text,
        "index": 7,
        "size": 11,
        "root": root,
        "proof": [digest.hex() for digest in path(7, entries)],
        "signature": key.sign(f"oblivion ledger checkpoint 1\n11\n{root}\n".encode()).hex(),
    }


def parts() -> dict[str, Any]:
    """The arguments of `predicate`."""
    return {
        "request": {
            "id": "req-1",
            "client": "client-5",
            "scope": "client",
            "samples": None,
            "key_id": "ab" * 32,
            "issued_at": "2026-03-01T12:00:00Z",
            "received_at": "2026-03-01T13:00:00+01:00",
            "due_at": "2026-04-01T12:00:00Z",
            "committed_at": "2026-03-03T12:00:00Z",
        },
        "plan": {
            "method": "retrain",
            "label": "retrain from round 4",
            "guarantee": "exact",
            "from_round": 4,
            "restored_round": 3,
            "phases": ({"kind": "learn", "first": 4, "last": 10},),
            "checklist": (
                {"item": "global adapter", "status": "cleaned", "why": "computed again"},
                {"item": "selection", "status": "unaffected", "why": "each client's hash is its own"},
            ),
            "cost": {"client_steps": 70, "fraction": 0.7},
        },
        "measured": {
            "original": {"forget_Q_A_Prob": {"value": 0.9, "interval": None, "n": 40}},
            "oracle": {"forget_Q_A_Prob": {**WITHIN}, "privleak": {"value": None, "interval": None, "n": 0}},
            "retrain": {"forget_Q_A_Prob": {**WITHIN}},
        },
        "erased": {
            "contributions": 7,
            "states": 7,
            "keys": 1,
            "adapters": 1,
            "files": 9,
            "invalidated": ["adapters/original"],
        },
        "log": log(),
        "environment": {
            "versions": {"torch": "2.8.0"},
            "code_fingerprint": "0123456789abcdef",
            "machine": {"device": "cpu"},
            "model_digest": "sha256:1",
            "seed": 0,
        },
    }


def made(change: Callable[[dict[str, Any]], None] = lambda parts: None) -> dict[str, Any]:
    """A statement, its arguments changed."""
    arguments = parts()
    change(arguments)
    return statement(DIGESTS["before"], DIGESTS["after"], predicate(**arguments))


def sign(content: Any, key: Ed25519PrivateKey = KEY) -> dict[str, Any]:
    """An envelope around anything: what a signer without our checks could make."""
    payload = content if isinstance(content, bytes) else json.dumps(content).encode()
    keyid = hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    return {
        "payloadType": "application/vnd.in-toto+json",
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": keyid, "sig": base64.b64encode(key.sign(signed)).decode()}],
    }


def failures(envelope: Any, key: Ed25519PrivateKey = KEY, **folders: Path) -> list[str]:
    """The names of the checks that failed."""
    data = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    return [check.name for check in verify(data, pem(key), **folders) if check.status == "FAILED"]


def put(value: Any, where: tuple[Any, ...], new: Any) -> None:
    for step in where[:-1]:
        value = value[step]
    value[where[-1]] = new


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value, everything that holds something included."""
    for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*where, step)
        if isinstance(inner, dict | list):
            yield from places(inner, (*where, step))


@pytest.fixture(scope="module")
def sealed() -> dict[str, Any]:
    return seal(made(), KEY)


@pytest.fixture
def folder(tmp_path: Path, sealed: Mapping[str, Any]) -> Path:
    """The evidence, the key, and the adapters before and after."""
    (tmp_path / "evidence.json").write_text(json.dumps(sealed))
    (tmp_path / "public.pem").write_bytes(pem(KEY))
    for when, files in FILES.items():
        (tmp_path / when).mkdir()
        for name, data in files.items():
            (tmp_path / when / name).write_bytes(data)
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    adapters = [f"--before={folder / 'before'}", f"--after={folder / 'after'}"]
    return [str(folder / "evidence.json"), f"--key={folder / 'public.pem'}", *adapters, *more]


# What is signed, by hand and by definition.


def test_pae_is_the_example_of_the_protocol() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", b"\0\xff") == b"DSSEv1 2 \xc3\xa9 2 \0\xff"  # lengths are of bytes
    assert pae("", b"") == b"DSSEv1 0  0 "


def test_roots_follow_from_the_definition() -> None:
    for size in range(1, 20):
        entries = [b"%d" % number for number in range(size)]
        for index in range(size):
            leaf, proof = sha256(b"\0" + entries[index]), path(index, entries)
            assert root_from(leaf, index, size, proof) == tree(entries)
            for wrong in ([*proof, bytes(32)], proof[:-1] if proof else [bytes(32)]):
                with pytest.raises(ValueError):
                    root_from(leaf, index, size, wrong)
        with pytest.raises(ValueError):
            root_from(sha256(b""), size, size, path(0, entries))
    with pytest.raises(ValueError):
        root_from(sha256(b""), 0, 0, [])


def test_roots_of_the_certificate_transparency_test_vectors() -> None:
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    entries = [bytes.fromhex(leaf) for leaf in leaves]
    root = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    proof = [sha256(b"\0" + entries[4]), sha256(b"\1" + sha256(b"\0" + entries[6]) + sha256(b"\0" + entries[7]))]
    assert root_from(sha256(b"\0" + entries[5]), 5, 8, [*proof, tree(entries[:4])]).hex() == root
    assert (
        root_from(sha256(b"\0"), 0, 1, []).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    )


def test_what_a_sealed_statement_looks_like(sealed: dict[str, Any]) -> None:
    assert sealed == sign(base64.b64decode(sealed["payload"])) and sealed == seal(made(), KEY)
    payload = base64.b64decode(sealed["payload"])
    content = json.loads(payload)
    assert payload == json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    assert content["_type"] == "https://in-toto.io/Statement/v1"
    assert content["predicateType"] == PREDICATE_TYPE == "urn:oblivion:federated-unlearning:1"
    assert sealed["payloadType"] == PAYLOAD_TYPE
    names = ["after/adapter_config.json", "after/adapter_model.safetensors"]
    names += ["before/adapter_config.json", "before/adapter_model.safetensors"]
    assert [subject["name"] for subject in content["subject"]] == names
    assert content["subject"][1]["digest"] == {"sha256": hashlib.sha256(b"forgotten").hexdigest()}
    assert content["predicate"]["limits"] == list(LIMITS) and content["predicate"]["environment"]["seed"] == 0
    assert content["predicate"]["measured"]["oracle"]["forget_Q_A_Prob"]["interval"] == [0.125, 0.5]


def test_a_sealed_statement_verifies(folder: Path, sealed: dict[str, Any]) -> None:
    checks = verify(json.dumps(sealed).encode(), pem(KEY), folder / "before", folder / "after")
    assert {check.status for check in checks} == {"ok"} and len(checks) == 10
    alone = verify(json.dumps(sealed).encode(), pem(KEY), None, None)
    assert [check.status for check in alone] == ["ok"] * 6 + ["not checked"] * 4


def test_url_safe_base64_is_accepted(sealed: dict[str, Any]) -> None:
    signature = sealed["signatures"][0]
    safe = {**signature, "sig": signature["sig"].replace("+", "-").replace("/", "_")}
    assert safe != signature, "choose another key, so that the alphabets differ"
    assert not failures({**sealed, "signatures": [safe]})


# Tampering.


def test_every_flipped_byte_is_refused(sealed: dict[str, Any]) -> None:
    payload, signature = base64.b64decode(sealed["payload"]), base64.b64decode(sealed["signatures"][0]["sig"])
    for data, where in ((payload, ("payload",)), (signature, ("signatures", 0, "sig"))):
        for index in range(len(data)):
            flipped = bytearray(data)
            flipped[index] ^= 1 << index % 8
            envelope = copy.deepcopy(sealed)
            put(envelope, where, base64.b64encode(flipped).decode())
            assert failures(envelope) == ["signature"]


@pytest.mark.parametrize(
    "where", [("payload",), ("signatures", 0, "sig"), ("signatures", 0, "keyid"), ("payloadType",)]
)
def test_every_changed_character_is_refused(sealed: dict[str, Any], where: tuple[Any, ...]) -> None:
    text: Any = sealed
    for step in where:
        text = text[step]
    # base64 leaves the lowest bits of its last character unused.
    changes = [(index, chr(ord(character) ^ 1)) for index, character in enumerate(text)]
    changes += [(index, new) for index in range(-6, 0) for new in ("A", "B", "Q", "=", "", "é") if new != text[index]]
    for index, new in changes:
        envelope = copy.deepcopy(sealed)
        put(envelope, where, text[:index] + new + text[index:][1:])
        assert failures(envelope)[0] in ("envelope", "signature")


def test_swapped_subjects_are_refused(folder: Path, sealed: dict[str, Any]) -> None:
    content = json.loads(base64.b64decode(sealed["payload"]))
    first, second = content["subject"][1], content["subject"][3]
    first["digest"], second["digest"] = second["digest"], first["digest"]
    swapped = {**sealed, "payload": base64.b64encode(json.dumps(content).encode()).decode()}
    assert failures(swapped) == ["signature"]
    # The key itself may swap them, but then the files say otherwise.
    assert failures(sign(content), before=folder / "before", after=folder / "after") == [first["name"], second["name"]]


def test_a_wrong_key_and_a_wrong_key_id_are_refused(sealed: dict[str, Any]) -> None:
    assert failures(sealed, key=OTHER) == ["signature"]
    assert failures(sign(made(), OTHER)) == ["signature"]
    forged = sign(made(), OTHER)
    forged["signatures"][0]["keyid"] = sealed["signatures"][0]["keyid"]
    assert failures(forged) == ["signature"]
    hidden = copy.deepcopy(sealed)
    hidden["signatures"][0]["keyid"] = forged["signatures"][0]["keyid"][::-1]
    assert failures(hidden) == ["signature"]


def test_a_second_signature_cannot_stand_for_the_first(sealed: dict[str, Any]) -> None:
    (own,), (foreign,) = sealed["signatures"], sign(made(), OTHER)["signatures"]
    forged = {**foreign, "keyid": own["keyid"]}
    for signatures in ([own, forged], [forged, own], [forged], [foreign]):
        assert failures({**sealed, "signatures": signatures}) == ["signature"]
    # An auditor may sign too; who does not give that key learns that it was not checked.
    both = json.dumps({**sealed, "signatures": [foreign, own]}).encode()
    said = [(check.status, check.detail) for check in verify(both, pem(KEY)) if check.name == "signature"]
    assert [status for status, _ in said] == ["ok", "not checked"] and foreign["keyid"] in said[1][1]


REQUIRED = [
    where for where in places(json.loads(json.dumps(parts()))) if where[0] != "measured" or len(where) in (1, 4)
]
FREE = {("plan", "phases"), ("erased", "invalidated"), ("log", "proof"), ("environment", "versions")}
FREE |= {("environment", "machine"), ("environment", "seed")}


@pytest.mark.parametrize(
    "where",
    [where for where in REQUIRED if where[:2] not in FREE or (len(where) == 2 and where[1] != "seed")],
    ids=lambda where: ".".join(map(str, where)),
)
def test_a_stripped_field_is_refused(where: tuple[Any, ...]) -> None:
    arguments = json.loads(json.dumps(parts()))
    if isinstance(where[-1], int):
        put(arguments, where, {})  # an item of a list
    else:
        inner = arguments
        for step in where[:-1]:
            inner = inner[step]
        del inner[where[-1]]
    content = {**made(), "predicate": {**arguments, "limits": list(LIMITS)}}
    assert failures(sign(content)) == ["statement"]
    with pytest.raises(IntegrityError, match="no evidence was signed"):
        seal(content, KEY)
    if len(where) > 1:
        with pytest.raises(IntegrityError, match=str(where[-1]) if isinstance(where[-1], str) else "is missing"):
            predicate(**arguments)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("request.scope", "everybody"),
        ("request.scope", "samples"),
        ("request.samples", -1),
        ("request.samples", True),
        ("request.client", ""),
        ("request.issued_at", "2026-13-01T12:00:00Z"),
        ("request.due_at", "2026-04-01T12:00:00"),
        ("request.due_at", "tomorrow"),
        ("request.due_at", "\u0662026-04-01T12:00:00Z"),
        ("request.received_at", 5),
        ("request.committed_at", "2026-02-01T12:00:00Z"),
        ("plan.guarantee", "suppression"),
        ("plan.guarantee", "Exact"),
        ("plan.guarantee", ["exact"]),
        ("plan.from_round", 4.0),
        ("plan.restored_round", "3"),
        ("plan.phases", "all"),
        ("plan.phases", [[]]),
        ("plan.checklist", []),
        ("plan.checklist", [{"item": "adapter", "status": "fine", "why": "so"}]),
        ("plan.cost", 3),
        ("plan.cost.client_steps", 2**60),
        ("plan.cost.fraction", "0.5"),
        ("plan.cost.token_fraction", "0.5"),
        ("request.shared", []),
        ("request.shared", [3]),
        ("request.shared", "row-1"),
        ("measured", {}),
        ("measured", {"original": {}, "oracle": {}}),
        ("measured", {"original": {}, "oracle": {}, "local": {}}),
        ("measured", {"original": {}, "oracle": {}, "local": {"a": {**WITHIN}}, "exclude": {"a": {**WITHIN}}}),
        ("measured", {"original": {}, "local": {"a": {**WITHIN}}}),
        ("measured.retrain.forget_Q_A_Prob.value", "0.25"),
        ("measured.retrain.forget_Q_A_Prob.interval", [0.5, 0.125]),
        ("measured.retrain.forget_Q_A_Prob.interval", [0.5]),
        ("measured.retrain.forget_Q_A_Prob.interval", []),
        ("measured.retrain.forget_Q_A_Prob.n", None),
        ("measured.oracle", 3),
        ("erased.keys", -1),
        ("erased.invalidated", None),
        ("log.root", "AB" * 32),
        ("log.proof", ["00"]),
        ("log.signature", "00" * 63),
        ("environment.machine", {}),
        ("limits", []),
        ("limits", "none"),
    ],
)
def test_an_edited_field_is_refused(where: str, value: Any) -> None:
    content = json.loads(json.dumps(made()))
    put(content, ("predicate", *where.split(".")), value)
    assert failures(sign(content)) == ["statement"]
    arguments = {**parts(), "limits": LIMITS}
    put(arguments, tuple(where.split(".")), value)
    with pytest.raises(IntegrityError, match="no evidence was made"):
        predicate(**arguments)


@pytest.mark.parametrize("field", ["_type", "predicateType", "subject", "predicate"])
def test_another_statement_is_refused(field: str) -> None:
    content = made()
    for wrong in ({**content, field: "https://example.com"}, {k: v for k, v in content.items() if k != field}):
        assert failures(sign(wrong)) == ["statement"]
        with pytest.raises(IntegrityError):
            seal(wrong, KEY)


@pytest.mark.parametrize(
    "name",
    ["after/../../etc/passwd", "/etc/passwd", "after/.hidden", "after/", "else/x", "after/a\nb", "after/a\\b", 3],
)
def test_a_subject_that_leaves_its_folder_is_refused(name: Any) -> None:
    content = made()
    content["subject"].append({"name": name, "digest": {"sha256": "00" * 32}})
    assert failures(sign(content)) == ["statement"]


def test_subjects_are_the_adapter_before_and_after_each_once() -> None:
    twice = made()
    twice["subject"].append(twice["subject"][0])
    for content in (twice, statement({}, DIGESTS["after"], made()["predicate"]), {**made(), "subject": []}):
        assert failures(sign(content)) == ["statement"]
        with pytest.raises(IntegrityError, match="subject"):
            seal(content, KEY)
    with pytest.raises(IntegrityError, match="sha256"):
        seal(statement(DIGESTS["before"], {"adapter_model.safetensors": "?"}, made()["predicate"]), KEY)


def test_an_exact_guarantee_covers_its_checklist() -> None:
    def uncover(parts: dict[str, Any]) -> None:
        parts["plan"]["checklist"] = ({"item": "momentum", "status": "not covered", "why": "kept"},)

    content = made(uncover)
    assert failures(sign(content)) == ["guarantee"]
    with pytest.raises(IntegrityError, match="does not cover: momentum"):
        seal(content, KEY)

    def weaken(parts: dict[str, Any]) -> None:
        uncover(parts)
        parts["plan"]["guarantee"] = "approximate"
        parts["log"] = log({"request": "req-1", "guarantee": "approximate", **DIGESTS})

    assert not failures(seal(made(weaken), KEY))


ENTRY = {"request": "req-1", "guarantee": "exact", "after": DIGESTS["after"]}
PROOF = log()["proof"]


@pytest.mark.parametrize(
    "change",
    [
        {"proof": PROOF[:-1]},
        {"proof": [*PROOF, PROOF[0]]},
        {"proof": PROOF[::-1]},
        {"proof": ["00" * 32, *PROOF[1:]]},
        {"proof": []},
        {"index": 6},
        {"index": 11},
        {"size": 12},
        {"size": 0},
        {"root": "00" * 32},
        {"entry": log()["entry"] + " "},
        {"entry": "entry 7"},
        {"signature": "00" * 64},
        {"signature": log(key=OTHER)["signature"]},
        log(key=OTHER),
        log({**ENTRY, "request": "req-2"}),
        log({**ENTRY, "guarantee": "none"}),
        log({**ENTRY, "after": DIGESTS["before"]}),
        log(["req-1"]),
    ],
)
def test_a_wrong_place_in_the_log_is_refused(change: dict[str, Any]) -> None:
    content = made(lambda parts: parts["log"].update(change))
    assert failures(sign(content)) == ["log"]
    with pytest.raises(IntegrityError, match="log:"):
        seal(content, KEY)


def test_a_log_of_one_entry_has_an_empty_proof() -> None:
    root = sha256(b"\0" + log()["entry"].encode()).hex()
    signature = KEY.sign(f"oblivion ledger checkpoint 1\n1\n{root}\n".encode()).hex()
    alone = {"index": 0, "size": 1, "root": root, "proof": [], "signature": signature}
    assert not failures(seal(made(lambda parts: parts["log"].update(alone)), KEY))


def test_files_must_be_there_and_unchanged(folder: Path, sealed: dict[str, Any]) -> None:
    adapter, config = folder / "after/adapter_model.safetensors", folder / "after/adapter_config.json"
    adapter.write_bytes(b"forgotten?")
    assert failures(sealed, after=folder / "after") == ["after/adapter_model.safetensors"]
    adapter.unlink()
    config.unlink()
    config.mkdir()
    os.mkfifo(adapter)  # opening it would wait for ever
    gone = ["after/adapter_config.json", "after/adapter_model.safetensors"]
    assert failures(sealed, before=folder / "before", after=folder / "after") == gone
    assert failures(sealed, after=folder / "nowhere") == gone
    assert main(arguments(folder)) == 4


def test_a_file_that_cannot_be_read_fails(folder: Path) -> None:
    content = made()
    content["subject"].append({"name": "after/" + "a" * 300, "digest": {"sha256": "00" * 32}})
    assert failures(sign(content), after=folder / "after") == ["after/" + "a" * 300]


# What is never signed.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x"), b"x", {1, 2}])
def test_only_plain_json_is_signed(value: Any) -> None:
    with pytest.raises(IntegrityError, match="not plain JSON"):
        made(lambda parts: parts["environment"].update(odd=value))


def test_the_limits_cannot_be_left_out() -> None:
    with pytest.raises(IntegrityError, match="limits leaves out"):
        predicate(**parts(), limits=LIMITS[1:])
    assert predicate(**parts(), limits=[*LIMITS, "More."])["limits"][-1] == "More."
    assert len(LIMITS) == 7 and all(limit.endswith(".") for limit in LIMITS)


def test_arguments_are_copied_and_left_alone() -> None:
    arguments = parts()
    content = predicate(**arguments)
    content["plan"]["checklist"].clear()
    assert arguments == parts()


def test_more_rows_that_others_hold_than_rows_are_refused() -> None:
    content = parts()
    content["request"].update(scope="samples", samples=1, shared=["a", "b"])
    with pytest.raises(IntegrityError, match=r"request\.shared names more rows than request\.samples"):
        predicate(**content)


# The command line.


def test_the_verifier_says_everything_in_plain_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder)) == 0
    said = capsys.readouterr().out
    for text in (
        "ok           signature: by the given key",
        "ok           due date: kept, 29 days",
        "ok           after/adapter_model.safetensors: sha256",
        "not checked  replay: --run was not given",
        "Asked: that everything of client-5 be forgotten (request req-1",
        "  due: 2026-04-01T12:00:00Z",
        "Done: retrain from round 4 (retrain); undone from round 4 on, state 3 restored",
        "  phase: first 4, kind 'learn', last 10",
        "  cost: 70 client-steps, 0.7 of retraining",
        "  cleaned: global adapter (computed again)",
        "Erased: 7 contributions, 7 states, 1 keys, 1 adapters, 9 files",
        "Guarantee: exact: bit for bit the model",
        "  original, forget_Q_A_Prob: 0.9, no interval, over 40 rows",
        "  retrain, forget_Q_A_Prob: 0.25, [0.125, 0.5], over 40 rows",
        "  oracle, privleak: not measured, no interval, over 0 rows",
        *(f"  - {limit}" for limit in LIMITS),
    ):
        assert f"\n{text}" in f"\n{said}"
    assert "FAILED" not in said


def test_rows_that_others_hold_and_costs_in_tokens_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def more(parts: dict[str, Any]) -> None:
        parts["request"].update(samples=3, shared=["row-1", "row-7", "row-1"])
        parts["plan"]["cost"].update(token_fraction=0.75)

    (folder / "evidence.json").write_text(json.dumps(seal(made(more), KEY)))
    assert main(arguments(folder)) == 0
    said = capsys.readouterr().out
    assert "  others also hold 3 of these rows; they stay learned from there: row-1, row-7\n" in said
    assert "  cost: 70 client-steps, 0.7 (in tokens 0.75) of retraining\n" in said


def test_being_late_is_said_and_is_no_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def late(parts: dict[str, Any]) -> None:
        parts["request"].update(scope="samples", samples=3, due_at="2026-03-02T12:00:00Z")
        parts["plan"].update(restored_round=None)
        parts["measured"].update(oracle={})

    (folder / "evidence.json").write_text(json.dumps(seal(made(late), KEY)))
    assert main(arguments(folder)) == 0
    said = capsys.readouterr().out
    assert "ok           due date: LATE by 1 day, 0:00:00" in said and "that 3 samples of client-5" in said
    assert "no state restored" in said and "  oracle: not measured\n" in said


def test_the_earliest_and_latest_times_are_compared(folder: Path) -> None:
    times = {"received_at": "0001-01-01T00:00:00+23:59", "due_at": "9999-12-31T23:59:59-23:59"}
    (folder / "evidence.json").write_text(json.dumps(seal(made(lambda parts: parts["request"].update(times)), KEY)))
    assert main(arguments(folder)) == 0


def test_no_text_can_steer_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "\x1b[2Jx\nok           replay: all fine\r\u202e\x9bé\U0001f600"
    (folder / "evidence.json").write_text(json.dumps(seal(made(lambda parts: parts["plan"].update(label=nasty)), KEY)))
    assert main(arguments(folder)) == 0
    said = capsys.readouterr().out
    assert said.isascii() and all(c == "\n" or c.isprintable() for c in said)
    assert "\nok           replay" not in said and "\\x1b[2Jx\\nok" in said


def test_a_statement_that_does_not_hold_is_not_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "public.pem").write_bytes(pem(OTHER))
    assert main(arguments(folder)) == 4
    said = capsys.readouterr().out
    assert "FAILED       signature" in said and "not checked  all else" in said and "client-5" not in said


@pytest.mark.parametrize(("answer", "code"), [("after", 0), ("before", 4), ("", 0), (RuntimeError("no\nkeys"), 4)])
def test_a_replay_is_compared_with_the_adapter_after(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: Any, code: int
) -> None:
    asked = []

    def verify_head(run: Path, request: str) -> Any:
        asked.append((run, request))
        if isinstance(answer, Exception):
            raise answer
        return DIGESTS[answer]["adapter_model.safetensors"] if answer else ""

    module = types.ModuleType("oblivion.federation.replay")
    monkeypatch.setattr(module, "verify_head", verify_head, raising=False)
    monkeypatch.setitem(sys.modules, "oblivion.federation.replay", module)
    assert main(arguments(folder, f"--run={folder}")) == code
    assert asked == [(folder, "req-1")]
    said = "not checked  replay" if answer == "" else "ok           replay" if code == 0 else "FAILED       replay"
    assert said in capsys.readouterr().out


def test_without_oblivion_a_replay_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "oblivion.federation.replay", None)
    assert main(arguments(folder, f"--run={folder}")) == 4
    assert "FAILED       replay: ModuleNotFoundError" in capsys.readouterr().out


# Malformed input.

DEEP = b"[" * 100_000
BAD_FILES = {
    "empty": b"",
    "blank": b" \n",
    "text": b"hello",
    "binary": bytes(range(256)),
    "utf-16": "{}".encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "cut off": b'{"payload": "aaaa", ',
    "deep": DEEP,
    "deep objects": b'{"a":' * 100_000,
    "huge number": b"1" * 10_000,
    "one key twice": b'{"payload": "", "payload": ""}',
    "too large": b"{}" + b" " * (verifier.MAX_BYTES - 1),
    "null": b"null",
    "NaN": b"NaN",
    "number": b"1e999",
    "string": b'"evidence"',
    "list": b"[]",
    "empty object": b"{}",
    "only types": json.dumps({"payloadType": PAYLOAD_TYPE, "payload": None, "signatures": None}).encode(),
    "surrogate": b'{"payloadType": "\\ud800", "payload": "\\ud800", "signatures": ["\\ud800"]}',
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_malformed_evidence_ends_with_a_message(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "evidence.json").write_bytes(BAD_FILES[name])
    code = main(arguments(folder))
    said = capsys.readouterr()
    is_json = list(BAD_FILES).index(name) >= list(BAD_FILES).index("null")
    assert code == (4 if is_json else 3)
    assert "FAILED       envelope" in said.out if is_json else said.err.count("\n") == 1


@pytest.mark.parametrize("value", [None, 0, True, 1.5, "", "x", "é", "\ud800", [], [[]], [None], {}, {"a": 1}])
@pytest.mark.parametrize(
    "where", [("payload",), ("payloadType",), ("signatures",), ("signatures", 0), ("signatures", 0, "sig")]
)
def test_wrong_types_in_the_envelope_are_refused(sealed: dict[str, Any], where: tuple[Any, ...], value: Any) -> None:
    envelope = copy.deepcopy(sealed)
    put(envelope, where, value)
    assert failures(envelope) == ["envelope"] or (where[-1] == "sig" and failures(envelope) == ["signature"])


def test_nothing_unsigned_stands_in_the_envelope(sealed: dict[str, Any]) -> None:
    (own,) = sealed["signatures"]
    for wrong in ({**sealed, "guarantee": "exact"}, {**sealed, "signatures": [{**own, "note": "audited"}]}):
        assert failures(wrong) == ["envelope"]
    assert failures({**sealed, "signatures": [own] * 17}) == ["envelope"]
    assert not failures({**sealed, "signatures": [own] * 16})


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", b"\xff", DEEP, b"[]", b"null", b"9" * 5000, b'{"_type": 1, "_type": 2}', b'"\\ud800"'],
    ids=["empty", "text", "binary", "deep", "list", "null", "huge", "twice", "surrogate"],
)
def test_a_signed_payload_that_is_no_statement_is_refused(payload: bytes) -> None:
    assert failures(sign(payload))[0] in ("envelope", "statement")


ec_key = generate_private_key(SECP256R1())
BAD_KEYS = {
    "empty": b"",
    "text": b"hello",
    "binary": bytes(range(256)),
    "another kind": pem(ec_key),
    "private": KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    "cut off": pem(KEY)[:60],
    "raw": KEY.public_key().public_bytes_raw(),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_malformed_key_ends_with_a_message(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "public.pem").write_bytes(BAD_KEYS[name])
    assert main(arguments(folder)) == 3
    assert "not an Ed25519 public key" in capsys.readouterr().err
    with pytest.raises(UnreadableError):
        verify(b"{}", BAD_KEYS[name])


def test_missing_input_ends_with_a_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = arguments(folder)
    for index, wrong in ((0, "nowhere.json"), (0, str(folder)), (1, "--key=nowhere.pem"), (3, "--after=nowhere")):
        assert main([*good[:index], wrong, *good[index + 1 :]]) == 3
        assert capsys.readouterr().err.count("\n") == 1
    assert main([*good, "--run=nowhere"]) == 3
    with pytest.raises(SystemExit, match="2"):
        main([])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(places(json.loads(json.dumps(made()))))), json_values)
def test_anything_anywhere_in_a_signed_statement_ends_with_a_verdict(
    folder: Path, where: tuple[Any, ...], value: Any
) -> None:
    content = json.loads(json.dumps(made()))
    put(content, where, value)
    (folder / "evidence.json").write_text(json.dumps(sign(content)))
    assert main(arguments(folder)) in (0, 4)


# Alone.


def test_the_verifier_imports_the_standard_library_alone() -> None:
    source = ast.parse(SOURCE.read_text("utf-8"))
    imported = [name.name for node in ast.walk(source) if isinstance(node, ast.Import) for name in node.names]
    imported += [node.module or "." for node in ast.walk(source) if isinstance(node, ast.ImportFrom)]
    others = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert others and all(name.startswith("cryptography.") for name in others)
    assert not [node.level for node in ast.walk(source) if isinstance(node, ast.ImportFrom) and node.level]
    tops = [node for node in source.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in tops if "oblivion" in ast.dump(node)]


def run_alone(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", *command], cwd=folder, capture_output=True, text=True, timeout=60, check=False, env={}
    )


def test_the_verifier_runs_alone(folder: Path) -> None:
    alone = folder / "alone"
    alone.mkdir()
    shutil.copy(SOURCE, alone)
    done = run_alone(alone, "verify_evidence.py", *arguments(folder))
    assert done.returncode == 0 and not done.stderr and "What this does not prove" in done.stdout
    # The same where oblivion cannot be imported even if it is installed.
    blocked = f"import runpy, sys; sys.modules['oblivion'] = None; sys.argv = ['v', *{arguments(folder)!r}]; "
    again = run_alone(alone, "-c", blocked + "runpy.run_path('verify_evidence.py', run_name='__main__')")
    assert again.returncode == 0 and again.stdout == done.stdout
    (folder / "after/adapter_model.safetensors").write_bytes(b"changed")
    assert run_alone(alone, "verify_evidence.py", *arguments(folder)).returncode == 4
    (folder / "evidence.json").write_bytes(DEEP)
    broken = run_alone(alone, "verify_evidence.py", *arguments(folder))
    assert broken.returncode == 3 and "Traceback" not in broken.stderr
    without = "import runpy, sys; sys.modules['cryptography'] = None; sys.argv = ['v', 'v.py', '--key', 'v.py']; "
    shutil.copy(SOURCE, alone / "v.py")
    missing = run_alone(alone, "-c", without + "runpy.run_path('v.py', run_name='__main__')")
    assert missing.returncode == 3 and "cryptography" in missing.stderr and "Traceback" not in missing.stderr


def test_the_verifier_runs_as_a_module_and_imports_nothing_heavy(folder: Path) -> None:
    code = f"import sys; from oblivion.ledger.verify_evidence import main; c = main({arguments(folder)!r}); "
    code += "sys.exit(c if not {'torch', 'sqlalchemy', 'flwr'} & set(sys.modules) else 9)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "oblivion.ledger.verify_evidence", *arguments(folder)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def test_evidence_imports_cryptography_late() -> None:
    code = "import sys, oblivion.ledger.evidence; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
    assert evidence.__doc__
