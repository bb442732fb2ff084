"""What a removal is: a plan made of phases, and the checklist of everything a client leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

from oblivion.aggregation.fit import short_round
from oblivion.aggregation.rule import Aggregator, LoraScheme
from oblivion.errors import PlanRefusedError, plural
from oblivion.ledger.budget import Budget, expected_rounds
from oblivion.ledger.rounds import RoundRecord, first_selected
from oblivion.selection import client_steps, population, select_clients
from oblivion.types import ForgetRequest, Guarantee

_NAMED = 5

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
        ``"restore"``: from the state before round `first`, as it was; ``"continue"``: from where the removal stands.
    first, last : int
        The rounds, both included.
    replay : bool
        Whether clients that were unavailable in the original rounds stay out of the same rounds.
    """

    start: Literal["restore", "continue"]
    first: int
    last: int
    replay: bool = False


@dataclass(frozen=True, kw_only=True)
class UnlearnPhase:
    """One visit of the target client with an unlearning objective, applied outside the rule.

    ``next global = global + scale * update``, the update's norm at most `max_norm`. The rule begins anew afterwards
    where `reset_rule_state` says so, because its momentum or moments hold the client.
    """

    round: int
    objective: str
    parameters: Mapping[str, Any]
    scale: float
    max_norm: float
    local_epochs: int
    learning_rate: float
    anchor: Literal["public", "retained", "none"]
    reset_rule_state: bool = True


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
        t_u, the first round that the client has a part in; see `from_round`.
    phases : tuple of Phase
        In order.
    touches : tuple of Touch
        The filled-in checklist: what becomes of every place where the forgotten data left something, in the model
        that the removal makes and in what later rounds go on from.
    invalidates : tuple of str
        What in the run directory holds the forgotten data and goes when the trial is committed.
    client_steps : int
        Estimated optimizer steps. How many tokens they take is only known afterwards.
    fraction : float
        The same as a fraction of retraining.
    shared : tuple of str
        The ids of the rows to be forgotten of which a copy stays elsewhere, one for each row: no removal forgets them.
    """

    method: str
    label: str
    guarantee: Guarantee
    from_round: int
    phases: tuple[Phase, ...]
    touches: tuple[Touch, ...]
    client_steps: int
    fraction: float
    invalidates: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    def last_round(self, head: int) -> int:
        """The round at which the removal ends, for a run that stands at `head`."""
        if not self.phases:
            return head
        phase = self.phases[-1]
        return phase.last if isinstance(phase, LearnPhase) else phase.round


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a removal may know when it plans.

    Attributes
    ----------
    rounds : int
        The rounds of a whole training.
    head : int
        The round at which the run stands: `rounds`, or more after a removal that went on from there.
    records : sequence of RoundRecord
        The rounds that led there; empty before they were run.
    restorable : tuple of int
        The rounds whose state can be had again, in order.
    aggregator, scheme
        The rule and the LoRA scheme in use.
    seed, clients_per_round, joins
        What decides the selection: the root seed, and the first round of late joiners.
    steps : mapping of str to int
        Client-steps of one visit of each client that remains, without the forgotten rows.
    unlearn_steps : int
        Client-steps of one unlearning visit of the target.
    shared : tuple of str
        See `RemovalPlan`.
    available : frozenset of str
        What of `Removal.requires` there is.
    samples : mapping of str to int
        The clients that remain, with their number of samples without those to be forgotten.
    budget : Budget or None
        The empty privacy budget of the run; None without privacy.
    rounding : str
        Why the same rounds, run again, may be rounded differently; empty where they give the same bits.
    """

    rounds: int
    head: int
    records: Sequence[RoundRecord] = ()
    restorable: tuple[int, ...] = (0,)
    aggregator: Aggregator
    scheme: LoraScheme
    seed: int
    clients_per_round: int
    joins: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    unlearn_steps: int = 0
    shared: tuple[str, ...] = ()
    available: frozenset[str] = frozenset()
    samples: Mapping[str, int] = field(default_factory=dict)
    budget: Budget | None = None
    rounding: str = ""

    def rounds_cost(self, first: int, last: int) -> int:
        """Client-steps of rounds `first` to `last` without the forgotten data."""
        return client_steps(self.steps, self.joins, self.clients_per_round, self.seed, first, last)


