"""Which adapters a run made, and which of them were erased: the log knows them by digest for ever.

Every adapter is noted in the log before it is written. A removal that is committed erases all that were noted before
it, but for the new head and the oracles of its request. Where one comes back (from a backup, by hand), it is found
again by its file's digest, or by that of its tensors where it was saved anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oblivion.ledger import reading
from oblivion.ledger.book import Book

WEIGHTS = "adapter_model.safetensors"
_CHUNK = 1 << 20
_LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header at most, as the format's own reader has it."""


def note_adapter(book: Book, place: str, weights: bytes) -> None:
    """Note an adapter in the log; nothing happens where it is noted already since the last removal.

    Parameters
    ----------
    book : Book
        Open.
    place : str
        The adapter's folder in the run directory.
    weights : bytes
        The content of its safetensors file.
    """
    facts = {"place": place, "sha256": hashlib.sha256(weights).hexdigest(), "size": len(weights)}
    facts["tensors"] = tensors_digest(weights) or ""
    for text in reversed(book.entries()):
        entry = reading.parse(text)
        if entry.get("kind") == "removal":
            break
        if entry.get("kind") == "adapter" and all(entry.get(name) == value for name, value in facts.items()):
            return
    with book.transaction() as writer:
        writer.note("adapter", facts)


@dataclass(kw_only=True)
class Erased:
    """Adapters that a removal erased: digest of the file to its place, digest of the tensors likewise, sizes."""

    files: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    sizes: set[int] = field(default_factory=set)


def erased_adapters(entries: Mapping[int, Mapping[str, Any]]) -> Erased:
    """What the log says was erased with the last removal or before it."""
    removals = [seq for seq, entry in entries.items() if entry.get("kind") == "removal"]
    erased, last = Erased(), max(removals, default=0)
    kept: set[Any] = set()
    for seq in removals:
        for name in ("before", "after"):
            said = entries[seq].get(name)
            digest = said.get(WEIGHTS) if isinstance(said, dict) else None
            if seq == last and name == "after":
                kept.add(digest)
            elif isinstance(digest, str):
                erased.files[digest] = "a model that a removal replaced"
    oracle = re.compile(rf"adapters/oracle.*-{re.escape(str(entries[last].get('request')))}") if last else None
    for seq, entry in entries.items():
        if entry.get("kind") != "adapter" or not isinstance(entry.get("sha256"), str) or oracle is None:
            continue
        place, digest, tensors = str(entry.get("place")), entry["sha256"], entry.get("tensors")
        if seq > last or oracle.fullmatch(place) or digest in kept:
            kept |= {digest, tensors}
        else:
            erased.files[digest] = place
            if isinstance(tensors, str) and tensors:
                erased.tensors[tensors] = place
            if type(size := entry.get("size")) is int:
                erased.sizes.add(size)
    for digest in kept:
        erased.files.pop(digest, None)
        erased.tensors.pop(digest, None)
    return erased


def find_adapters(root: Path, erased: Erased) -> Iterator[tuple[Path, str | None, str]]:
    """Look for erased adapters anywhere under a run directory.

    Every file of the size of an erased adapter is hashed, and every safetensors file, whatever it is called by.

    Yields
    ------
    tuple of (Path, str or None, str)
        A file that is an erased adapter, with the place where it lay once; or what could not be looked at, with None
        and the reason.
    """
    if not erased.files:
        return
    unread: list[tuple[Path, None, str]] = []

    def failed(error: OSError) -> None:
        unread.append((Path(error.filename or root), None, str(error.strerror)))

    for place, folders, files in os.walk(root, onerror=failed):
        folder = Path(place)
        yield from ((folder / n, None, "a link to a folder") for n in sorted(folders) if (folder / n).is_symlink())
        for name in sorted(files):
            path = folder / name
            try:
                about = path.stat()
                if not stat.S_ISREG(about.st_mode):
                    yield path, None, "no regular file"
                    continue
                found = _recognised(path, about.st_size, erased)
            except OSError as error:
                yield path, None, str(error.strerror)
                continue
            if found is not None:
                yield path, found, ""
    yield from unread


def _recognised(path: Path, size: int, erased: Erased) -> str | None:
    with path.open("rb") as file:
        start = file.read(9)
        tensors = size > 8 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= min(size, _LARGEST_HEADER)
        if not tensors and size not in erased.sizes:
            return None
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        if (place := erased.files.get(digest.hexdigest())) is not None or not tensors:
            return place
        file.seek(0)
        return erased.tensors.get(tensors_digest(file.read()) or "") if erased.tensors else None


def tensors_digest(data: bytes) -> str | None:
    """A digest of the tensors in the bytes of a safetensors file, whatever they are called and in whatever order.

    Returns
    -------
    str or None
        SHA-256 in hex over every tensor's own, sorted; None where the bytes are no safetensors file.
    """
    length = int.from_bytes(data[:8], "little")
    header = reading.parse(data[8 : 8 + length]) if length <= _LARGEST_HEADER else {}
    body, parts = memoryview(data)[8 + length :], []
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or any(type(end) is not int for end in offsets):
            return None
        if not 0 <= offsets[0] <= offsets[1] <= len(body):
            return None
        shape = json.dumps([tensor.get("dtype"), tensor.get("shape")])
        parts.append(hashlib.sha256(shape.encode() + body[offsets[0] : offsets[1]]).hexdigest())
    return hashlib.sha256("".join(sorted(parts)).encode()).hexdigest() if parts else None
