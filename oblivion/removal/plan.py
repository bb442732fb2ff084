"""What a removal is: a plan made of phases, and the checklist of everything a client leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from oblivion.aggregation.rule import Aggregator
from oblivion.ledger.memory import RoundRecord, first_selected
from oblivion.selection import population, select_clients
from oblivion.types import ForgetRequest, Guarantee

Status: TypeAlias = Literal["cleaned", "unaffected", "not covered"]


@dataclass(frozen=True)
class Touch:
    """One item of the checklist: what happens to a place where the client left something."""

    item: str
    status: Status
    why: str


@dataclass(frozen=True, kw_only=True)
class LearnPhase:
    """Ordinary rounds without the forgotten data.

    Attributes
    ----------
    start : str
        ``"initial"``: from the adapter before any training; ``"continue"``: from where the removal stands.
    first, last : int
        The rounds, both included.
    reset_rule_state : bool
        Whether the rule begins anew, because its momentum or moments hold the client.
    replay : bool
        Whether clients that were unavailable in the original rounds stay out of the same rounds.
    """

    start: Literal["initial", "continue"]
    first: int
    last: int
    reset_rule_state: bool = False
    replay: bool = False


@dataclass(frozen=True, kw_only=True)
class UnlearnPhase:
    """One visit of the target client with an unlearning objective, applied outside the rule.

    ``next global = global + scale * update``, the update's norm at most `max_norm`.
    """

    round: int
    objective: str
    parameters: Mapping[str, Any]
    scale: float
    max_norm: float
    local_epochs: int
    learning_rate: float
    anchor: Literal["public", "retained", "none"]


Phase: TypeAlias = LearnPhase | UnlearnPhase


@dataclass(frozen=True, kw_only=True)
class RemovalPlan:
    """What a removal will do, what it promises, and what it costs.

    Attributes
    ----------
    method, label : str
        Registered name, and the name with what distinguishes it.
    guarantee : str
        `oblivion.types.Guarantee`.
    from_round : int
        The first round whose effect is undone; 0 if none is.
    phases : tuple of Phase
        In order.
    touches : tuple of Touch
        The filled-in checklist.
    client_steps : int
        Estimated optimizer steps.
    fraction : float
        The same as a fraction of retraining.
    """

    method: str
    label: str
    guarantee: Guarantee
    from_round: int
    phases: tuple[Phase, ...]
    touches: tuple[Touch, ...]
    client_steps: int
    fraction: float


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a removal may know when it plans.

    Attributes
    ----------
    records : sequence of RoundRecord
        The learned branch.
    aggregator : Aggregator
        The rule in use.
    scheme : str
        The LoRA scheme in use.
    seed, clients_per_round : int
        What decides the selection.
    joins : mapping of str to int
        First round of late joiners.
    steps : mapping of str to int
        Client-steps of one visit of each client that remains, without the forgotten rows.
    unlearn_steps : int
        Client-steps of one unlearning visit of the target.
    public : bool
        Whether the server has public rows for an anchor.
    """

    records: Sequence[RoundRecord]
    aggregator: Aggregator
    scheme: str
    seed: int
    clients_per_round: int
    joins: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    unlearn_steps: int = 0
    public: bool = False

    @property
    def rounds(self) -> int:
        """The last round of the learned branch."""
        return len(self.records)

    def rounds_cost(self, first: int, last: int) -> int:
        """Client-steps of rounds `first` to `last` without the forgotten data."""
        total = 0
        for round in range(first, last + 1):
            there = population(tuple(self.steps), self.joins, round)
            total += sum(self.steps[c] for c in select_clients(there, self.clients_per_round, self.seed, round))
        return total


class Removal(Protocol):
    """A federated forgetting procedure: it plans, the server carries the phases out."""

    requires: frozenset[str]
    """Of ``target_online``, ``updates``, ``norms``, ``checkpoints``, ``public_data``."""

    def plan(self, request: ForgetRequest, situation: Situation) -> RemovalPlan:
        """Fill in the plan, or refuse with `PlanRefusedError`."""
        ...


def cost_fraction(steps: int, situation: Situation) -> float:
    """Client-steps as a fraction of retraining from the first round without the forgotten data."""
    return steps / max(1, situation.rounds_cost(1, situation.rounds))


def from_round(request: ForgetRequest, situation: Situation) -> int:
    """t_u: the first round that selected the client; 0 if none did."""
    return first_selected(situation.records, request.client_id) or 0


def exact_touches(situation: Situation) -> tuple[Touch, ...]:
    """The checklist of a removal that trains again from before the client took part."""
    why = "computed again without the forgotten data"
    return (
        Touch("global adapter", "cleaned", why),
        Touch("server rule state", *_rule_state(situation, ("cleaned", why))),
        Touch("aggregation weights and selection", "cleaned", "renormalised; selection does not depend on others"),
        Touch("other clients' later updates", "cleaned", why),
        Touch("client states on other clients", "unaffected", "this rule keeps none on clients"),
        Touch("adapter initialisation, ranks, base model", "unaffected", "made from the seed, before any data"),
        Touch("checkpoints and stored contributions", "unaffected", "none are kept beyond the head of the run"),
        _original(),
    )


def approximate_touches(situation: Situation, adapter: tuple[Status, str], reset: bool) -> tuple[Touch, ...]:
    """The checklist of a removal that goes on from the present adapter."""
    kept: tuple[Status, str] = ("not covered", "goes on with sums over the client's updates")
    cleaned: tuple[Status, str] = ("cleaned", "begins anew after the unlearning update")
    return (
        Touch("global adapter", *adapter),
        Touch("server rule state", *_rule_state(situation, cleaned if reset else kept)),
        Touch("aggregation weights and selection", "cleaned", "the recovery rounds are without the forgotten data"),
        Touch(
            "other clients' later updates", "not covered", "they were computed from adapters that had learned the data"
        ),
        Touch("client states on other clients", "unaffected", "this rule keeps none on clients"),
        Touch("adapter initialisation, ranks, base model", "unaffected", "made from the seed, before any data"),
        Touch("checkpoints and stored contributions", "unaffected", "none are kept beyond the head of the run"),
        _original(),
    )


def _rule_state(situation: Situation, status: tuple[Status, str]) -> tuple[Status, str]:
    if situation.aggregator.state_fields:
        return status[0], f"{', '.join(situation.aggregator.state_fields)}: {status[1]}"
    return "unaffected", "this rule keeps nothing between rounds"


def _original() -> Touch:
    return Touch("the original adapter in the run directory", "not covered", "a trial deletes nothing")
