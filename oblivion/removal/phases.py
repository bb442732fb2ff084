"""Phases are the steps of which learning and removals are made. Each plans its own rounds, and runs and commits them.

A phase begins where the one before it ended, so its rounds have no fixed numbers. Whatever it commits is a round of
its branch: a phase that is interrupted is taken up after the last round that was committed.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

from oblivion.aggregation.compatibility import short_round
from oblivion.aggregation.round import RoundState
from oblivion.ledger.rounds import RoundRecord
from oblivion.removal.combinations import Add, Combination
from oblivion.removal.context import PlanningContext
from oblivion.removal.ledger_reader import LedgerReader
from oblivion.types import ForgetRequest


class Runner(Protocol):
    """What a phase may have done by the federation: `learn`, `visit` and `serve` each commit one round of a branch."""

    def head(self, branch: str) -> RoundState:
        """Return the state after the branch's last committed round."""
        ...

    def learn(self, branch: str, replay: bool) -> None:
        """Run an ordinary round; with `replay`, as the round of this number once was, without the forgotten data."""
        ...

    def visit(self, branch: str, request: ForgetRequest | None, visit: Visit) -> None:
        """Have the clients of a visit train, and combine their updates."""
        ...

    def serve(self, branch: str, step: ServerStep) -> None:
        """Apply a step of the server to the state."""
        ...

    def line(self, branch: str) -> LedgerReader:
        """Return a reader of the branch itself and of the rounds that led to it."""
        ...


class Phase(ABC):
    """A part of a plan: a number of rounds, each committed by itself.

    Its kinds are frozen dataclasses. `at` is always the round at which the branch stands before the phase.

    Attributes
    ----------
    kind : str
        The name of the kind of phase, in plans and evidence.
    rounds : int
        How many rounds it commits at most.
    """

    kind: ClassVar[str]
    rounds: int

    @abstractmethod
    def run(self, federation: Runner, branch: str, request: ForgetRequest | None, at: int) -> int:
        """Run the rounds that are not committed yet, and return the round at which the branch then stands."""

    def begins(self, at: int) -> int:
        """Return the round from whose state the phase goes on."""
        return at

    def charge(self, context: PlanningContext, at: int) -> list[dict[str, int]]:
        """Return who pays for its rounds from the privacy budget, one mapping for each round that costs anything."""
        return []

    def cost(self, context: PlanningContext, at: int) -> int:
        """Return the client-steps that it takes at most."""
        return 0

    def refusal(self, request: ForgetRequest, context: PlanningContext, at: int) -> str:
        """Say why the federation cannot run the phase; empty where it can."""
        return ""

    def objectives(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the objectives, with their parameters, that clients train with outside ordinary rounds."""
        return []

    def values(self) -> dict[str, Any]:
        """Return the phase as plain values, for ``plan.json`` and evidence."""
        settings = dataclasses.fields(self)  # type: ignore[arg-type]
        return {f.name: plain(getattr(self, f.name)) for f in settings if f.repr and f.name != "rounds"}


class Stepwise(Phase):
    """A phase that runs each of its rounds in the same way."""

    @abstractmethod
    def step(self, federation: Runner, branch: str, request: ForgetRequest | None) -> None:
        """Run and commit the next round of the branch."""

    def run(self, federation: Runner, branch: str, request: ForgetRequest | None, at: int) -> int:
        """Run the rounds that are not committed yet, and return the round at which the branch then stands."""
        for number in range(at + 1, at + self.rounds + 1):
            if federation.head(branch).round < number:
                self.step(federation, branch, request)
        return at + self.rounds


def plain(value: Any) -> Any:
    """Return a setting of a phase as plain JSON values; a part with a name is written with it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"name": value.name, **own} if hasattr(value, "name") and "name" not in own else own
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Restore(Phase):
    """Go back to the state after an earlier round; only a plan's first phase can do so.

    Attributes
    ----------
    round : int
        The round; 0 is the state before any training.
    """

    round: int
    rounds: int = field(default=0, init=False, repr=False)
    kind: ClassVar[str] = "restore"

    def run(self, federation: Runner, branch: str, request: ForgetRequest | None, at: int) -> int:
        """Return the restored round, at which the branch was opened."""
        return self.round

    def begins(self, at: int) -> int:
        """Return the restored round."""
        return self.round


