"""The ledger as phases read it: the rounds of one line, without any way to change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oblivion.aggregation.round import RoundState, aggregate_round
from oblivion.errors import IntegrityError
from oblivion.federation.replay import Replay
from oblivion.ledger.rounds import RoundRecord
from oblivion.types import ClientUpdate


class History:
    """The committed rounds that led to the head of a branch; an `oblivion.removal.ledger_reader.LedgerReader`.

    Parameters
    ----------
    replay : Replay
        The ledger, with the rule and the scheme of the run.
    branch : str
        The branch.
    aggregates : str, optional
        The branch whose rounds are aggregated by `aggregate`: it has its own clients and schedule; by default `branch`.
    """

    def __init__(self, replay: Replay, branch: str, aggregates: str = "") -> None:
        self._replay = replay
        self._ledger = replay.ledger
        self.branch = branch
        self._aggregates = aggregates or branch

    def records(self) -> Sequence[RoundRecord]:
        """Return the committed rounds, in order."""
        return self._ledger.records(self.branch)

    def record(self, round: int) -> RoundRecord:
        """Return one committed round.

        Raises
        ------
        IntegrityError
            If the line has no such round.
        """
        for record in self.records():
            if record.round == round:
                return record
        raise IntegrityError(f"{self.branch!r} has no round {round}")

    def state(self, round: int) -> RoundState:
        """Return the state after a round, aggregated again where it is not kept."""
        return self._replay.state(self.branch, round)

    def stored(self) -> Mapping[int, frozenset[str]]:
        """Return the clients whose contribution is stored, by round."""
        return self._ledger.stored(self.branch)

    def contributions(self, round: int) -> tuple[ClientUpdate, ...]:
        """Return the contributions to a round that are stored, in client-id order."""
        return self._ledger.contributions(self.branch, round)

    def of_client(self, client: str) -> tuple[int, ...]:
        """Return the rounds of which a client's contribution is stored, in order."""
        return tuple(sorted(round for round, clients in self.stored().items() if client in clients))

    def contribution(self, client: str, round: int) -> ClientUpdate:
        """Return one stored contribution.

        Raises
        ------
        IntegrityError
            If it is not stored.
        """
        for update in self.contributions(round):
            if update.client_id == client:
                return update
        raise IntegrityError(f"the update of {client} in round {round} of {self.branch!r} is not kept")

    def norms(self, client: str, round: int) -> Mapping[str, float]:
        """Return the L2 norm of each tensor of a stored contribution, by name."""
        return self.contribution(client, round).norms

    def aggregate(self, before: RoundState, updates: Sequence[ClientUpdate], round: int) -> RoundState:
        """Return what the run's rule and LoRA scheme make of a state and of updates, as in a round of this number."""
        return aggregate_round(before, updates, self._replay.info(self._aggregates, round), self._replay.aggregation)
