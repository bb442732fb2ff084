"""A round, written once for every engine: select, ask, gate, store, aggregate, commit.

An engine supplies only `oblivion.federation.hosts.Hosts`: how a message reaches a host and how the reply comes back.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence

from oblivion.aggregation.gate import Gate, GateState, limited, update_norm
from oblivion.aggregation.round import RoundState, aggregate_round, scheme_error
from oblivion.aggregation.rule import Rule
from oblivion.aggregation.rules.control import ControlRule
from oblivion.aggregation.scheme import LoraScheme
from oblivion.config import RunConfig
from oblivion.errors import FederationError, plural
from oblivion.federation.absence import check_quorum, halved, missing, refused_again, told
from oblivion.federation.accounting import cost_of, count, mean_loss
from oblivion.federation.asking import ask_for_clients, dispatch
from oblivion.federation.client_store import ClientStore
from oblivion.federation.hosts import Hosts
from oblivion.federation.replay import replay_of
from oblivion.ledger.rounds import Branch, CohortOutcome, Ledger, RoundRecord, Selection, line
from oblivion.models.factors import only
from oblivion.parts import run_fingerprint
from oblivion.privacy.budget import charge
from oblivion.privacy.noise import derive_key
from oblivion.run.events import Observer
from oblivion.selection import form_cohorts, select_clients, servable, without
from oblivion.training.reach import reach
from oblivion.types import Adapter, ClientTask, ClientUpdate, GlobalState, RoundInfo, TrainRequest
from oblivion.visit_steps import steps_per_visit


class Federation:
    """Clients, hosts, the rule and the ledger; it runs rounds on branches.

    Parameters
    ----------
    config : RunConfig
        Resolved.
    hosts : Hosts
        The engine.
    ledger : Ledger
        Where rounds are committed.
    initial : Adapter
        The adapter before any training: what every update must look like.
    observer : Observer
        Who is told what happens.
    """

    def __init__(self, config: RunConfig, hosts: Hosts, ledger: Ledger, initial: Adapter, observer: Observer) -> None:
        self.config = config
        self.hosts = hosts
        self.ledger = ledger
        self.observer = observer
        self.sizes: dict[str, int] = {}
        self.id_keys: Mapping[str, bytes] = {}
        self.copies: dict[str, Mapping[str, int]] = {}  # client id to sample id to its number of rows; unnamed, 1
        self.store: ClientStore | None = None  # what clients keep for themselves, where hosts can reach it
        self.context = math.inf  # tokens that a row can have, where that is known
        train = config.train
        self.gate = Gate(
            initial,
            config.federation.max_update_norm,
            run_fingerprint(config),
            steps=lambda examples: steps_per_visit(examples, train.batch_size, train.local_epochs),
            tokens=lambda examples: examples * train.local_epochs * self.context,
        )
        self.serves: dict[str, list[str]] = {}
        self.replay = replay_of(config, ledger, self.sizes)
        self._heads: dict[str, RoundState] = {}
        self._warned: set[str] = set()

    @property
    def rule(self) -> Rule:
        """The server rule."""
        return self.replay.aggregation.rule

    @property
    def scheme(self) -> LoraScheme:
        """The LoRA scheme."""
        return self.replay.aggregation.scheme

    def describe(self, known: Mapping[str, int] | None = None) -> None:
        """Ask every host which clients it serves; see `ask_for_clients`."""
        sizes, self.serves = ask_for_clients(self.hosts, self.config.to_json(), self.observer, known)
        self.sizes.update(sizes)  # the replay looks at the same mapping

    def begin(self, branch: Branch, start: Adapter | None = None) -> None:
        """Open a branch if it is not there yet: at its parent's round `fork`, or at the adapter `start`."""
        if self.has(branch.name):
            return
        if start is None:
            self.ledger.open_branch(branch)
            return
        state = GlobalState(adapter=start)
        self.ledger.open_branch(
            branch,
            RoundState(round=0, state=state, rule_state=self.scheme.init(self.rule, state), gate_state=GateState()),
        )

    def has(self, name: str) -> bool:
        """Whether a branch was begun."""
        return any(branch.name == name for branch in self.ledger.branches())

    def forget_branch(self, name: str) -> None:
        """Remove a branch that nothing will go on from."""
        self.ledger.drop(name)
        if self.store is not None:
            self.store.forget_branch(name)
        self._heads.pop(name, None)

    def forget_heads(self) -> None:
        """Hold no state in memory; what was erased must not stay there."""
        self._heads.clear()

    def private_store(self, branch: str) -> tuple[str, tuple[tuple[str, int, int], ...]]:
        """Return where clients keep what is theirs, and the rounds of a branch so far; nothing where they keep nothing.

        These are `VisitRequest.store` and `VisitRequest.line`.
        """
        if self.store is None or not self.store.folder.is_dir():
            return "", ()
        branches = {known.name: known for known in self.ledger.branches()}
        return str(self.store.folder.absolute()), tuple(line(branches, branch, self.head(branch).round))

    def head(self, name: str) -> RoundState:
        """Return the state after the branch's last committed round; see `Replay.head`."""
        if name not in self._heads:
            self._heads[name] = self.replay.head(name)
        return self._heads[name]

    def run_round(self, name: str, replayed: RoundRecord | None = None) -> RoundRecord:
        """Run the branch's next round, or finish it where a part of it is stored already, and commit it.

        Parameters
        ----------
        name : str
            A branch of the ledger.
        replayed : RoundRecord, optional
            The same round of the branch that is replayed: who was unavailable then stays out, and everyone else
            must answer, if need be at a second try.

        Raises
        ------
        FederationError
            If too few updates arrive for the quorum, or a replay cannot be completed.
        """
        since = time.monotonic()
        branch, head = self.ledger.branch(name), self.head(name)
        info = self.replay.info(name, head.round + 1)
        selection = self.ledger.selection(name, info.round) or self._select(info, replayed, head)
        asked = [client for cohort in selection.cohorts for client in cohort]
        self.observer.event("round_started", branch=name, round=info.round, rounds=branch.rounds, clients=len(asked))
        outcomes = self._train(branch, selection, info, head, replayed)
        stored = self.ledger.contributions(name, info.round)
        accepted = {update.client_id for update in stored}
        refused = {client: why for outcome in outcomes for client, why in outcome.refused.items()}
        failed = {client: why for outcome in outcomes for client, why in outcome.failed.items()}
        struck = dict(refused)
        quarantined = head.gate_state.quarantined(self.config.federation.quarantine_after)
        refused |= {client: quarantined[client] for client in selection.selected if client in quarantined}
        failed |= dict.fromkeys(set(selection.selected) - {*asked, *refused}, "was unavailable")
        check_quorum(self.config.federation.quorum, stored, asked, branch, info.round, failed | refused)
        aggregation = self.replay.aggregation
        after = aggregate_round(head, stored, info, aggregation, struck)
        private = aggregation.noised_mean is not None
        record = RoundRecord(
            branch=name,
            round=info.round,
            selected=selection.selected,
            accepted=tuple(sorted(accepted)),
            refused=dict(sorted(refused.items())),
            failed={client: why for client, why in sorted(failed.items()) if client not in accepted},
            # With privacy of clients, what was computed from their updates without noise is not told.
            loss=math.nan if private else self._loss(stored),
            scheme_error=math.nan if private else scheme_error(head, stored, info, aggregation, after),
            cost=cost_of(
                stored,
                head.state,
                len(asked),
                corrected=self.rule.needs_client_state,
                private=self.config.privacy.unit != "none",
            ),
            seconds=round(time.monotonic() - since, 3),
            halved=halved(selection.cohorts, stored, struck),
        )
        self._warn_of_skipped(stored)
        self.commit(record, after, branch)
        return record

    def _loss(self, stored: Sequence[ClientUpdate]) -> float:
        return mean_loss(limited(stored, self.config.federation.max_influence), self.config.federation.norm_factor)

    def commit(self, record: RoundRecord, after: RoundState, branch: Branch) -> None:
        """End a round of a branch; the state of one that cannot be aggregated again is kept."""
        due = record.round % self.config.ledger.checkpoint_every == 0 or record.round == branch.rounds
        self.ledger.commit(record, after, keep=due or record.unlearned)
        self._heads[branch.name] = after
        self.observer.round_committed(record, branch.rounds)

    def _select(self, info: RoundInfo, replayed: RoundRecord | None, head: RoundState) -> Selection:
        unavailable = {
            *(replayed.failed if replayed else ()),
            *head.gate_state.quarantined(self.config.federation.quarantine_after),
        }
        selected = select_clients(info.population, self.config.federation.clients_per_round, info.seed, info.round)
        asked = [client for client in selected if client not in unavailable]
        # Of all that were selected, whoever is there: a replay knows beforehand who fails, and the first run did not.
        cohorts = form_cohorts(selected, self.sizes, self.config.train.cohort_size)
        charged: dict[str, int] = {}
        if self.config.privacy.unit != "none":
            branch = self.ledger.branch(info.branch)
            samples = {client: max(1, self.left(branch, client)) for client in asked}
            others = len(selected) < len(info.population)
            charged = charge(self.config.privacy.unit, samples, selected, asked, others)
        unserved = [client for client in selected if client not in self.serves]
        cohorts = without(servable(without(cohorts, unserved), self.serves), unavailable)
        selection = Selection(branch=info.branch, round=info.round, selected=selected, cohorts=cohorts, charged=charged)
        self.ledger.begin(selection)
        return selection

    def rows(self, client: str, samples: Iterable[str]) -> int:
        """How many rows some of a client's samples are."""
        return sum(self.copies.get(client, {}).get(sample, 1) for sample in samples)

    def left(self, branch: Branch, client: str) -> int:
        """How many rows a client trains on: those that it described, without what was forgotten on the branch."""
        return self.sizes[client] - self.rows(client, branch.excluded(client))

    def _train(
        self, branch: Branch, selection: Selection, info: RoundInfo, head: RoundState, replayed: RoundRecord | None
    ) -> list[CohortOutcome]:
        """Train the cohorts of a round that are not stored yet, and store each as it comes.

        In a replay everyone must answer who has rows, and a cohort with a client that fails is trained once more.
        """
        outcomes = {outcome.cohort: outcome for outcome in self.ledger.outcomes(branch.name, selection.round)}
        common = TrainRequest(config=self.config.to_json(), info=info, state=head.state)
        failed: dict[int, CohortOutcome] = {}
        must_not: dict[int, dict[str, str]] = {}
        for _ in range(2 if replayed else 1):
            wanted = {i: c for i, c in enumerate(selection.cohorts) if i not in outcomes}
            tasks = self._tasks(branch, wanted, info, head)
            gate = self._gate(info, head, tasks)
            most = {task.client_id: self.left(branch, task.client_id) for cohort in tasks.values() for task in cohort}
            answers = dispatch(self.hosts, common, tasks, gate, self.sizes, self.serves, most)
            for outcome in refused_again(answers, replayed):
                must_not[outcome.cohort] = missing(outcome, branch, replayed)
                if must_not[outcome.cohort] or not (outcome.updates or outcome.refused):
                    failed[outcome.cohort] = outcome
                    continue
                self._warn_of_halving(outcome, selection.cohorts[outcome.cohort])
                self.ledger.append(outcome)
                outcomes[outcome.cohort] = dataclasses.replace(outcome, updates=())
                failed.pop(outcome.cohort, None)
        reasons = {client: why for of_cohort in must_not.values() for client, why in of_cohort.items()}
        if reasons:
            verb = "fails" if len(reasons) == 1 else "fail"
            raise FederationError(
                f"replay of round {info.round}: {' and '.join(sorted(reasons))} took part then and {verb} now "
                f"({told(dict(sorted(reasons.items())))}). Ask again once all answer, or forget those first"
            )
        return [outcome for _, outcome in sorted((outcomes | failed).items())]

    def _tasks(
        self, branch: Branch, cohorts: Mapping[int, tuple[str, ...]], info: RoundInfo, head: RoundState
    ) -> dict[int, tuple[ClientTask, ...]]:
        clients = [client for cohort in cohorts.values() for client in cohort]
        corrections: Mapping[str, Adapter] = {}
        if isinstance(self.rule, ControlRule):
            rate = self.config.train.learning_rate
            of_round = only(head.rule_state, self.scheme.trained(info.round))  # a scheme keeps a state for each factor
            corrections = self.rule.corrections(of_round, clients, info, rate)
        tasks = {c: dataclasses.replace(self.task(branch, c), correction=corrections.get(c, {})) for c in clients}
        if self.config.privacy.unit == "sample":
            secret = self.ledger.noise_secret(branch.name)  # it stays here: a visit is sent a key made from it
            keys = {c: derive_key(secret, "dp-sgd", info.round, c).hex() for c in clients}
            tasks = {c: dataclasses.replace(task, noise_key=keys[c]) for c, task in tasks.items()}
        return {i: tuple(tasks[client] for client in cohort) for i, cohort in cohorts.items()}

    def task(self, branch: Branch, client: str) -> ClientTask:
        """Return a client's part of a message: what it must not train on, and the key of its sample ids."""
        key = self.id_keys.get(client, b"").hex()
        return ClientTask(client_id=client, excluded=branch.excluded(client), id_key=key)

    def _gate(self, info: RoundInfo, head: RoundState, tasks: Mapping[int, tuple[ClientTask, ...]]) -> Gate:
        """The gate of a learning round: what clients train in it, how far that can take them, and the rounds before."""
        trained = self.scheme.trained(info.round)
        bound = head.gate_state.bound(self.config.federation.norm_factor, trained)
        expected = only(self.gate.reference, trained)
        start = update_norm(only(head.state.adapter, trained))
        size = sum(tensor.numel() for tensor in expected.values())
        pulls = {task.client_id: update_norm(task.correction) for cohort in tasks.values() for task in cohort}

        def far(client: str, examples: int) -> float:
            return reach(self.config.train, self.config.privacy, examples, size, start, pulls[client])

        gate = dataclasses.replace(self.gate, reference=expected)
        # With privacy no client may decide whether another's update is taken; each is clipped instead.
        if self.config.privacy.unit == "client" or not self.config.federation.norm_factor:
            return gate
        return dataclasses.replace(gate, max_norm=min(gate.max_norm, bound), reach=far)

    def _warn_of_halving(self, outcome: CohortOutcome, cohort: Sequence[str]) -> None:
        if halved([cohort], outcome.updates, outcome.refused) and "halved" not in self._warned:
            self._warned.add("halved")
            together = min(count(update, "together") for update in outcome.updates)
            self.observer.event(
                "warning",
                text=f"{len(cohort)} clients together do not fit into a host's memory: {together} are trained at a "
                "time. The same round in another run is then equal only up to rounding, unless that happens there as "
                f"well; set train.cohort={together} to avoid it",
            )

    def _warn_of_skipped(self, accepted: Sequence[ClientUpdate]) -> None:
        for update in accepted:
            skipped = count(update, "skipped")
            if skipped and update.client_id not in self._warned:
                self._warned.add(update.client_id)
                rows = f"{plural(skipped, 'row')} of {update.client_id}"
                text = f"left out whole, because longer than the context: {rows}"
                self.observer.event("warning", text=text, client=update.client_id, skipped=skipped)
