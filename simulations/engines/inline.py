"""The inline engine, the reference and the debugger: hosts are objects in this process, without Flower and Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from oblivion.config import RunConfig
from oblivion.federation.host import Host
from oblivion.federation.hosts import Hosts
from oblivion.types import HostReply, HostRequest

T = TypeVar("T")


class InlineHosts:
    """Hosts that answer one after another, in the process that asks."""

    def __init__(self, count: int) -> None:
        self._hosts = {f"host-{index}": Host() for index in range(count)}

    def names(self) -> tuple[str, ...]:
        """Return ``host-0``, ``host-1``, ..."""
        return tuple(sorted(self._hosts))

    def ask(self, requests: Sequence[HostRequest]) -> Iterator[HostReply]:
        """Answer every request in order."""
        for request in requests:
            yield self._hosts[request.host].answer(request)


def run(config: RunConfig, work: Callable[[Hosts], T]) -> T:
    """Run `work` with inline hosts."""
    return work(InlineHosts(config.simulation.host_count))
