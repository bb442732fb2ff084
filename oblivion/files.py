"""Write files that are there whole or not at all, in durable steps at which a test can stop.

Everything that a run must not lose is written here or by the ledger's database. Each step of it (write, fsync, rename,
unlink, commit, checkpoint) is announced to `watch_steps`, so that a test can kill the process before and after it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from oblivion.errors import ConfigError, OblivionError

Step: TypeAlias = Literal["write", "fsync", "rename", "unlink", "commit", "checkpoint"]
Watch: TypeAlias = Callable[[Literal["before", "after"], Step], None]

PARTIAL = "oblivion-partial"
"""The end of a file's name while its content is being written; see `staging_path`."""
_PARTIAL_NAME = re.compile(rf"\..+\.[0-9a-f]{{16}}\.{PARTIAL}(-journal|-wal|-shm)?", re.DOTALL)
_CHUNK = 1 << 20
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_watch: Watch | None = None


def watch_steps(watch: Watch | None) -> None:
    """Have `watch` called before and after every durable step of this process; None calls nobody."""
    global _watch
    _watch = watch


@contextlib.contextmanager
def durable_step(step: Step) -> Iterator[None]:
    """Announce the body as one durable step."""
    if _watch is not None:
        _watch("before", step)
    yield
    if _watch is not None:
        _watch("after", step)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: only then does a renaming or a removal survive a crash."""
    with durable_step("fsync"):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it where they are missing, durably."""
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, path in enumerate(missing) if path.exists())]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for path in missing[::-1]:
        sync_folder(path.parent)


