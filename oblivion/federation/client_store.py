"""The home of what a client keeps for itself: named tensors by client, branch and round, never sent to the server.

In a simulation it is the folder ``client-store/`` of the run, beside the keys of the clients. A visit writes it before
its host replies, so a visit that is repeated after a crash writes the same bytes again, because it reads only what
earlier rounds wrote. A tensor that is named as one of the adapter's stands in its place when that client trains or
measures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from oblivion.errors import InputError, IntegrityError
from oblivion.files import erase, make_folder, write_atomically
from oblivion.run_format import CLIENT_STORE
from oblivion.types import Adapter, check_client_id

Line: TypeAlias = Sequence[tuple[str, int, int]]
"""The rounds that led somewhere, in order: (branch, first round, last round)."""
_BRANCH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127})?")
_FILE = re.compile(r"([1-9][0-9]{0,8})\.safetensors")


@dataclass(frozen=True, order=True)
class Kept:
    """Where one state lies: its client, branch and round, and its file."""

    client: str
    branch: str
    round: int
    path: Path


class ClientStore:
    """The private states of a host's clients.

    Parameters
    ----------
    folder : Path
        A folder of that name and of this user; a host never makes it, `prepare` does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_message(cls, store: str) -> ClientStore:
        """Return the store that a message names.

        Raises
        ------
        InputError
            If it is not the store of a run on this machine.
        """
        folder = Path(store)
        usable = folder.is_absolute() and folder.name == CLIENT_STORE and folder.is_dir() and not folder.is_symlink()
        if not usable or folder.stat().st_uid != os.geteuid():
            raise InputError(
                f"this host has no {CLIENT_STORE}/ of the run, so its clients can keep nothing; use a host on the "
                "machine that has the run"
            )
        return cls(folder)

    def prepare(self) -> None:
        """Make the folder, readable by its owner alone, where it is missing."""
        make_folder(self.folder, 0o700)

    def write(self, client: str, branch: str, round: int, tensors: Adapter) -> None:
        """Keep a client's tensors (fp32, finite) of a round, durably; what was there of the round is replaced.

        Raises
        ------
        InputError
            If they are not finite fp32 tensors.
        OblivionError
            If the disk is full or cannot be written.
        """
        import torch
        from safetensors.torch import save

        path = self._place(client, branch) / f"{round}.safetensors"
        own = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
        if not all(tensor.dtype is torch.float32 and bool(tensor.isfinite().all()) for tensor in own.values()):
            raise InputError(f"what {client} keeps is not finite numbers in fp32; smaller settings may help")
        for folder in list(path.relative_to(self.folder).parents)[-2::-1]:  # one by one: each is its owner's alone
            make_folder(self.folder / folder, 0o700)
        write_atomically(path, save(own), 0o600)

    def newest(self, client: str, line: Line) -> Adapter:
        """Return what a client kept last on a line of rounds; empty where it kept nothing.

        Raises
        ------
        IntegrityError
            If the file is not what a visit wrote.
        """
        for branch, first, last in reversed(line):
            folder = self._place(client, branch)
            rounds = [kept.round for kept in _files(client, branch, folder) if first <= kept.round <= last]
            if rounds:
                return _read(folder / f"{max(rounds)}.safetensors")
        return {}

    def kept(self) -> list[Kept]:
        """Return all that the store holds, in order of client, branch and round."""
        found: list[Kept] = []
        for place, folders, _ in os.walk(self.folder):  # never through links
            parts = Path(place).relative_to(self.folder).parts
            folders.sort()
            if len(parts) > 1:
                found += _files(parts[0], "/".join(parts[1:]), Path(place))
        return sorted(found)

    def forget_branch(self, branch: str) -> None:
        """Erase what clients kept on a branch."""
        for kept in self.kept():
            if kept.branch == branch:
                erase(kept.path)

    def _place(self, client: str, branch: str) -> Path:
        """Return the folder of a client's states on a branch.

        Raises
        ------
        InputError
            If a name has another form, or a link on the way leads elsewhere.
        """
        if not _BRANCH.fullmatch(branch):
            raise InputError("a client's private state was asked for on a branch whose name no run gives")
        parts = (check_client_id(client), *branch.split("/"))
        for count in range(1, len(parts) + 1):
            place = self.folder.joinpath(*parts[:count])
            if place.is_symlink():
                raise InputError(f"{place} is a link, which may lead into another run; put the folder itself there")
        return self.folder.joinpath(*parts)


def _files(client: str, branch: str, folder: Path) -> Iterator[Kept]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if found := _FILE.fullmatch(path.name):
            yield Kept(client, branch, int(found[1]), path)


def _read(path: Path) -> Adapter:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("it is no file")
        tensors = load(path.read_bytes())
        if not all(t.dtype is torch.float32 and bool(t.isfinite().all()) for t in tensors.values()):
            raise ValueError("it holds other numbers")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, MemoryError):
        raise IntegrityError(f"{path} is not what a visit wrote; restore it from its backup") from None
    return {name: tensors[name] for name in sorted(tensors)}


def personal(shared: Adapter, private: Adapter) -> Adapter:
    """Return an adapter in which a client's own tensors stand in the place of those of the same name.

    Raises
    ------
    IntegrityError
        If one of them has another shape.
    """
    own = {name: private[name] for name in private if name in shared}
    if any(own[name].shape != shared[name].shape for name in own):
        raise IntegrityError("a client keeps a tensor with another shape than the run's adapter has")
    return {name: own.get(name, shared[name]) for name in shared} if own else shared
