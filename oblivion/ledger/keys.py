"""The secrets of a run, in a folder of their own: whoever has the ledger without them can read nothing of it.

Every client's contributions to a branch have a key, and so has every global state; destroying a key erases what it
sealed, also where a copy of the sealed file survives. So that nothing of the key itself survives, its bytes are
overwritten on the disk before it is removed. A branch with privacy noise has a secret that the noise is drawn from:
whoever has it can subtract the noise, so it goes when the branch goes. The signing key makes the ledger's checkpoints
and evidence.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oblivion.errors import IntegrityError, OblivionError
from oblivion.files import erase, make_folder, rewrite, write_atomically
from oblivion.types import CLIENT_ID
from oblivion.untrusted import read_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_KEY_BYTES = 32
_OWNER_ONLY = 0o600
_LISTS = ("exclusions.json",)
"""The files beside the keys that hold a list; the others hold an object."""


class Keys:
    """Keys by name, one file each, readable by their owner alone.

    Parameters
    ----------
    folder : Path
        ``keys/`` of a run; made with mode 0700 where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, bytes] = {}
        try:
            make_folder(folder, mode=0o700)
        except OSError as error:
            raise OblivionError(
                f"{folder} could not be made: {error.strerror}; free some space or choose another --out"
            ) from None

    def make(self, name: str) -> bytes:
        """The key called `name`; a new one from the operating system's randomness where there is none."""
        if name not in self._known and not self._path(name).is_file():
            key = secrets.token_bytes(_KEY_BYTES)
            write_atomically(self._path(name), key, _OWNER_ONLY)
            self._known[name] = key
        return self.get(name)

    def get(self, name: str) -> bytes:
        """The key called `name`.

        Raises
        ------
        IntegrityError
            If there is none, or it is not a key.
        """
        if name not in self._known:
            path = self._path(name)
            if not path.is_file():
                raise IntegrityError(f"{path} is missing: what it sealed cannot be read; restore keys/ from its backup")
            with path.open("rb") as file:
                key = file.read(_KEY_BYTES + 1)
            if len(key) != _KEY_BYTES:
                raise IntegrityError(f"{path} is not a key of {_KEY_BYTES} bytes; restore keys/ from its backup")
            self._known[name] = key
        return self._known[name]

    def destroy(self, name: str) -> None:
        """Overwrite a key, then remove it: what is only removed stays on the disk."""
        self._known.pop(name, None)
        erase(self._path(name))

    def names(self) -> Iterator[str]:
        """The names of all sealing keys and noise secrets (not the signing key)."""
        for part in ("contributions", "states", "noise"):
            for path in sorted((self.folder / part).rglob("*.key")):
                yield path.relative_to(self.folder).as_posix().removesuffix(".key")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def create(self) -> None:
        """Make the keys of a new ledger."""
        for name in ("signing", "log"):
            self.make(name)

    def signing(self) -> Ed25519PrivateKey:
        """The ledger's signing key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.get("signing"))

    def log(self) -> bytes:
        """The key under which every entry of the log is authenticated."""
        return self.get("log")

    def read_json(self, name: str) -> Any:
        """One of the files beside the keys; None where there is none.

        Raises
        ------
        IntegrityError
            If it is not JSON, or no list or object where the run wrote one.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        value = read_json(path, "what the run wrote: restore keys/ from its backup", error=IntegrityError)
        if not isinstance(value, list if name in _LISTS else dict):
            raise IntegrityError(f"{path}: is not what the run wrote; restore keys/ from its backup")
        return value

    def write_json(self, name: str, value: Any, personal: bool = True) -> None:
        """Write one of the files beside the keys; of one that is `personal`, overwrite what it held before."""
        text = json.dumps(value, sort_keys=True, ensure_ascii=False)
        write = rewrite if personal else write_atomically
        write(self.folder / name, text.encode(), _OWNER_ONLY)


def contribution_key(client: str, branch: int) -> str:
    """Name of the key of one client's contributions to one branch (by the branch's number in the ledger).

    Raises
    ------
    IntegrityError
        If the client's id is no slug: it becomes the name of a folder.
    """
    if not CLIENT_ID.fullmatch(client):
        raise IntegrityError(f"{client[:80]!a} is not a client id; nothing of it is kept")
    return f"contributions/{client}/{branch}"


def noise_key(branch: int) -> str:
    """Name of the secret that a branch's privacy noise is drawn from."""
    return f"noise/{branch}"


def state_key(branch: int, round: int) -> str:
    """Name of the key of the global state after one round of one branch."""
    return f"states/{branch}/{round}"