class Removal(Protocol):
    """A federated forgetting procedure: it plans, the server carries the phases out."""

    requires: frozenset[str]
    """Of ``target_online``, ``updates``, ``norms``, ``checkpoints``, ``public_data``."""

    def plan(self, request: ForgetRequest, situation: Situation) -> RemovalPlan:
        """Fill in the plan, or refuse with `PlanRefusedError`."""
        ...


def plan_removal(removal: Removal, method: str, request: ForgetRequest, situation: Situation) -> RemovalPlan:
    """Plan a removal if there is everything that it requires.

    Raises
    ------
    PlanRefusedError
        If something is missing, or a round would have too few clients for the rule; or by the removal itself.
    """
    missing = sorted(removal.requires - situation.available)
    if missing:
        raise PlanRefusedError(
            f"{method} requires {', '.join(missing)}, which this federation does not have for {request.client_id}"
        )
    plan = removal.plan(request, situation)
    _check_number(plan, method, request, situation)
    if situation.budget is not None and any(isinstance(phase, UnlearnPhase) for phase in plan.phases):
        raise PlanRefusedError(
            f"{method}: an unlearning visit has no noise, so with privacy.unit = '{situation.budget.privacy.unit}' its "
            "update would end what the run promises; 'exclude', 'rollback' and 'retrain' keep the promise"
        )
    touches = (*plan.touches, *_shared_touch(request, situation), _budget_touch(plan, situation))
    if situation.rounding and plan.guarantee == "exact":
        touches += (Touch("rounding", "unaffected", f"exact up to rounding: {situation.rounding}"),)
    return replace(plan, touches=touches, shared=situation.shared)


def learning_rounds(
    plan: RemovalPlan, unit: str, samples: Mapping[str, int], joins: Mapping[str, int], per_round: int, seed: int
) -> list[dict[str, int]]:
    """Who pays for a plan's rounds from the privacy budget; the arguments are those of `expected_rounds`."""
    phases = (phase for phase in plan.phases if isinstance(phase, LearnPhase))
    return [
        charge
        for phase in phases
        for charge in expected_rounds(unit, samples, joins, per_round, seed, phase.first, phase.last)
    ]


def _shared_touch(request: ForgetRequest, situation: Situation) -> tuple[Touch, ...]:
    """What becomes of rows to be forgotten that others hold, too; no line if there are none."""
    if not situation.shared:
        return ()
    why = f"also learned from rows that stay, so no removal of {request.client_id} forgets them; measured separately"
    return (Touch("rows that others hold, too", "unaffected", f"{in_short(situation.shared)}, {why}"),)


def in_short(ids: Sequence[str]) -> str:
    """How many rows, and the first of their ids, such as ``1 row (id 17)``."""
    named = list(dict.fromkeys(ids))
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    what = "id" if len(named) == 1 else "ids"
    return f"{plural(len(ids), 'row')} ({what} {', '.join(named[:_NAMED])}{more})"


def _budget_touch(plan: RemovalPlan, situation: Situation) -> Touch:
    """What the plan spends by itself; not what was spent before, so that the same plan is the same again."""
    if situation.budget is None:
        return Touch("privacy budget", "unaffected", "privacy.unit is none: there is no budget")
    who = (situation.samples, situation.joins, situation.clients_per_round, situation.seed)
    rounds = learning_rounds(plan, situation.budget.privacy.unit, *who)
    if not rounds:
        return Touch("privacy budget", "unaffected", "no client is asked again")
    epsilon = situation.budget.trail(rounds)[-1]
    return Touch(
        "privacy budget",
        "unaffected",
        f"what was spent on the data stays spent; the clients that stay spend {plural(len(rounds), 'more round')}, "
        f"which cost epsilon {epsilon:.3g} by themselves, at delta {situation.budget.privacy.delta:g}",
    )


def _check_number(plan: RemovalPlan, method: str, request: ForgetRequest, situation: Situation) -> None:
    """Refuse a plan with a round that has fewer clients than the rule needs."""
    unavailable = {record.round: record.failed for record in situation.records}
    for phase in (phase for phase in plan.phases if isinstance(phase, LearnPhase)):
        for number in range(phase.first, phase.last + 1):
            gone = unavailable.get(number, ()) if phase.replay else ()
            there = [client for client, steps in situation.steps.items() if steps and client not in gone]
            rule = situation.aggregator
            short = short_round(rule, there, situation.joins, situation.clients_per_round, [number])
            if short:
                raise PlanRefusedError(
                    f"{method}: {rule!r} needs at least {short[2]} clients in a round, and without {request.client_id} "
                    f"round {number} has {short[1]}. The rule of a run cannot change: 'local' with "
                    "forget.recovery-rounds = 0 has no such round; or run again with a rule that needs fewer clients"
                )


