"""What phases have done by a federation: ordinary rounds, visits of chosen clients, and steps of the server."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from oblivion.aggregation.gate import Gate
from oblivion.aggregation.round import RoundState
from oblivion.errors import FederationError
from oblivion.federation.absence import halved
from oblivion.federation.accounting import cost_of, mean_loss
from oblivion.federation.asking import dispatch
from oblivion.federation.history import History
from oblivion.federation.rounds import Federation
from oblivion.ledger.rounds import Branch, CohortOutcome, RoundRecord
from oblivion.models.factors import only
from oblivion.named_statistics import Statistic, check_schema
from oblivion.objectives.terms import FinishesVisit, objective_from
from oblivion.removal.ledger_reader import LedgerReader
from oblivion.removal.phases import ServerStep, Visit
from oblivion.selection import form_cohorts
from oblivion.training.batches import NO_ROWS
from oblivion.training.outputs import Wanted
from oblivion.types import Adapter, ForgetRequest, Sample, VisitRequest
from oblivion.visit_steps import steps_per_visit


class PhaseRunner:
    """Runs the phases of one plan by a federation; an `oblivion.removal.phases.Runner`.

    Parameters
    ----------
    federation : Federation
        The clients, the rule and the ledger.
    history : str
        The branch whose rounds are corrected: steps of the server read it.
    replayed : mapping of int to RoundRecord, optional
        The rounds that are run again, by number: who was unavailable then stays out.
    public : sequence of Sample, optional
        The server's own rows, for anchors.
    """

    def __init__(
        self,
        federation: Federation,
        history: str,
        replayed: Mapping[int, RoundRecord] | None = None,
        public: Sequence[Sample] = (),
    ) -> None:
        self.federation = federation
        self.corrected = history
        self.replayed = replayed or {}
        self.public = public

    def head(self, branch: str) -> RoundState:
        """Return the state after the branch's last committed round."""
        return self.federation.head(branch)

    def _history(self, branch: str) -> LedgerReader:
        """Return a reader of the history that is corrected, which aggregates as the branch does."""
        return History(self.federation.replay, self.corrected, branch)

    def line(self, branch: str) -> LedgerReader:
        """Return a reader of the branch itself and of the rounds that led to it."""
        return History(self.federation.replay, branch)

    def learn(self, branch: str, replay: bool) -> None:
        """Run an ordinary round; with `replay`, as the round of this number once was."""
        number = self.head(branch).round + 1
        self.federation.run_round(branch, self.replayed.get(number) if replay else None)

    def visit(self, branch: str, request: ForgetRequest | None, visit: Visit) -> None:
        """Have the clients of a visit train, and combine their updates outside the rule.

        The updates are not stored.

        Raises
        ------
        FederationError
            If a client does not answer, or its update does not pass the gate.
        """
        since, federation = time.monotonic(), self.federation
        found, head = federation.ledger.branch(branch), federation.head(branch)
        number = head.round + 1
        info = dataclasses.replace(federation.replay.info(branch, number), population=visit.clients, rounds=number)
        objective = objective_from(visit.objective, visit.parameters)
        statistics: dict[str, Statistic] = {}
        if isinstance(objective, FinishesVisit):
            statistics = check_schema(objective.schema(head.state.adapter))
            if federation.store is not None:
                federation.store.prepare()
        store, line = federation.private_store(branch)
        common = VisitRequest(
            config=federation.config.to_json(),
            info=info,
            state=head.state,
            objective=visit.objective,
            parameters=visit.parameters,
            local_epochs=visit.local_epochs,
            learning_rate=visit.learning_rate,
            public=tuple(self.public) if visit.anchor == "public" else (),
            statistics=statistics,
            store=store,
            line=line,
        )
        count = len(visit.clients)
        federation.observer.event("round_started", branch=branch, round=number, rounds=found.rounds, clients=count)
        outcomes = self._ask(found, request, visit, common)
        updates = sorted((u for outcome in outcomes for u in outcome.updates), key=lambda update: update.client_id)
        after = dataclasses.replace(visit.combine.combine(head, updates, self._history(branch)), round=number)
        self._check(head, after, f"the combination '{visit.combine.name}'")
        if visit.reset_rule_state:
            after = self._anew(after)
        record = RoundRecord(
            branch=branch,
            round=number,
            selected=visit.clients,
            accepted=tuple(update.client_id for update in updates),
            failed={client: why for outcome in outcomes for client, why in outcome.failed.items()},
            loss=mean_loss(updates),
            cost=cost_of(updates, head.state, count, corrected=False, private=False),  # it is refused with privacy
            seconds=round(time.monotonic() - since, 3),
            unlearned=True,
            halved=halved([[u.client_id for u in outcome.updates] for outcome in outcomes], updates, ()),
        )
        federation.commit(record, after, found)

    def serve(self, branch: str, step: ServerStep) -> None:
        """Apply a step of the server to the state.

        Raises
        ------
        FederationError
            If what it gives is no adapter of this run, or is not finite.
        """
        since, federation = time.monotonic(), self.federation
        found, head = federation.ledger.branch(branch), federation.head(branch)
        number = head.round + 1
        federation.observer.event("round_started", branch=branch, round=number, rounds=found.rounds, clients=0)
        after = dataclasses.replace(step.function(head, self._history(branch)), round=number)
        self._check(head, after, f"the step '{step.name}'")
        if step.reset_rule_state:
            after = self._anew(after)
        seconds = round(time.monotonic() - since, 3)
        record = RoundRecord(branch=branch, round=number, selected=(), accepted=(), seconds=seconds, unlearned=True)
        federation.commit(record, after, found)

    def _anew(self, after: RoundState) -> RoundState:
        federation = self.federation
        return dataclasses.replace(after, rule_state=federation.scheme.init(federation.rule, after.state))

    def _ask(
        self, branch: Branch, request: ForgetRequest | None, visit: Visit, common: VisitRequest
    ) -> list[CohortOutcome]:
        """Ask the clients of a visit, those that fail once more: the whole removal hangs on their replies.

        Of several clients, one without rows that forgot some since may be left out.
        """
        federation, info = self.federation, common.info
        forget: tuple[str, ...] | None = ()  # none of them: the clients train on their own rows
        if visit.rows == "forget":
            assert request is not None
            forget = request.sample_ids
        tasks = {c: dataclasses.replace(federation.task(branch, c), forget=forget) for c in visit.clients}
        most = {c: federation.rows(c, set(forget)) if forget else federation.left(branch, c) for c in visit.clients}
        cohorts = form_cohorts(visit.clients, federation.sizes, federation.config.train.cohort_size)
        waiting = {index: tuple(tasks[client] for client in cohort) for index, cohort in enumerate(cohorts)}
        gate, done = self._gate(visit, info.round, common.statistics), dict[int, CohortOutcome]()
        for _ in range(2):
            answers = dispatch(federation.hosts, common, waiting, gate, federation.sizes, federation.serves, most)
            done |= {outcome.cohort: outcome for outcome in answers}
            waiting = {
                index: cohort
                for index, cohort in waiting.items()
                if done[index].failed and _lacking(done[index], branch, visit)
            }
            if not waiting:
                break
        lacking = {c: why for outcome in done.values() for c, why in _lacking(outcome, branch, visit).items()}
        if lacking:
            client, why = min(lacking.items())
            verb = "unlearn" if visit.rows == "forget" else "train"
            raise FederationError(f"{client} could not {verb}: {why}")
        return [outcome for _, outcome in sorted(done.items())]

    def _gate(self, visit: Visit, number: int, statistics: Mapping[str, Statistic]) -> Gate:
        """Return the gate of a visit. History gives no bound: an unlearning update goes another way than learning."""
        federation = self.federation
        batch, epochs = federation.config.train.batch_size, visit.local_epochs
        wanted = Wanted.of(objective_from(visit.objective, visit.parameters))
        passes = sum(len(roles) for roles in wanted.kinds.values())  # over a batch of each role, teachers included
        return dataclasses.replace(
            federation.gate,
            reference=only(federation.gate.reference, federation.scheme.trained(number)),
            steps=lambda examples: steps_per_visit(examples, batch, epochs),
            tokens=lambda examples: passes * steps_per_visit(examples, batch, epochs) * batch * federation.context,
            statistics=statistics,
        )

    def _check(self, before: RoundState, after: RoundState, what: str) -> None:
        """Refuse a state that is none of this run: removals from other packages make states, too."""
        if not _alike(before.state.adapter, after.state.adapter):
            raise FederationError(f"{what} gives an adapter with other names or shapes than the run's")
        tensors = (*after.state.adapter.values(), *after.state.residual.values())
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise FederationError(f"{what} gives numbers that are not finite; smaller settings may help")


def _lacking(outcome: CohortOutcome, branch: Branch, visit: Visit) -> dict[str, str]:
    """Return the clients of a cohort whose update is missing and has to be there, each with the reason."""
    several, lost = len(visit.clients) > 1, {**outcome.failed, **outcome.refused}
    return {c: why for c, why in lost.items() if not (several and why == NO_ROWS and branch.excluded(c))}


def _alike(one: Adapter, other: Adapter) -> bool:
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and one[name].dtype == other[name].dtype for name in one
    )
