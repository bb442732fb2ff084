"""A client's public key from a file: the raw bytes, hexadecimal digits, or PEM."""

from __future__ import annotations

import re
from pathlib import Path

from oblivion.errors import InputError
from oblivion.ledger.curve import KEY_BYTES
from oblivion.untrusted import read

_EXPECTED = f"an Ed25519 public key: {KEY_BYTES} bytes, {2 * KEY_BYTES} hexadecimal digits, or PEM"
_LARGEST = 4096


def read_public_key(path: Path) -> bytes:
    """The raw key in a file, 32 bytes; whether it can be an honest one is for `Register.enrol` to say.

    Raises
    ------
    InputError
        If the file holds none; also if it holds a private key, which belongs to its client alone.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read(path, _EXPECTED, most=_LARGEST)
    if len(data) == KEY_BYTES:
        return data
    if re.fullmatch(rb"[0-9a-fA-F]{64}\s*", data):
        return bytes.fromhex(data.decode("ascii").strip())
    if b"PRIVATE KEY" in data:
        raise InputError(f"{path}: holds a private key, which its client keeps to itself; expected {_EXPECTED}")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path}: holds no key; expected {_EXPECTED}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: holds a key of another kind; expected {_EXPECTED}")
    return key.public_bytes_raw()
