"""The ledger in this process's memory: for tests, and as the model that the stored one is compared with."""

from __future__ import annotations

import secrets
import sys
from dataclasses import replace

from oblivion.aggregation.round import RoundState
from oblivion.errors import IntegrityError
from oblivion.ledger.rounds import (
    Branch,
    Charged,
    CohortOutcome,
    RoundRecord,
    Selection,
    known_branch,
    line,
    reachable,
)
from oblivion.types import ClientUpdate


class MemoryLedger:
    """A `Ledger` that keeps everything and survives nothing."""

    def __init__(self) -> None:
        self._branches: dict[str, Branch] = {}
        self._selections: dict[tuple[str, int], Selection] = {}
        self._outcomes: dict[tuple[str, int], dict[int, CohortOutcome]] = {}
        self._records: dict[tuple[str, int], RoundRecord] = {}
        self._states: dict[tuple[str, int], RoundState] = {}
        self._charged: list[Charged] = []
        self._secrets: dict[str, bytes] = {}

    def open_branch(self, branch: Branch, start: RoundState | None = None) -> None:
        """Begin a branch; a name is used once."""
        if branch.name in self._branches:
            raise IntegrityError(f"branch {branch.name!r} exists already")
        self._branches[branch.name] = branch
        if start is not None:
            self._states[branch.name, branch.fork] = start

    def branches(self) -> tuple[Branch, ...]:
        """All branches in the order in which they began."""
        return tuple(self._branches.values())

    def branch(self, name: str) -> Branch:
        """One branch by its name."""
        return known_branch(self._branches, name)

    def _check_next(self, branch: str, round: int) -> None:
        done = [number for name, number in self._records if name == branch]
        last = max(done, default=self.branch(branch).fork)
        if round != last + 1:
            raise IntegrityError(f"round {round} of {branch!r} does not follow round {last}")

    def begin(self, selection: Selection) -> None:
        """Write down who will be asked."""
        self._check_next(selection.branch, selection.round)
        if (selection.branch, selection.round) in self._selections:
            raise IntegrityError(f"round {selection.round} of {selection.branch!r} was begun already")
        self._selections[selection.branch, selection.round] = selection
        if selection.charged:
            number = list(self._branches).index(selection.branch)
            self._charged.append(
                Charged(number=number, branch=selection.branch, round=selection.round, clients=selection.charged)
            )

    def selection(self, branch: str, round: int) -> Selection | None:
        """What `begin` wrote."""
        return self._selections.get((self.branch(branch).name, round))

    def append(self, outcome: CohortOutcome) -> None:
        """Store a cohort; a client contributes once a round."""
        done = self._outcomes.setdefault((self.branch(outcome.branch).name, outcome.round), {})
        there = {update.client_id for other in done.values() for update in other.updates}
        again = sorted(there & {update.client_id for update in outcome.updates})
        if again or outcome.cohort in done:
            raise IntegrityError(
                f"{again[0] if again else f'cohort {outcome.cohort}'} contributed twice to round {outcome.round} of "
                f"{outcome.branch!r}"
            )
        done[outcome.cohort] = outcome

    def outcomes(self, branch: str, round: int) -> tuple[CohortOutcome, ...]:
        """The stored cohorts of a round without their updates."""
        own = self._outcomes.get((self.branch(branch).name, round), {})
        return tuple(replace(outcome, updates=()) for _, outcome in sorted(own.items()))

    def contributions(self, branch: str, round: int) -> tuple[ClientUpdate, ...]:
        """A round's contributions in client-id order."""
        updates = (update for outcome in self._of(branch, round).values() for update in outcome.updates)
        return tuple(sorted(updates, key=lambda update: update.client_id))

    def _of(self, branch: str, round: int) -> dict[int, CohortOutcome]:
        for name, first, last in line(self._branches, self.branch(branch).name, round):
            if first <= round <= last:
                return self._outcomes.get((name, round), {})
        return {}

    def stored(self, branch: str) -> dict[int, frozenset[str]]:
        """Return the clients whose contribution is stored, by round."""
        rounds = {record.round: self.contributions(branch, record.round) for record in self.records(branch)}
        return {round: frozenset(u.client_id for u in updates) for round, updates in rounds.items() if updates}

    def commit(self, record: RoundRecord, after: RoundState, keep: bool) -> None:
        """End a round."""
        self._check_next(record.branch, record.round)
        self._records[record.branch, record.round] = record
        if keep:
            self._states[record.branch, record.round] = after

    def records(self, branch: str) -> tuple[RoundRecord, ...]:
        """The committed rounds that led to the branch's head."""
        pieces = line(self._branches, self.branch(branch).name, sys.maxsize)
        return tuple(
            self._records[key]
            for name, first, last in pieces
            for key in sorted(self._records)
            if key[0] == name and first <= key[1] <= last
        )

    def last_state(self, branch: str, at_most: int) -> RoundState:
        """The last checkpoint at or before a round."""
        for name, first, last in reversed(line(self._branches, self.branch(branch).name, at_most)):
            kept = [key for key in self._states if key[0] == name and first <= key[1] <= last]
            if kept:
                return self._states[max(kept)]
        raise IntegrityError(f"no state of {branch!r} is kept at or before round {at_most}")

    def restorable(self, branch: str) -> tuple[int, ...]:
        """The rounds whose state can be had again."""
        pieces = line(self._branches, self.branch(branch).name, sys.maxsize)
        states = {r for n, r in self._states for name, first, last in pieces if n == name and first <= r <= last}
        again = {r.round for r in self.records(branch) if not r.unlearned}
        return reachable(states, again)

    def charged(self) -> tuple[Charged, ...]:
        """Every round that was ever begun with a charge."""
        return tuple(self._charged)

    def noise_secret(self, branch: str) -> bytes:
        """The secret of a branch's privacy noise."""
        return self._secrets.setdefault(self.branch(branch).name, secrets.token_bytes(32))

    def drop(self, branch: str) -> None:
        """Remove everything of a branch."""
        self._secrets.pop(branch, None)
        del self._branches[self.branch(branch).name]
        for table in (self._selections, self._outcomes, self._records, self._states):
            for key in [key for key in table if key[0] == branch]:
                del table[key]
