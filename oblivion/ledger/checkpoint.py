"""A signed statement of how long the log is and what its Merkle root is.

The server signs with Ed25519 (RFC 8032) the text that `_message` writes, whose first line names its version. Whoever
keeps a checkpoint can later hold the log to it: a shorter log, or one without a consistency proof from it, is another.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from oblivion.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_VERSION = "oblivion ledger checkpoint 1"
_SIZE_LIMIT = 2**64
_ROOT_SIZE = 32
_SIGNATURE_SIZE = 64
_NEXT = "take the checkpoint from the ledger again"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The log's size and root, signed.

    Attributes
    ----------
    size : int
        How many entries the log has, from 0 to 2**64 - 1.
    root : bytes
        Its Merkle root, 32 bytes.
    signature : bytes
        The Ed25519 signature, 64 bytes. `check_checkpoint` says whether it holds.

    Raises
    ------
    InputError
        If one of them is of another type, length or range.
    """

    size: int
    root: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 0 <= self.size < _SIZE_LIMIT:  # JSON's true is an int as well
            raise _malformed("size", self.size, "a whole number from 0 to 2**64 - 1")
        for name, length in (("root", _ROOT_SIZE), ("signature", _SIGNATURE_SIZE)):
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) != length:
                raise _malformed(name, value, f"{length} bytes")

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads.

        Returns
        -------
        dict
            ``size`` as a number, ``root`` and ``signature`` in lower-case hexadecimal digits.
        """
        return {"size": self.size, "root": self.root.hex(), "signature": self.signature.hex()}

    @classmethod
    def from_json(cls, value: Any) -> Checkpoint:
        """Read a checkpoint; its signature is not checked here.

        Parameters
        ----------
        value : Any
            What JSON held: an object with ``size``, ``root`` and ``signature``, and nothing else.

        Returns
        -------
        Checkpoint
            The checkpoint.

        Raises
        ------
        InputError
            If it is anything else.
        """
        if not isinstance(value, dict):
            raise InputError(f"a checkpoint is {_shown(value)}; it must be a JSON object; {_NEXT}")
        fields = {"size", "root", "signature"}
        if set(value) != fields:
            missing, unknown = sorted(fields - set(value)), sorted(map(str, set(value) - fields))
            raise InputError(
                f"a checkpoint has the fields size, root and signature; missing: {missing}, "
                f"unknown: {_shown(unknown)}; {_NEXT}"
            )
        return cls(
            size=value["size"],
            root=_from_hex("root", value["root"], _ROOT_SIZE),
            signature=_from_hex("signature", value["signature"], _SIGNATURE_SIZE),
        )


def sign_checkpoint(key: Ed25519PrivateKey, size: int, root: bytes) -> Checkpoint:
    """Sign the log's size and root.

    Parameters
    ----------
    key : Ed25519PrivateKey
        The server's key.
    size : int
        How many entries the log has.
    root : bytes
        Its Merkle root, 32 bytes.

    Returns
    -------
    Checkpoint
        The signed statement; the same key, size and root give the same bytes.

    Raises
    ------
    InputError
        If size or root is malformed.
    """
    unsigned = Checkpoint(size=size, root=root, signature=bytes(_SIGNATURE_SIZE))
    return replace(unsigned, signature=key.sign(_message(unsigned)))


def check_checkpoint(key: Ed25519PublicKey, checkpoint: Checkpoint) -> bool:
    """Say whether a checkpoint was signed with a key.

    Parameters
    ----------
    key : Ed25519PublicKey
        The server's public key.
    checkpoint : Checkpoint
        What it is said to have signed.

    Returns
    -------
    bool
        Whether the signature is that key's, for this size and root.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(checkpoint.signature, _message(checkpoint))
    except InvalidSignature:
        return False
    return True


def _message(checkpoint: Checkpoint) -> bytes:
    """The signed text; each checkpoint has one, and no two have the same."""
    return f"{_VERSION}\n{checkpoint.size}\n{checkpoint.root.hex()}\n".encode("ascii")


def _from_hex(name: str, value: object, length: int) -> bytes:
    # bytes.fromhex would take blanks and capitals too, so that one checkpoint could be written in many ways.
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * length}}}", value):
        raise _malformed(name, value, f"{2 * length} lower-case hexadecimal digits")
    return bytes.fromhex(value)


def _malformed(name: str, value: object, accepted: str) -> InputError:
    return InputError(f"a checkpoint's {name} is {_shown(value)}; it must be {accepted}; {_NEXT}")


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not write out a number of more than 4300 digits
        return f"too long a {type(value).__name__}"