def staging_path(path: Path) -> Path:
    """Return where the content of `path` is written first: a hidden name beside it, which is used only once."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{PARTIAL}")


def is_partial(name: str) -> bool:
    """Return whether `staging_path` makes such a name, or SQLite keeps a file of this name beside such a one."""
    return _PARTIAL_NAME.fullmatch(name) is not None


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file so that it is either the old one or the new one, also after a crash.

    Parameters
    ----------
    path : Path
        Its folders are made where they are missing.
    data : bytes
        The whole content.
    mode : int, default 0o666
        Permissions, less those that the process masks.

    Raises
    ------
    OblivionError
        If the disk is full or cannot be written; the old file is still there.
    """
    staging = staging_path(path)
    try:
        make_folder(path.parent)
        _write(staging, data, mode)
        with durable_step("rename"):
            os.replace(staging, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
        raise OblivionError(
            f"{path} could not be written: {error.strerror}; free some space or choose another --out"
        ) from None


def rewrite(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file as `write_atomically` does, and overwrite what it held before.

    The old content keeps a second name until it is overwritten; of a crash in between, `remove_partial` finds it. On a
    disk without hard links it is not overwritten.

    Raises
    ------
    OblivionError
        If the disk is full or cannot be written.
    """
    old = staging_path(path)
    try:
        if path.is_file() and not path.is_symlink():
            with durable_step("rename"):
                os.link(path, old)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise OblivionError(
                f"{path} could not be replaced: {error.strerror or error}; free some space and try again"
            ) from None
    try:
        write_atomically(path, data, mode)
    except OblivionError:
        with contextlib.suppress(OSError):
            if old.samefile(path):
                old.unlink()  # otherwise its content is overwritten when the run is opened next
        raise
    erase(old)


def _write(path: Path, data: bytes, mode: int = 0o666) -> None:
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, mode)

    with open(path, "wb", opener=opener) as file:
        with durable_step("write"):
            file.write(data)
            file.flush()
        with durable_step("fsync"):
            os.fsync(file.fileno())


def write_folder(folder: Path, contents: Mapping[str, bytes], mode: int = 0o777) -> None:
    """Write a new folder so that it is there with all of its files or not at all, also after a crash.

    Parameters
    ----------
    folder : Path
        There must be none yet; the folders above it are made where they are missing.
    contents : mapping of str to bytes
        The files by name; those in a folder of the folder (``keys/a.key``) are readable by their owner alone.
    mode : int, default 0o777
        Permissions of the folder, less those that the process masks.

    Raises
    ------
    ConfigError
        If another process has made it in the meantime; its files stay as they are.
    OblivionError
        If the disk is full or cannot be written; nothing of the folder is there then.
    """
    _remove_abandoned(folder)
    try:
        with _staging(folder, mode) as staging:
            written = staging
            try:
                _fill(staging, contents)
                with durable_step("rename"):
                    os.replace(staging, folder)
                    written = folder
                sync_folder(folder.parent)
            except OSError:
                shutil.rmtree(written, ignore_errors=True)
                raise
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ConfigError(
                f"{folder} exists already: another process has just made it; choose another --out"
            ) from None
        raise OblivionError(
            f"{folder} could not be written: {error.strerror}; free some space or choose another --out"
        ) from None


def _fill(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, data in contents.items():
        inner = (folder / name).parent != folder
        if inner:
            make_folder((folder / name).parent, 0o700)
        _write(folder / name, data, 0o600 if inner else 0o666)
    for place in sorted({(folder / name).parent for name in contents}, reverse=True):
        sync_folder(place)


@contextlib.contextmanager
def _staging(folder: Path, mode: int) -> Iterator[Path]:
    """Make and hold a folder to write in; another one where somebody took it for abandoned before it was held."""
    handle = None
    while handle is None:
        staging = staging_path(folder)
        try:
            make_folder(staging, mode)
        except OSError:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            handle = _hold(staging)
            if not staging.is_dir():
                os.close(handle)
                handle = None
    try:
        yield staging
    finally:
        os.close(handle)


def _hold(folder: Path) -> int:
    """Show other processes that this one is writing a folder; that ends when the process does, however it ends."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove_abandoned(folder: Path) -> None:
    """Remove what a crash left of earlier writes of the same folder, and nothing that a process is writing now."""
    if not folder.parent.is_dir():
        return
    for path in sorted(folder.parent.iterdir()):
        if path.name.startswith(f".{folder.name}.") and is_partial(path.name):
            with contextlib.suppress(BlockingIOError, NotADirectoryError, FileNotFoundError):
                handle = _hold(path)
                try:
                    if path.is_dir():  # otherwise another process has finished it
                        remove(path)
                finally:
                    os.close(handle)


def remove_partial(root: Path, folders: Iterable[str]) -> None:
    """Remove what writes that a crash interrupted left in folders that nobody else writes to.

    Only names that `staging_path` makes go, and no link is followed.

    Parameters
    ----------
    root : Path
        A folder; directly in it they go as well.
    folders : iterable of str
        The folders in it that are searched to the bottom.
    """
    found = [path for path in root.iterdir() if is_partial(path.name)]
    for name in folders:
        if not (root / name).is_symlink():
            for place, inside, files in os.walk(root / name):  # never through links
                found += [Path(place, one) for one in (*inside, *files) if is_partial(one)]
                inside[:] = [one for one in inside if not is_partial(one)]
    for path in sorted(found):
        if path.is_symlink():  # no write of ours makes a link
            continue
        if path.is_file() and path.stat().st_nlink == 1:
            erase(path)  # it may be what a file held before `rewrite`
        else:  # the file itself still has this content
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link for good, never what a link leads to; nothing happens where there is none.

    Raises
    ------
    OblivionError
        If it cannot be removed.
    """
    try:
        if not os.path.lexists(path):
            return
        with durable_step("unlink"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise OblivionError(
            f"{path} could not be removed: {error.strerror or error}; make it writable and try again"
        ) from None


def erase(path: Path) -> None:
    """Overwrite a file, or every file in a folder, with random bytes, and then remove it.

    The bytes are on the disk before the name goes. A file that has further names (hard links) is overwritten under all
    of them; a link is removed and what it leads to is left alone. On disks that write elsewhere what is overwritten
    (flash, copy-on-write) the old bytes stay until the disk uses their place again.

    Raises
    ------
    OblivionError
        If it cannot be overwritten or removed.
    """
    if path.is_symlink():
        return remove(path)
    files = [path]
    if path.is_dir():  # never through links
        files = [Path(place, name) for place, _, names in os.walk(path) for name in sorted(names)]
    for file in files:
        if file.is_file() and not file.is_symlink():
            _overwrite(file)
    remove(path)


def _overwrite(path: Path) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            size = os.fstat(handle).st_size
            with durable_step("write"):
                for start in range(0, size, _CHUNK):
                    os.pwrite(handle, os.urandom(min(_CHUNK, size - start)), start)
            with durable_step("fsync"):
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise OblivionError(
            f"{path} could not be overwritten: {error.strerror or error}; make it writable and try again"
        ) from None
