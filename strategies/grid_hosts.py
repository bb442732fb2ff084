"""Ask hosts through a Flower grid."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from oblivion.errors import FederationError, IntegrityError
from oblivion.replies import one_line
from oblivion.types import HostReply, HostRequest, StartRequest
from oblivion.wire import MALFORMED, check_reply, pack_requests, unpack_reply

_TICK = 0.01
_START_TIMEOUT = 120.0
_SETTLE = 1.0
_LAST = 20_000
"""The number of characters of an error, from its end, that are looked at."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class GridHosts:
    """Flower nodes as hosts; a host's name is its node id.

    Parameters
    ----------
    grid : Grid
        The grid of the ServerApp.
    deadline : float
        Seconds within which a host must answer one message.
    expected : int, default 0
        The number of nodes to wait for; 0 waits until their number no longer changes.
    stop : threading.Event, optional
        Set from outside to end a wait.

    Raises
    ------
    FederationError
        If the nodes do not come.
    """

    def __init__(self, grid: Grid, deadline: float, expected: int = 0, stop: threading.Event | None = None) -> None:
        self._grid = grid
        self._deadline = deadline
        self._stop = stop or threading.Event()
        self._nodes = {str(node): node for node in sorted(self._wait_for_nodes(expected))}

    def _wait_for_nodes(self, expected: int) -> list[int]:
        end = time.monotonic() + _START_TIMEOUT
        nodes: list[int] = []
        since = time.monotonic()
        while time.monotonic() < end:
            now = list(self._grid.get_node_ids())
            if len(now) != len(nodes):
                nodes, since = now, time.monotonic()
            settled = time.monotonic() - since > _SETTLE
            if nodes and (len(nodes) >= expected if expected else settled):
                return nodes
            self._pause()
        raise FederationError(f"{len(nodes)} of {expected or 'at least 1'} hosts came within {_START_TIMEOUT:.0f} s")

    def _pause(self) -> None:
        if self._stop.wait(_TICK):
            raise KeyboardInterrupt

    def names(self) -> tuple[str, ...]:
        """Return the nodes, sorted."""
        return tuple(self._nodes)

    def start(self, config: Mapping[str, Any]) -> None:
        """Have every host load its model; the replies are left where they arrive."""
        requests = [StartRequest(host=name, config=config) for name in self._nodes]
        for request, records in zip(requests, pack_requests(requests), strict=True):
            node = self._nodes[request.host]
            list(self._grid.push_messages([Message(records, dst_node_id=node, message_type=request.kind)]))

    def ask(self, requests: Sequence[HostRequest]) -> Iterator[HostReply]:
        """Send one message to each host, and yield the usable replies as they come.

        Messages go and come one by one: which host a reply is from says the message that it was pulled for, never the
        reply itself, and one that cannot be read costs no other host its own.
        """
        waiting: dict[str, HostRequest] = {}
        for request, records in zip(requests, pack_requests(requests), strict=True):
            message = Message(records, dst_node_id=self._nodes[request.host], message_type=request.kind)
            sent = next(iter(self._grid.push_messages([message])), "")
            if sent:
                waiting[sent] = request
            else:
                yield _failed(request, "its host has left: no message can be sent to it")
        end = time.monotonic() + self._deadline
        while waiting and time.monotonic() < end:
            for sent, request in list(waiting.items()):
                reply = self._pull(sent, request)
                if reply is not None:
                    del waiting[sent]
                    yield reply
            if waiting:
                self._pause()

    def _pull(self, sent: str, request: HostRequest) -> HostReply | None:
        """Return what came in answer to one message; None while there is nothing."""
        try:
            messages = list(self._grid.pull_messages([sent]))
            return _read(messages[0], request) if messages else None
        except IntegrityError as error:
            return _failed(request, str(error))
        except (*MALFORMED, DecodeError) as error:  # Flower builds the message from what the host sent
            return _failed(request, f"its host's reply is no message ({type(error).__name__})")


def _failed(request: HostRequest, reason: str) -> HostReply:
    """Return a reply that says that the request's clients failed, or the host if it was asked for none."""
    clients = [task.client_id for cohort in request.cohorts for task in cohort]
    return HostReply(host=request.host, failures=dict.fromkeys(clients or [request.host], reason))


def _read(message: Message, request: HostRequest) -> HostReply:
    if message.has_error():
        return _failed(request, f"its host failed: {_cause(message.error.reason or '')}")
    check_reply(message.content, request)
    return dataclasses.replace(unpack_reply(message.content), host=request.host)


def _cause(reason: str) -> str:
    """Return the error in what Flower says, on one line: the last line of a traceback, which Ray adds."""
    lines = [line.strip() for line in _COLOURS.sub("", reason[-_LAST:]).splitlines() if line.strip()]
    is_trace = len(reason) > _LAST or any(line.startswith("Traceback") or "ray::" in line for line in lines)
    text = lines[-1] if lines and is_trace else " ".join(lines)
    return one_line(text.removesuffix("'>")) or "no reason was given"