def cost_fraction(steps: int, situation: Situation) -> float:
    """Client-steps as a fraction of retraining from the first round without the forgotten data."""
    return steps / max(1, situation.rounds_cost(1, situation.rounds))


def from_round(request: ForgetRequest, situation: Situation) -> int:
    """t_u: the first round that the client has a part in, or would; 0 if there is none.

    That is the first that selected it. Rules with control variates take means over all clients that there are, so with
    them a client that leaves altogether has a part from when it joined, whether it was asked or not.
    """
    if situation.aggregator.needs_client_state and request.whole_client:
        return situation.joins.get(request.client_id, 1)
    return first_asked(request, situation)


def first_asked(request: ForgetRequest, situation: Situation) -> int:
    """The first round that selected the client, or would; 0 if none did."""
    if situation.records:
        return first_selected(situation.records, request.client_id) or 0
    clients = {*situation.steps, request.client_id}
    for number in range(1, situation.rounds + 1):
        there = population(tuple(clients), situation.joins, number)
        if request.client_id in select_clients(there, situation.clients_per_round, situation.seed, number):
            return number
    return 0


def invalidated(first: int, request: ForgetRequest, situation: Situation) -> tuple[str, ...]:
    """What holds the data from t_u on, in words; nothing where the client has no part in any round."""
    if not first:
        return ()
    return (
        "the adapters of the present model, and of every removal and oracle that had the data",
        f"the states and contributions of rounds {first} to {situation.head} in the ledger",
        "the client's keys, and its other requests"
        if request.whole_client
        else f"the client's keys of rounds {first} to {situation.head} (the client and its other requests stay)",
    )


Verdict: TypeAlias = tuple[Status, str]


def checklist(
    situation: Situation, *, adapter: Verdict, rule_state: Verdict, control: Verdict, updates: Verdict
) -> tuple[Touch, ...]:
    """Fill in the checklist.

    Parameters
    ----------
    situation : Situation
        Whose rule says what it keeps, of all clients together and of each.
    adapter : (status, why)
        What becomes of the global adapter.
    rule_state : (status, why)
        What becomes of what the rule keeps, if it keeps anything.
    control : (status, why)
        What becomes of what the rule keeps of each other client, if it keeps anything.
    updates : (status, why)
        What becomes of the other clients' updates from t_u on.
    """
    rule = situation.aggregator
    kept = ", ".join(rule.state_fields)
    on_server: Verdict = (rule_state[0], f"{kept}: {rule_state[1]}") if kept else ("unaffected", "the rule keeps none")
    residual = ", ".join(situation.scheme.state_fields)
    of_residual: Verdict = ("unaffected", "the LoRA scheme keeps none")
    if residual:  # an unlearning update moves the adapter alone
        exact = updates[0] != "not covered"
        of_residual = (adapter[0], f"{residual}: {adapter[1]}") if exact else ("not covered", f"{residual}: stays")
    of_others: Verdict = control if rule.needs_client_state else ("unaffected", "the rule keeps none")
    return (
        Touch("global adapter", *adapter),
        Touch("residual beside the base model", *of_residual),
        Touch("server rule state", *on_server),
        Touch("aggregation weights, population count", "cleaned", "over who is left"),
        Touch(
            "learning-rate schedule",
            "unaffected",
            "depends on the round and on the branch's last, on no client",
        ),
        Touch("clients that the rule needs", "unaffected", "every round still has enough, or the plan is refused"),
        Touch("selection", "unaffected", "each client's hash is its own; rounds that had selected it fill the place"),
        Touch("other clients' later updates", *updates),
        Touch("control variates of other clients", *of_others),
        Touch("gate state", "cleaned", "without the norms of the client's updates"),
        Touch(
            "adapter initialisation, ranks, base model",
            "unaffected",
            "from seed and config, before any data",
        ),
        Touch("model selection", "unaffected", "the last round is taken, nothing is chosen by results"),
        Touch("stored contributions, states, adapters, keys", "cleaned", "erased when the removal is committed"),
        Touch("coming back", "cleaned", "an exclusion list keeps it out of later rounds and of restored copies"),
    )
