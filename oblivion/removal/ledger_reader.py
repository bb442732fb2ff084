"""What phases may read of a line of rounds: records, states and stored updates. They can change none of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from oblivion.aggregation.round import RoundState
from oblivion.ledger.rounds import RoundRecord
from oblivion.types import ClientUpdate


class LedgerReader(Protocol):
    """A read-only view of the rounds of one line."""

    def records(self) -> Sequence[RoundRecord]:
        """Return the committed rounds, in order."""
        ...

    def record(self, round: int) -> RoundRecord:
        """Return one committed round."""
        ...

    def state(self, round: int) -> RoundState:
        """Return the state after a round, aggregated again where it is not kept."""
        ...

    def stored(self) -> Mapping[int, frozenset[str]]:
        """Return the clients whose contribution is stored, by round."""
        ...

    def contributions(self, round: int) -> tuple[ClientUpdate, ...]:
        """Return the contributions to a round that are stored, in client-id order."""
        ...

    def of_client(self, client: str) -> tuple[int, ...]:
        """Return the rounds of which a client's contribution is stored, in order."""
        ...

    def contribution(self, client: str, round: int) -> ClientUpdate:
        """Return one stored contribution."""
        ...

    def norms(self, client: str, round: int) -> Mapping[str, float]:
        """Return the L2 norm of each tensor of a stored contribution, by name."""
        ...

    def aggregate(self, before: RoundState, updates: Sequence[ClientUpdate], round: int) -> RoundState:
        """Return what the run's rule and LoRA scheme make of a state and of updates, as in a round of this number."""
        ...
