"""What an engine provides: a way to ask hosts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from oblivion.types import HostReply, HostRequest


class Hosts(Protocol):
    """How hosts are asked; the only thing an engine provides."""

    def names(self) -> tuple[str, ...]:
        """The hosts that are there, sorted."""
        ...

    def ask(self, requests: Sequence[HostRequest]) -> Iterator[HostReply]:
        """Send one message to each host; replies as they come. A host that does not answer in time is left out."""
        ...
