"""Check what a host says beside its updates: which clients it serves, what they measured, why one failed.

A host speaks for the clients of its message alone. Whatever else it says is dropped, and told in words that hold a
rule and the name under which the server knows the host: never a name, a number or a text that the host chose, except a
failure's reason, which is cut to one short line of printable characters. Pure functions; the gate of updates is
`oblivion.aggregation.gate`.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from oblivion.types import CLIENT_ID, ClientUpdate, HostReply, HostRequest

LONGEST_REASON = 300
"""The most characters of a failure's reason: a line or two of a terminal."""
MOST_CLIENTS = 100_000
"""The most clients that one host may name; where the run's own data is known, no more than that has."""
MOST_ROWS = 10**9
"""The most rows that a client may say it has: more than any file that is read can hold."""
OTHERS = "(others)"
"""The key for the failures of clients about which the host was not asked."""
SKIPPED = "skipped"
"""The name under which a client counts the rows that were left out of every metric, whatever the suite."""
_ROUNDING = 1e-6
"""The amount by which a mean of fp32 values may exceed the end of its range."""


@dataclass(frozen=True)
class Bound:
    """The bounds of a mean that a client measures: it is from 0 to `largest`, and its weight counts rows or tokens."""

    largest: float = 1.0
    over: Literal["row", "token"] = "row"


def one_line(text: Any, most: int = LONGEST_REASON) -> str:
    """Return a text from outside as one short line; blanks become single spaces, and unprintable characters ``?``.

    Parameters
    ----------
    text : object
        As received; what is no text becomes ``"(no text)"``.
    most : int, default `LONGEST_REASON`
        The most characters that are returned.
    """
    if not isinstance(text, str):
        return "(no text)"
    spaced = " ".join(text[: 4 * most].split())  # it is cut first, because it may be millions long
    seen = "".join("?" if unicodedata.category(c)[0] in "CZ" and c != " " else c for c in spaced)
    cut = len(seen) > most or len(text) > 4 * most
    return seen[: most - 3] + "..." if cut else seen


def heard(replies: Iterable[HostReply], requests: Sequence[HostRequest]) -> Iterator[HostReply]:
    """Yield the replies of hosts that were asked, one of each, with reasons that can be stored and shown.

    Parameters
    ----------
    replies : iterable of HostReply
        As they come; their fields may hold anything.
    requests : sequence of HostRequest
        What was asked, one request a host.

    Yields
    ------
    HostReply
        Its failures name clients of the message, or the host itself where no client was asked for; whatever was said
        of anybody else is one failure of `OTHERS`.
    """
    waiting = {request.host: request for request in requests}
    for reply in replies:
        request = waiting.pop(reply.host, None) if isinstance(reply.host, str) else None
        if request is not None:
            updates = reply.updates if isinstance(reply.updates, Sequence) else ()
            yield dataclasses.replace(
                reply,
                updates=tuple(update for update in updates if isinstance(update, ClientUpdate)),
                failures=_failures(reply.failures, request),
                metrics=_mapping(reply.metrics),
                clients=_mapping(reply.clients),
            )


def _failures(said: Any, request: HostRequest) -> dict[str, str]:
    asked = {task.client_id for cohort in request.cohorts for task in cohort} or {request.host}
    own = {client: one_line(reason) for client, reason in _mapping(said).items() if client in asked}
    return own if len(own) == len(_mapping(said)) else {**own, OTHERS: "its host was not asked about it"}


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def served(said: Mapping[Any, Any], known: Mapping[str, int] | None = None) -> tuple[dict[str, int], list[str]]:
    """Return the clients that a host can truly serve, from what it says.

    Parameters
    ----------
    said : mapping
        Client id to ``{"samples": rows}``, as received.
    known : mapping of str to int, optional
        The clients of the run's own data with their number of rows. A host that says otherwise has other data, or lies.

    Returns
    -------
    served : dict of str to int
        Client id to its number of rows, in the order of ids.
    dropped : list of str
        What was left out and why, one line a rule.
    """
    if len(said) > MOST_CLIENTS:
        return {}, [f"it names more than {MOST_CLIENTS} clients, so none of them counts"]
    taken: dict[str, int] = {}
    broken: Counter[str] = Counter()
    for client, facts in said.items():
        rows = facts.get("samples") if isinstance(facts, Mapping) else None
        if not isinstance(client, str) or not CLIENT_ID.fullmatch(client):
            broken["the name is no client id"] += 1
        elif type(rows) is not int or not 0 <= rows <= MOST_ROWS:
            broken[f"'samples' is no whole number from 0 to {MOST_ROWS}"] += 1
        elif known is not None and client not in known:
            broken["the run's data has no such client"] += 1
        elif known is not None and rows != known[client]:
            broken["the run's data has another number of rows for it"] += 1
        else:
            taken[client] = rows
    return dict(sorted(taken.items())), _told(broken, "client")


