"""Sealed blobs: AES-256-GCM, named by the SHA-256 of what lies on disk.

The name is the integrity check of the stored bytes; the cipher's tag binds the content to its key and to what it is
said to be, so that no blob can stand in for another.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from oblivion.errors import IntegrityError
from oblivion.files import is_partial, remove, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

_NONCE_BYTES = 12
_LARGE = 2**28
"""Bytes of a blob that is looked at piece by piece first."""
_NAME = re.compile(r"[0-9a-f]{64}")


class Blobs(Protocol):
    """Where sealed bytes are kept; an object store would be another implementation."""

    def put(self, data: bytes) -> str:
        """Store bytes durably and return their name, the SHA-256 in hex."""
        ...

    def get(self, name: str) -> bytes:
        """The stored bytes; `IntegrityError` if they are missing or not what the name says."""
        ...

    def delete(self, name: str) -> None:
        """Remove a blob for good."""
        ...

    def names(self) -> set[str]:
        """The names of all blobs."""
        ...

    def sweep(self) -> None:
        """Remove what an interrupted `put` left."""
        ...


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderBlobs:
    """Blobs as files, ``<first two digits>/<name>``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise IntegrityError(f"{name[:80]!r} is not the name of a blob")
        return self.folder / name[:2] / name

    def put(self, data: bytes) -> str:
        """Store bytes durably and return their name."""
        name = hashlib.sha256(data).hexdigest()
        write_atomically(self._path(name), data, 0o600)
        return name

    def get(self, name: str) -> bytes:
        """The stored bytes."""
        path = self._path(name)
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):  # whoever opens a pipe waits
                raise IntegrityError(f"blob {path} is no file; restore the ledger from its backup")
            if about.st_size > _LARGE and _file_digest(path) != name:  # before it takes memory
                raise IntegrityError(f"blob {path} was changed; restore the ledger from its backup")
            data = path.read_bytes()
        except FileNotFoundError:
            raise IntegrityError(f"blob {path} is missing; restore the ledger from its backup") from None
        except OSError as error:
            raise IntegrityError(f"blob {path} cannot be read: {error.strerror}; restore it from its backup") from None
        if hashlib.sha256(data).hexdigest() != name:
            raise IntegrityError(f"blob {path} was changed; restore the ledger from its backup")
        return data

    def delete(self, name: str) -> None:
        """Remove a blob for good."""
        remove(self._path(name))

    def names(self) -> set[str]:
        """The names of all blobs."""
        return {path.name for path in self._files() if path.parent.name == path.name[:2] and _NAME.fullmatch(path.name)}

    def _files(self) -> Iterator[Path]:
        """What lies where blobs do; nothing behind a link."""
        for folder in self.folder.glob("??"):
            if not self.folder.is_symlink() and not folder.is_symlink():
                yield from folder.glob("*")

    def sweep(self) -> None:
        """Remove what an interrupted `put` left."""
        for path in self._files():
            if is_partial(path.name) and not path.is_symlink():
                remove(path)


def seal(key: bytes, data: bytes, context: str) -> bytes:
    """Encrypt and authenticate: a random nonce, then the ciphertext with its tag; `context` is authenticated too."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, context.encode())


def unseal(key: bytes, data: bytes, context: str) -> bytes:
    """Decrypt what `seal` made with the same key and context.

    Raises
    ------
    IntegrityError
        If it was not.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], context.encode())
    except (InvalidTag, ValueError):
        raise IntegrityError(
            f"{context} cannot be opened: its key in keys/ is not the one it was sealed with"
        ) from None


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as safetensors bytes; those that share memory are written as often as they are named."""
    import torch
    from safetensors.torch import save

    return save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()})


def unpack(data: bytes) -> dict[str, Tensor]:
    """Tensors from what `pack` made, sorted by name."""
    from safetensors.torch import load

    tensors = load(data)
    return {name: tensors[name] for name in sorted(tensors)}
