"""What a removal knows while it plans: the run as it stands, what is kept of it, and who remains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from oblivion.aggregation.rule import Rule
from oblivion.aggregation.scheme import LoraScheme
from oblivion.ledger.rounds import RoundRecord, first_selected
from oblivion.privacy.budget import Budget, expected_rounds
from oblivion.selection import client_steps, population, select_clients
from oblivion.types import ForgetRequest
from oblivion.visit_steps import steps_per_visit

if TYPE_CHECKING:
    from oblivion.removal.phases import Phase

REQUIREMENTS = ("checkpoints", "norms", "public_data", "target_online", "updates")
"""The words that `oblivion.removal.plan.Removal.requires` can hold."""


@dataclass(frozen=True, kw_only=True)
class PlanningContext:
    """Everything that a removal may use when it plans.

    Attributes
    ----------
    rounds : int
        The number of rounds of a whole training.
    head : int
        The round at which the run stands: `rounds`, or another one after a removal that was committed.
    records : sequence of RoundRecord
        The rounds that led there; empty before they were run.
    restorable : tuple of int
        The rounds whose state can be restored, in order.
    stored : mapping of int to frozenset of str
        Round to the clients whose contribution to it is stored; before a run, those that it will have stored.
    aggregator, scheme
        The rule and the LoRA scheme of the run.
    seed, clients_per_round, joins
        What decides the selection: the root seed, and the first round of late joiners.
    steps : mapping of str to int
        The client-steps of one visit of each client that remains, without the rows to be forgotten.
    usable : mapping of str to int
        The rows that each client that remains can train on, without those to be forgotten.
    forgotten : int
        The rows to be forgotten that can be trained on.
    batch_size : int
        The batch size of a visit.
    local_epochs : int
        The passes over its rows that a client makes in a round.
    learning_rate : float
        The learning rate of these passes.
    learning : tuple of Phase
        The phases of a whole training that is replayed.
    shared : tuple of str
        See `RemovalPlan`.
    available : frozenset of str
        Those of `REQUIREMENTS` that this federation has.
    samples : mapping of str to int
        The clients that remain, with their number of samples without those to be forgotten.
    budget : Budget or None
        The empty privacy budget of the run; None without privacy.
    rounding : str
        Why the same rounds, run again, may be rounded differently; empty where they give the same bits.
    private : bool
        Whether clients kept something for themselves in the rounds that led there.
    """

    rounds: int
    head: int
    records: Sequence[RoundRecord] = ()
    restorable: tuple[int, ...] = (0,)
    stored: Mapping[int, frozenset[str]] = field(default_factory=dict)
    aggregator: Rule
    scheme: LoraScheme
    seed: int
    clients_per_round: int
    joins: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    usable: Mapping[str, int] = field(default_factory=dict)
    forgotten: int = 0
    batch_size: int = 8
    local_epochs: int = 1
    learning_rate: float = 1e-3
    learning: tuple[Phase, ...] = ()
    shared: tuple[str, ...] = ()
    available: frozenset[str] = frozenset()
    samples: Mapping[str, int] = field(default_factory=dict)
    budget: Budget | None = None
    rounding: str = ""
    private: bool = False

    def rounds_cost(self, first: int, last: int) -> int:
        """Return the client-steps of rounds `first` to `last` without the data to be forgotten."""
        return client_steps(self.steps, self.joins, self.clients_per_round, self.seed, first, last)

    def visit_cost(self, rows: int, local_epochs: int) -> int:
        """Return the client-steps of `local_epochs` passes over a number of rows."""
        return steps_per_visit(rows, self.batch_size, local_epochs)

    def charges(self, first: int, last: int) -> list[dict[str, int]]:
        """Return who pays for rounds `first` to `last` from the privacy budget; nothing without privacy."""
        if self.budget is None:
            return []
        who = (self.samples, self.joins, self.clients_per_round, self.seed)
        return expected_rounds(self.budget.privacy.unit, *who, first, last)

    def stored_rounds(self, client: str) -> tuple[int, ...]:
        """Return the rounds of which a client's contribution is stored, in order."""
        return tuple(sorted(round for round, clients in self.stored.items() if client in clients))


def first_asked(request: ForgetRequest, context: PlanningContext) -> int:
    """Return the first round that selected the client, or would select it; 0 if there is none."""
    if context.records:
        return first_selected(context.records, request.client_id) or 0
    clients = {*context.steps, request.client_id}
    for number in range(1, context.rounds + 1):
        there = population(tuple(clients), context.joins, number)
        if request.client_id in select_clients(there, context.clients_per_round, context.seed, number):
            return number
    return 0


def from_round(request: ForgetRequest, context: PlanningContext) -> int:
    """Return t_u, the first round that the client has a part in, or would have; 0 if there is none.

    That is the first round that selected it. Rules with control variates take means over the whole population, so
    with them a client that leaves altogether has a part from the round in which it joined, selected or not.
    """
    if context.aggregator.needs_client_state and request.whole_client:
        return context.joins.get(request.client_id, 1)
    return first_asked(request, context)
