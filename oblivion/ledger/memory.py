"""The ledger's in-memory implementation: participation and the last state of every branch.

It serves tests and runs without history. Contributions are kept only until their round is committed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from oblivion.aggregation.gate import GateState
from oblivion.aggregation.rule import RuleState
from oblivion.errors import IntegrityError
from oblivion.types import ClientUpdate, Cost, GlobalState


@dataclass(frozen=True, kw_only=True)
class RoundState:
    """Everything the server carries from one round to the next."""

    round: int
    state: GlobalState
    rule_state: RuleState
    gate_state: GateState


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """Who took part in a round, and who could not.

    Attributes
    ----------
    branch, round
        Which round.
    selected : tuple of str
        The clients that were asked.
    accepted : tuple of str
        Those whose update entered the aggregate.
    refused : mapping of str to str
        Client to the gate's reason.
    failed : mapping of str to str
        Client to the outside reason (no reply, crash); this is the availability record.
    loss : float
        Mean training loss of the accepted clients, weighted by examples.
    cost : Cost
        What the round cost.
    """

    branch: str
    round: int
    selected: tuple[str, ...]
    accepted: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    loss: float = float("nan")
    cost: Cost = field(default_factory=Cost)


class Ledger(Protocol):
    """What a federation remembers of its rounds."""

    def branch(self, name: str, start: RoundState, records: Sequence[RoundRecord] = ()) -> None:
        """Begin a branch from a state, with the rounds that led to it where it is taken up again."""
        ...

    def append(self, branch: str, update: ClientUpdate) -> None:
        """Store an update that passed the gate, as a contribution to the round under way."""
        ...

    def contributions(self, branch: str, round: int) -> tuple[ClientUpdate, ...]:
        """The contributions of the round under way, in client-id order."""
        ...

    def commit(self, record: RoundRecord, after: RoundState) -> None:
        """End a round: its record and the state after it."""
        ...

    def reset_rule(self, branch: str, rule_state: RuleState) -> None:
        """Let the rule begin anew on a branch, between two rounds."""
        ...

    def head(self, branch: str) -> RoundState:
        """The state after the branch's last committed round."""
        ...

    def records(self, branch: str) -> tuple[RoundRecord, ...]:
        """The branch's committed rounds in order."""
        ...


class MemoryLedger:
    """A `Ledger` in this process's memory."""

    def __init__(self) -> None:
        self._heads: dict[str, RoundState] = {}
        self._records: dict[str, list[RoundRecord]] = {}
        self._pending: dict[tuple[str, int], dict[str, ClientUpdate]] = {}

    def branch(self, name: str, start: RoundState, records: Sequence[RoundRecord] = ()) -> None:
        """Begin a branch; a name is used once."""
        if name in self._heads:
            raise IntegrityError(f"branch {name!r} exists already")
        self._heads[name] = start
        self._records[name] = list(records)

    def append(self, branch: str, update: ClientUpdate) -> None:
        """Store a contribution; a client contributes once a round."""
        pending = self._pending.setdefault((branch, update.round), {})
        if update.client_id in pending:
            raise IntegrityError(f"{update.client_id} contributed twice to round {update.round} of {branch!r}")
        pending[update.client_id] = update

    def contributions(self, branch: str, round: int) -> tuple[ClientUpdate, ...]:
        """The contributions of the round under way, in client-id order."""
        return tuple(update for _, update in sorted(self._pending.get((branch, round), {}).items()))

    def commit(self, record: RoundRecord, after: RoundState) -> None:
        """End a round; its contributions are dropped."""
        head = self.head(record.branch)
        if record.round != head.round + 1 or after.round != record.round:
            raise IntegrityError(f"round {record.round} of {record.branch!r} does not follow round {head.round}")
        self._pending.pop((record.branch, record.round), None)
        self._heads[record.branch] = after
        self._records[record.branch].append(record)

    def reset_rule(self, branch: str, rule_state: RuleState) -> None:
        """Let the rule begin anew on a branch, between two rounds."""
        self._heads[branch] = dataclasses.replace(self.head(branch), rule_state=rule_state)

    def head(self, branch: str) -> RoundState:
        """The state after the branch's last committed round."""
        if branch not in self._heads:
            raise IntegrityError(f"the ledger has no branch {branch!r}; it has {sorted(self._heads)}")
        return self._heads[branch]

    def records(self, branch: str) -> tuple[RoundRecord, ...]:
        """The branch's committed rounds in order."""
        self.head(branch)
        return tuple(self._records[branch])


def first_selected(records: Sequence[RoundRecord], client_id: str) -> int | None:
    """The first round in which a client was selected (t_u); None if it never was."""
    return next((record.round for record in records if client_id in record.selected), None)
