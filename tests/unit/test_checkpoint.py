"""Checkpoints: what is signed, byte by byte; other keys; JSON, well formed and not."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oblivion.errors import InputError
from oblivion.ledger.checkpoint import Checkpoint, check_checkpoint, sign_checkpoint
from oblivion.ledger.merkle import Frontier, leaf_hash, tree_root

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
ROOT = tree_root([leaf_hash(b"a"), leaf_hash(b"b"), leaf_hash(b"c")])
SIGNED = sign_checkpoint(KEY, 3, ROOT)
TEXT = b"oblivion ledger checkpoint 1\n3\n" + ROOT.hex().encode() + b"\n"


def flips(data: bytes) -> list[bytes]:
    """The data with one bit changed, for every bit."""
    return [data[:k] + bytes([data[k] ^ 1 << bit]) + data[k + 1 :] for k in range(len(data)) for bit in range(8)]


def test_a_signed_checkpoint_holds_and_says_what_was_signed() -> None:
    assert (SIGNED.size, SIGNED.root, len(SIGNED.signature)) == (3, ROOT, 64)
    assert check_checkpoint(KEY.public_key(), SIGNED)
    assert sign_checkpoint(KEY, 3, ROOT) == SIGNED  # Ed25519 draws nothing at random


def test_the_signed_text_is_the_documented_one_and_no_other() -> None:
    assert KEY.sign(TEXT) == SIGNED.signature
    for text in flips(TEXT):
        with pytest.raises(InvalidSignature):
            KEY.public_key().verify(SIGNED.signature, text)


def test_no_bit_of_the_signature_can_change() -> None:
    for signature in flips(SIGNED.signature):
        assert not check_checkpoint(KEY.public_key(), dataclasses.replace(SIGNED, signature=signature))


def test_no_bit_of_the_root_or_the_size_can_change() -> None:
    for root in flips(ROOT):
        assert not check_checkpoint(KEY.public_key(), dataclasses.replace(SIGNED, root=root))
    for size in [0, 2, 4, 30, 33, *(3 ^ 1 << bit for bit in range(64))]:
        assert not check_checkpoint(KEY.public_key(), dataclasses.replace(SIGNED, size=size))


def test_another_key_neither_checks_nor_signs() -> None:
    assert not check_checkpoint(OTHER.public_key(), SIGNED)
    assert not check_checkpoint(KEY.public_key(), sign_checkpoint(OTHER, 3, ROOT))


def test_a_signature_of_something_else_does_not_hold() -> None:
    for text in (b"", ROOT, TEXT.replace(b" 1\n", b" 2\n"), TEXT[:-1], TEXT.upper()):
        assert not check_checkpoint(KEY.public_key(), dataclasses.replace(SIGNED, signature=KEY.sign(text)))


@pytest.mark.parametrize(("size", "root"), [(0, Frontier().root()), (3, ROOT), (2**64 - 1, bytes(32))])
def test_json_there_and_back(size: int, root: bytes) -> None:
    signed = sign_checkpoint(KEY, size, root)
    again = Checkpoint.from_json(json.loads(json.dumps(signed.to_json())))
    assert again == signed and check_checkpoint(KEY.public_key(), again)
    assert signed.to_json() == {"size": size, "root": root.hex(), "signature": signed.signature.hex()}


@pytest.mark.parametrize("value", [None, [], "x", 3, True, [SIGNED.to_json()]], ids=repr)
def test_json_that_is_no_object(value: Any) -> None:
    with pytest.raises(InputError, match="must be a JSON object"):
        Checkpoint.from_json(value)


@pytest.mark.parametrize("name", ["size", "root", "signature"])
def test_json_without_a_field(name: str) -> None:
    value = SIGNED.to_json()
    del value[name]
    with pytest.raises(InputError, match=rf"missing: \['{name}'\], unknown: \[\]"):
        Checkpoint.from_json(value)


@pytest.mark.parametrize("extra", ["note", 1, None])
def test_json_with_a_field_too_many(extra: Any) -> None:
    with pytest.raises(InputError, match=rf"missing: \[\], unknown: \['{extra}'\]"):
        Checkpoint.from_json({**SIGNED.to_json(), extra: 1})


MALFORMED: list[tuple[str, Any, str]] = [
    *(("size", bad, "a whole number from 0") for bad in (-1, 2**64, 10**5000, 3.0, float("nan"), "3", True, None, [])),
    *(
        (name, bad, f"{digits} lower-case hexadecimal digits")
        for name, digits, good in (("root", 64, ROOT.hex()), ("signature", 128, SIGNED.signature.hex()))
        for bad in (
            *(good[:-2], good[:-1], f"{good}00", good.upper(), f" {good}", f"{good[:-1]} ", f"{good}\n"),
            *("", "g" * digits, "٣" * digits, None, 3, [], bytes.fromhex(good)),
        )
    ),
]


@pytest.mark.parametrize(
    ("name", "bad", "accepted"), MALFORMED, ids=[f"{k}-{case[0]}" for k, case in enumerate(MALFORMED)]
)
def test_json_with_a_malformed_field(name: str, bad: Any, accepted: str) -> None:
    with pytest.raises(
        InputError, match=f"checkpoint's {name} is .*; it must be {accepted}.*; take the checkpoint"
    ) as caught:
        Checkpoint.from_json({**SIGNED.to_json(), name: bad})
    assert len(str(caught.value)) < 250, "a long value is cut"


@pytest.mark.parametrize(("size", "root"), [(-1, ROOT), (2**64, ROOT), (True, ROOT), (3, ROOT[:-1]), (3, ROOT.hex())])
def test_what_is_malformed_is_not_signed(size: Any, root: Any) -> None:
    with pytest.raises(InputError, match=r"a checkpoint's (size|root) is"):
        sign_checkpoint(KEY, size, root)


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(65), None, "x" * 64])
def test_a_signature_is_64_bytes(signature: Any) -> None:
    with pytest.raises(InputError, match=r"a checkpoint's signature is .*; it must be 64 bytes"):
        Checkpoint(size=3, root=ROOT, signature=signature)


def test_the_import_does_not_load_cryptography() -> None:
    code = "import sys, oblivion.ledger.checkpoint; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