@dataclass(frozen=True, kw_only=True)
class Rounds(Stepwise):
    """Run ordinary rounds without the forgotten data.

    Attributes
    ----------
    rounds : int
        The number of rounds.
    replay : bool
        Whether clients that were unavailable in the original rounds stay out of the rounds of the same number.
    """

    rounds: int
    replay: bool = False
    kind: ClassVar[str] = "rounds"

    def step(self, federation: Runner, branch: str, request: ForgetRequest | None) -> None:
        """Run one round."""
        federation.learn(branch, self.replay)

    def charge(self, context: PlanningContext, at: int) -> list[dict[str, int]]:
        """Return the charge of each round."""
        return context.charges(at + 1, at + self.rounds)

    def cost(self, context: PlanningContext, at: int) -> int:
        """Return the client-steps of the clients that are selected."""
        return context.rounds_cost(at + 1, at + self.rounds)

    def refusal(self, request: ForgetRequest, context: PlanningContext, at: int) -> str:
        """Name the first round that has fewer clients than the rule needs."""
        rule, unavailable = context.aggregator, {record.round: record.failed for record in context.records}
        for number in range(at + 1, at + self.rounds + 1):
            absent = unavailable.get(number, ()) if self.replay else ()
            there = [client for client, steps in context.steps.items() if steps and client not in absent]
            short = short_round(rule, there, context.joins, context.clients_per_round, [number])
            if short:
                return (
                    f"{rule!r} needs at least {short[2]} clients in a round, and without {request.client_id} "
                    f"round {number} has {short[1]}. The rule of a run cannot change: 'local' with recovery-rounds = 0 "
                    "has no such round; or run again with a rule that needs fewer clients"
                )
        return ""


