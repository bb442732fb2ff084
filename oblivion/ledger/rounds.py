"""What a ledger remembers of a federation, and the interface behind which it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from oblivion.aggregation.round import RoundState
from oblivion.errors import IntegrityError
from oblivion.types import ClientUpdate, Cost

Charge: TypeAlias = Mapping[str, int]
"""Who pays for a round from the privacy budget, and for what: client id to its number of samples then, or (unit client)
to the number of clipping bounds by which the round's sum can move without it; see `oblivion.privacy.budget.charge`."""


@dataclass(frozen=True, kw_only=True)
class Absence:
    """A client that takes no part any more, or (with `samples`) some rows that it does not train on any more."""

    client: str
    samples: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A line of rounds from one starting state.

    Attributes
    ----------
    name : str
        ``"main"`` is what was learned; a removal's is ``"<request>/<trial>"``.
    seed : int
        Root of all its randomness.
    rounds : int
        Its last round.
    parent, fork
        The branch that it goes on from and the last round that both have in common; None and 0 for one that begins
        at the adapter before any training.
    absent : tuple of Absence
        What it does without, from `fork` on.
    history : bool
        Whether contributions are kept after their round; if not, the last state is all that is kept.
    """

    name: str
    seed: int
    rounds: int
    parent: str | None = None
    fork: int = 0
    absent: tuple[Absence, ...] = ()
    history: bool = True

    def leaves(self, client: str) -> bool:
        """Whether a client takes no part any more."""
        return any(absence.client == client and absence.samples is None for absence in self.absent)

    def excluded(self, client: str) -> tuple[str, ...]:
        """The samples that a client does not train on any more."""
        own = [a.samples for a in self.absent if a.client == client and a.samples is not None]
        return tuple(sorted({sample for samples in own for sample in samples}))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Who is asked in a round, and which of them are trained together; written before anyone is asked.

    `selected` may have clients that no cohort has: those that were unavailable when a replayed round first ran.
    `charged` is who pays for the round from the privacy budget; it is kept for good, whatever becomes of the branch.
    """

    branch: str
    round: int
    selected: tuple[str, ...]
    cohorts: tuple[tuple[str, ...], ...]
    charged: Charge = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Charged:
    """One round that was begun: its branch (by number in the ledger and by name), and who pays for it."""

    number: int
    branch: str
    round: int
    clients: Charge


@dataclass(frozen=True, kw_only=True)
class CohortOutcome:
    """What a cohort came to: the unit of commit. `cohort` is its place in the `Selection`."""

    branch: str
    round: int
    cohort: int
    updates: tuple[ClientUpdate, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


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
    scheme_error : float
        What the LoRA scheme, with a plain mean, loses of the clients' mean product (`products.product_error`).
    cost : Cost
        What the round cost.
    seconds : float
        How long it took.
    unlearned : bool
        Whether it was a visit, whose updates are not kept, or a step of the server. Its state is kept, because it
        cannot be aggregated again.
    halved : bool
        Whether a cohort did not fit into a host's memory as a whole, so that its updates are rounded differently.
    """

    branch: str
    round: int
    selected: tuple[str, ...]
    accepted: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    loss: float = float("nan")
    scheme_error: float = 0.0
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    unlearned: bool = False
    halved: bool = False


class Ledger(Protocol):
    """What a federation remembers of its rounds. Nothing is acknowledged before it is durable."""

    def open_branch(self, branch: Branch, start: RoundState | None = None) -> None:
        """Begin a branch; without a parent it begins at `start`, the state after round 0."""
        ...

    def branches(self) -> tuple[Branch, ...]:
        """All branches in the order in which they began."""
        ...

    def branch(self, name: str) -> Branch:
        """One branch by its name."""
        ...

    def begin(self, selection: Selection) -> None:
        """Write down who will be asked in the branch's next round."""
        ...

    def selection(self, branch: str, round: int) -> Selection | None:
        """What `begin` wrote; None where the round was not begun, or its selection is kept no more."""
        ...

    def append(self, outcome: CohortOutcome) -> None:
        """Store a cohort's updates, which have passed the gate, as contributions to the round under way."""
        ...

    def outcomes(self, branch: str, round: int) -> tuple[CohortOutcome, ...]:
        """The stored cohorts of a round without their updates, by their place in the selection."""
        ...

    def contributions(self, branch: str, round: int) -> tuple[ClientUpdate, ...]:
        """A round's contributions as they were stored, in client-id order; none where they are kept no more."""
        ...

    def stored(self, branch: str) -> Mapping[int, frozenset[str]]:
        """Return the clients whose contribution is stored, by round of the branch's line."""
        ...

    def commit(self, record: RoundRecord, after: RoundState, keep: bool) -> None:
        """End a round: its record, and (with `keep`) the state after it as a checkpoint."""
        ...

    def records(self, branch: str) -> tuple[RoundRecord, ...]:
        """The committed rounds that led to the branch's head, in order."""
        ...

    def last_state(self, branch: str, at_most: int) -> RoundState:
        """The last checkpoint on the branch's line at or before a round."""
        ...

    def restorable(self, branch: str) -> tuple[int, ...]:
        """The rounds whose state is kept or can be aggregated again from contributions, in order."""
        ...

    def charged(self) -> tuple[Charged, ...]:
        """Every round that was ever begun with a charge to the privacy budget, in order."""
        ...

    def noise_secret(self, branch: str) -> bytes:
        """The secret of a branch's privacy noise; made before the branch's first round is committed, never later."""
        ...

    def drop(self, branch: str) -> None:
        """Remove everything of a branch that no other goes on from."""
        ...


def known_branch(branches: Mapping[str, Branch], name: str) -> Branch:
    """One branch by its name.

    Raises
    ------
    IntegrityError
        If there is none; the message names those that there are.
    """
    if name not in branches:
        raise IntegrityError(f"the ledger has no branch {name!r}; it has {sorted(branches)}")
    return branches[name]


def first_selected(records: Iterable[RoundRecord], client_id: str) -> int | None:
    """The first round in which a client was selected (t_u); None if it never was."""
    return next((record.round for record in records if client_id in record.selected), None)


def line(branches: Mapping[str, Branch], name: str, at_most: int) -> list[tuple[str, int, int]]:
    """The pieces of a branch's line up to a round, from its root: (branch, first round of the piece, last round).

    The first round of a root's piece is 0, the state before any training.
    """
    pieces: list[tuple[str, int, int]] = []
    branch = branches[name]
    while branch.parent is not None:
        pieces.append((branch.name, branch.fork + 1, at_most))
        at_most = min(at_most, branch.fork)
        branch = branches[branch.parent]
    pieces.append((branch.name, 0, at_most))
    return pieces[::-1]


def reachable(checkpoints: Iterable[int], aggregated: Iterable[int]) -> tuple[int, ...]:
    """Rounds that can be restored: checkpoints, and those that follow one through stored contributions."""
    known, steps = set(checkpoints), set(aggregated)
    for round in sorted(steps):
        if round - 1 in known:
            known.add(round)
    return tuple(sorted(known))