def measured(
    said: Mapping[Any, Any], asked: Mapping[str, int], max_length: int, bounds: Mapping[str, Bound]
) -> tuple[dict[str, dict[str, tuple[float, float]]], list[str]]:
    """Return the numbers of clients that can be true, from what their host says.

    Parameters
    ----------
    said : mapping
        Client to metric to (sum, weight), as received.
    asked : mapping of str to int
        The clients (or portions of their rows) that the host was asked for, each with the most rows it can have.
    max_length : int
        Tokens of the longest row.
    bounds : mapping of str to Bound
        What the run's suite lets clients measure, and what each number can be; `SKIPPED` is always among them.

    Returns
    -------
    measured : dict
        The numbers in `said` that can be true.
    dropped : list of str
        What was left out and why, one line a rule.
    """
    taken: dict[str, dict[str, tuple[float, float]]] = {}
    broken: Counter[str] = Counter()
    known = {**bounds, SKIPPED: Bound()}
    for client, metrics in said.items():
        if not isinstance(client, str) or client not in asked:
            broken["the host was not asked for such a client"] += 1
            continue
        if not isinstance(metrics, Mapping):
            broken["a client's metrics are no mapping"] += 1
            continue
        own: dict[str, tuple[float, float]] = {}
        for name, pair in metrics.items():
            bound = known.get(name) if isinstance(name, str) else None
            reason = "clients measure nothing of that name"
            if bound is not None:
                most = asked[client] * (max_length if bound.over == "token" else 1)
                reason = _implausible(name, pair, most, bound.largest)
            if reason:
                broken[reason] += 1
            else:
                own[name] = (float(pair[0]), float(pair[1]))
        if own:
            taken[client] = own
    return taken, _told(broken, "result")


def unsaid(said: Mapping[Any, Any], asked: Mapping[str, int], bounds: Mapping[str, Bound]) -> list[str]:
    """Return the clients (or portions) with rows of which a host does not tell every number that clients measure.

    A number that is left out would be missing from a mean without a word. Whether a number that is told can be true is
    `measured`'s question; the arguments are the same.
    """
    wanted = {*bounds, SKIPPED}
    return [name for name, rows in asked.items() if rows > 0 and not wanted <= _mapping(said.get(name)).keys()]


def _implausible(name: str, pair: Any, most: int, largest: float) -> str:
    """Return why a (sum, weight) pair cannot be true; empty if it can."""
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(type(part) in (int, float) for part in pair):
        return f"'{name}' is no sum and weight"
    try:
        total, weight = float(pair[0]), float(pair[1])
    except OverflowError:
        return f"'{name}' is not finite"
    if not math.isfinite(total) or not math.isfinite(weight):
        return f"'{name}' is not finite"
    if not weight.is_integer() or not 0 <= weight <= most:
        return f"the weight of '{name}' is no whole number up to what the client's rows have"
    slack = _ROUNDING * weight
    if not -slack <= total <= largest * weight + slack:
        return f"'{name}' is not from 0 to {largest:g}"
    return ""


def _told(broken: Counter[str], noun: str) -> list[str]:
    return [f"{count} {noun}{'' if count == 1 else 's'} left out, because {why}" for why, count in broken.items()]