@dataclass(frozen=True, kw_only=True)
class Visit(Stepwise):
    """Have chosen clients train with an objective, and combine their updates outside the rule, in one round.

    The updates are not stored: an unlearning update is the data's mirror image.

    Attributes
    ----------
    clients : tuple of str
        The clients that train.
    rows : str
        ``"forget"``: on the rows that the request names; ``"own"``: on all their rows without the forgotten ones.
    objective, parameters
        The registered name of the local loss, and its parameters.
    local_epochs : int
        The number of passes over the rows.
    learning_rate : float
        The learning rate of these passes.
    combine : Combination
        How their updates become the next state.
    anchor : str
        Rows to keep beside those to forget: the server's ``"public"`` ones, the client's ``"retained"`` ones, or
        ``"none"``.
    reset_rule_state : bool
        Whether the rule begins anew afterwards, because its momentum or moments hold the client.
    """

    clients: tuple[str, ...]
    rows: Literal["forget", "own"] = "forget"
    objective: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    local_epochs: int
    learning_rate: float
    combine: Combination = field(default_factory=Add)
    anchor: Literal["public", "retained", "none"] = "none"
    reset_rule_state: bool = True
    rounds: int = field(default=1, init=False, repr=False)
    kind: ClassVar[str] = "visit"

    def step(self, federation: Runner, branch: str, request: ForgetRequest | None) -> None:
        """Run the visit."""
        federation.visit(branch, request, self)

    def objectives(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the visit's objective."""
        return [(self.objective, self.parameters)]

    def cost(self, context: PlanningContext, at: int) -> int:
        """Return the client-steps of all that train."""
        if self.rows == "forget":
            return len(self.clients) * context.visit_cost(context.forgotten, self.local_epochs)
        return sum(context.visit_cost(context.usable.get(client, 0), self.local_epochs) for client in self.clients)

    def refusal(self, request: ForgetRequest, context: PlanningContext, at: int) -> str:
        """Refuse a visit where updates carry privacy noise."""
        return _without_noise("an unlearning visit has no noise, so its update", context)


ServerFunction: TypeAlias = Callable[[RoundState, LedgerReader], RoundState]


@dataclass(frozen=True, kw_only=True)
class ServerStep(Stepwise):
    """Apply a pure function of the state and of the run's history, in one round and without any client.

    Attributes
    ----------
    name : str
        What it does, in a word or two.
    function : callable
        From the state and a reader of the history that is being corrected to the next state. It must give the same
        bits each time; the number of its round is set for it.
    settings : mapping
        The function's settings, for ``plan.json``.
    reset_rule_state : bool
        Whether the rule begins anew afterwards.
    """

    name: str
    function: ServerFunction = field(repr=False, compare=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    reset_rule_state: bool = True
    rounds: int = field(default=1, init=False, repr=False)
    kind: ClassVar[str] = "server-step"

    def step(self, federation: Runner, branch: str, request: ForgetRequest | None) -> None:
        """Apply the function."""
        federation.serve(branch, self)

    def refusal(self, request: ForgetRequest, context: PlanningContext, at: int) -> str:
        """Refuse a step on stored updates where privacy rests on noise that they do not carry."""
        return _without_noise("a step on stored updates adds no noise, so its result", context)


def _without_noise(what: str, context: PlanningContext) -> str:
    if context.budget is None:
        return ""
    return (
        f"{what} would end what the run promises with privacy.unit = '{context.budget.privacy.unit}'; 'exclude', "
        "'rollback' and 'retrain' keep the promise"
    )


class StoppingRule(Protocol):
    """Decides after a committed round whether a phase is done: a pure function of what is committed."""

    name: str

    def __call__(self, line: LedgerReader, began: int, record: RoundRecord) -> bool:
        """Say whether to stop after the round of `record`; `began` is the round before the first of the phase."""
        ...


@dataclass(frozen=True, kw_only=True)
class Until(Phase):
    """Run phases, if need be again, until a rule says that it is enough.

    The rule is asked after each committed round, and never inside one. Its answer follows from what is committed, so
    a run that was interrupted stops at the same round.

    Attributes
    ----------
    phases : tuple of Stepwise
        What is run, in order.
    stop : StoppingRule
        The rule.
    times : int
        How often the phases are run at most.
    """

    phases: tuple[Stepwise, ...]
    stop: StoppingRule
    times: int = 1
    rounds: int = field(init=False, repr=False)
    kind: ClassVar[str] = "until"

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"times = {self.times}; it must be at least 1")
        if not all(isinstance(phase, Stepwise) for phase in self.phases):
            raise ValueError(
                "a stopping rule can neither stand around another one nor around a restored state; its phases must be "
                "Stepwise"
            )
        object.__setattr__(self, "rounds", self.times * sum(phase.rounds for phase in self.phases))

    def _one_by_one(self) -> list[Stepwise]:
        """Return the phase of every round, in order."""
        return [phase for phase in self.phases for _ in range(phase.rounds)] * self.times

    def run(self, federation: Runner, branch: str, request: ForgetRequest | None, at: int) -> int:
        """Run round after round until the rule stops it."""
        for number, phase in enumerate(self._one_by_one(), start=at + 1):
            if federation.head(branch).round < number:
                phase.step(federation, branch, request)
            line = federation.line(branch)
            if self.stop(line, at, line.record(number)):
                return number
        return at + self.rounds

    def charge(self, context: PlanningContext, at: int) -> list[dict[str, int]]:
        """Return the charges of all rounds that there can be."""
        return [charge for phase, start in self._starts(at) for charge in phase.charge(context, start)]

    def cost(self, context: PlanningContext, at: int) -> int:
        """Return the client-steps of all rounds that there can be."""
        return sum(phase.cost(context, start) for phase, start in self._starts(at))

    def refusal(self, request: ForgetRequest, context: PlanningContext, at: int) -> str:
        """Return the first reason of any phase."""
        reasons = (phase.refusal(request, context, start) for phase, start in self._starts(at))
        return next((reason for reason in reasons if reason), "")

    def objectives(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the objectives of all phases."""
        return [objective for phase in self.phases for objective in phase.objectives()]

    def values(self) -> dict[str, Any]:
        """Return the rule and the phases as plain values."""
        inner = [{"kind": phase.kind, **phase.values()} for phase in self.phases]
        return {"phases": inner, "stop": plain(self.stop), "times": self.times}

    def _starts(self, at: int) -> list[tuple[Phase, int]]:
        return starts(self.phases * self.times, at)


def starts(phases: Sequence[Phase], at: int) -> list[tuple[Phase, int]]:
    """Return each phase with the round at which it begins, for a branch that stands at `at`."""
    placed = []
    for phase in phases:
        at = phase.begins(at)
        placed.append((phase, at))
        at += phase.rounds
    return placed


def run_phases(phases: Sequence[Phase], federation: Runner, branch: str, request: ForgetRequest | None, at: int) -> int:
    """Run phases one after another, and return the round at which the branch then stands."""
    for phase in phases:
        at = phase.run(federation, branch, request, at)
    return at
