"""A round, written once for every engine: select, ask, gate, store, aggregate, commit.

An engine supplies only `Hosts`: how a message reaches a host and how the reply comes back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Protocol

from oblivion.aggregation import aggregators, schemes
from oblivion.aggregation.gate import Gate, GateState
from oblivion.aggregation.rule import Aggregator, LoraScheme
from oblivion.config import RunConfig
from oblivion.errors import FederationError
from oblivion.fingerprint import code_fingerprint
from oblivion.ledger.memory import Ledger, RoundRecord, RoundState
from oblivion.parameters import build
from oblivion.removal.plan import UnlearnPhase
from oblivion.selection import assign, form_cohorts, population, resolve_cohort_size, select_clients
from oblivion.types import (
    Adapter,
    ClientTask,
    ClientUpdate,
    Cost,
    ForgetRequest,
    HostReply,
    HostRequest,
    RoundInfo,
    Sample,
)
from server.events import Observer


class Hosts(Protocol):
    """How hosts are asked; the only thing an engine provides."""

    def names(self) -> tuple[str, ...]:
        """The hosts that are there, sorted."""
        ...

    def ask(self, requests: Sequence[HostRequest]) -> list[HostReply]:
        """Send one message to each host and wait; a host that does not answer in time is left out."""
        ...


@dataclasses.dataclass(frozen=True)
class Absence:
    """What a branch does without: a request's client or samples, and nothing else."""

    request: ForgetRequest | None = None

    def leaves(self, client: str) -> bool:
        """Whether a client takes no part any more."""
        return self.request is not None and self.request.whole_client and self.request.client_id == client

    def task(self, client: str) -> ClientTask:
        """The client's part of a training message."""
        if self.request is None or self.request.client_id != client or self.request.sample_ids is None:
            return ClientTask(client_id=client)
        return ClientTask(client_id=client, excluded=self.request.sample_ids)


class Federation:
    """Clients, hosts, the rule and the ledger; it runs rounds and unlearning visits on branches.

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
        self.rule: Aggregator = build(
            aggregators, config.federation.aggregator, config.federation.parameters, "federation.parameters"
        )
        self.scheme: LoraScheme = build(schemes, config.lora.scheme, {}, "lora.scheme")
        self.gate = Gate(initial, config.federation.max_update_norm, code_fingerprint())
        self.sizes: dict[str, int] = {}
        self.serves: dict[str, list[str]] = {}
        self._warned: set[str] = set()

    def describe(self) -> None:
        """Ask every host which clients it serves.

        Raises
        ------
        FederationError
            If no host answers.
        """
        settings = self.config.to_json()
        replies = self.hosts.ask(
            [HostRequest(kind="query.describe", host=name, config=settings) for name in self.hosts.names()]
        )
        for reply in sorted(replies, key=lambda r: r.host):
            for client, facts in reply.clients.items():
                self.sizes[client] = facts["samples"]
                self.serves.setdefault(client, []).append(reply.host)
        if not self.sizes:
            reasons = "; ".join(reason for reply in replies for reason in reply.failures.values())
            raise FederationError(f"no host says that it serves a client. {reasons}".strip())

    def _dispatch(self, common: HostRequest, tasks: Mapping[str, ClientTask]) -> tuple[list[HostReply], dict[str, str]]:
        """Send tasks to the hosts in whole cohorts; return the replies and who could not be served."""
        size = resolve_cohort_size(self.config.train.cohort)
        cohorts = form_cohorts(list(tasks), self.sizes, size)
        given = assign(cohorts, self.sizes, self.serves)
        requests = [
            dataclasses.replace(common, host=host, cohorts=tuple(tuple(tasks[c] for c in cohort) for cohort in mine))
            for host, mine in given.items()
        ]
        replies = self.hosts.ask(requests)
        failed: dict[str, str] = {}
        answered = {reply.host for reply in replies}
        for host, mine in given.items():
            if host not in answered:
                failed |= {client: "no reply from its host" for cohort in mine for client in cohort}
        for reply in replies:
            failed |= {client: reason for client, reason in reply.failures.items() if client in tasks}
        heard = failed.keys() | {update.client_id for reply in replies for update in reply.updates}
        failed |= {client: "its host answered without it" for client in tasks if client not in heard}
        return replies, dict(sorted(failed.items()))

    def run_round(
        self, branch: str, absence: Absence, rounds: int, seed: int, replayed: RoundRecord | None = None
    ) -> RoundRecord:
        """Run the branch's next round and commit it.

        Parameters
        ----------
        branch : str
            A branch of the ledger.
        absence : Absence
            What the branch does without.
        rounds : int
            Where the branch ends.
        seed : int
            The branch's root seed.
        replayed : RoundRecord, optional
            The same round of the branch that is replayed: who was unavailable then stays out, and everyone else
            must answer, if need be at a second try.

        Raises
        ------
        FederationError
            If too few updates arrive for the quorum, or a replay cannot be completed.
        """
        unavailable = set(replayed.failed) if replayed else set()
        head = self.ledger.head(branch)
        number = head.round + 1
        there = population([c for c in self.sizes if not absence.leaves(c)], self.config.federation.joins, number)
        selected = select_clients(there, self.config.federation.clients_per_round, seed, number)
        asked = {client: absence.task(client) for client in selected if client not in unavailable}
        info = RoundInfo(branch=branch, round=number, rounds=rounds, population=there, seed=seed)
        self.observer.event("round_started", branch=branch, round=number, rounds=rounds, clients=len(asked))
        replies, failed = self._ask_to_train(asked, info, head, must_answer=replayed is not None)
        accepted, refused, gate_state = self._admit(replies, asked, number, head)
        failed = {c: r for c, r in failed.items() if c not in {u.client_id for u in accepted}}
        if asked:  # a round may have nobody left; it then changes nothing
            self._check_quorum(accepted, asked, number, failed | refused)
        for update in accepted:
            self.ledger.append(branch, update)
        contributions = self.scheme.into(self.ledger.contributions(branch, number))
        state, rule_state = self.rule.apply(contributions, head.state, head.rule_state, info)
        after = RoundState(round=number, state=self.scheme.back(state), rule_state=rule_state, gate_state=gate_state)
        record = RoundRecord(
            branch=branch,
            round=number,
            selected=selected,
            accepted=tuple(update.client_id for update in accepted),
            refused=refused,
            failed=failed | {client: "was unavailable" for client in selected if client in unavailable},
            loss=_mean_loss(accepted),
            cost=_cost(accepted, head.state.adapter, len(asked)),
        )
        self._warn_of_skipped(accepted)
        self.ledger.commit(record, after)
        self.observer.round_committed(record, rounds)
        return record

    def _ask_to_train(
        self, asked: Mapping[str, ClientTask], info: RoundInfo, head: RoundState, must_answer: bool
    ) -> tuple[list[HostReply], dict[str, str]]:
        """Ask clients to train; where they must answer, those that fail are asked once more."""
        common = HostRequest(kind="train", config=self.config.to_json(), info=info, state=head.state)
        replies, failed = self._dispatch(common, asked)
        if must_answer and failed:
            again, failed = self._dispatch(common, {client: asked[client] for client in failed})
            replies += again
            if failed:
                raise FederationError(
                    f"replay of round {info.round}: {', '.join(sorted(failed))} took part then and fails now: "
                    f"{'; '.join(sorted(set(failed.values())))}"
                )
        return replies, failed

    def _admit(
        self, replies: Sequence[HostReply], asked: Iterable[str], number: int, head: RoundState
    ) -> tuple[tuple[ClientUpdate, ...], dict[str, str], GateState]:
        updates = [update for reply in replies for update in reply.updates]
        limits = {client: self.sizes[client] for client in asked}
        return self.gate.admit(updates, limits, number, head.gate_state)

    def _warn_of_skipped(self, accepted: Sequence[ClientUpdate]) -> None:
        for update in accepted:
            count = _count(update, "skipped")
            if count and update.client_id not in self._warned:
                self._warned.add(update.client_id)
                text = f"{count} of {update.client_id}'s rows are longer than the context and are left out whole"
                self.observer.event("warning", text=text, client=update.client_id, skipped=count)

    def _check_quorum(
        self, accepted: Sequence[ClientUpdate], asked: Sized, number: int, lost: Mapping[str, str]
    ) -> None:
        quorum = max(1, math.ceil(self.config.federation.quorum * len(asked)))
        if len(accepted) < quorum:
            reasons = "; ".join(f"{c}: {why}" for c, why in sorted(lost.items()))
            raise FederationError(
                f"round {number}: {len(accepted)} of {len(asked)} clients gave a usable update, "
                f"federation.quorum asks for {quorum}. {reasons}"
            )

    def unlearn(
        self, branch: str, request: ForgetRequest, phase: UnlearnPhase, public: Sequence[Sample]
    ) -> RoundRecord:
        """Let the target client unlearn from the branch's head and apply its update outside the rule.

        Raises
        ------
        FederationError
            If the client does not answer, or its update does not pass the gate.
        """
        head = self.ledger.head(branch)
        client = request.client_id
        info = RoundInfo(
            branch=branch, round=phase.round, rounds=phase.round, population=(client,), seed=self.config.seed
        )
        common = HostRequest(
            kind="train.unlearn",
            config=self.config.to_json(),
            info=info,
            state=head.state,
            objective=phase.objective,
            parameters=phase.parameters,
            public=tuple(public) if phase.anchor == "public" else (),
        )
        self.observer.event("round_started", branch=branch, round=phase.round, rounds=phase.round, clients=1)
        task = {client: ClientTask(client_id=client, forget=request.sample_ids)}
        replies, failed = self._dispatch(common, task)
        if failed:  # the whole removal hangs on this one reply
            replies, failed = self._dispatch(common, task)
        accepted, refused, _ = self._admit(replies, [client], phase.round, head)
        if not accepted:
            why = {**failed, **refused}.get(client, "no update")
            raise FederationError(f"{client} could not unlearn: {why}")
        state = apply_unlearning(head, accepted[0], phase)
        record = RoundRecord(
            branch=branch,
            round=phase.round,
            selected=(client,),
            accepted=(client,),
            loss=_mean_loss(accepted),
            cost=_cost(accepted, head.state.adapter, 1),
        )
        self.ledger.commit(record, state)
        self.observer.round_committed(record, phase.round)
        return record


def apply_unlearning(head: RoundState, update: ClientUpdate, phase: UnlearnPhase) -> RoundState:
    """``global + scale * update``, the update first scaled down to `max_norm`; no rule state is touched."""
    import torch

    norm = math.sqrt(sum(float(t.to(torch.float64).square().sum()) for t in update.delta.values()))
    factor = phase.scale * min(1.0, phase.max_norm / norm) if norm > 0 else 0.0
    adapter = {
        name: (tensor.to(torch.float64) + factor * update.delta[name].to(torch.float64)).to(torch.float32)
        for name, tensor in head.state.adapter.items()
    }
    return dataclasses.replace(head, round=phase.round, state=dataclasses.replace(head.state, adapter=adapter))


def _mean_loss(accepted: Sequence[ClientUpdate]) -> float:
    weight = sum(update.num_examples for update in accepted)
    return sum(u.metrics.get("loss", math.nan) * u.num_examples for u in accepted) / weight if weight else math.nan


def _count(update: ClientUpdate, name: str) -> int:
    value = update.metrics.get(name, 0.0)  # the gate does not look at metrics, and a client may send anything
    return int(value) if math.isfinite(value) else 0


def _cost(accepted: Sequence[ClientUpdate], adapter: Adapter, asked: int) -> Cost:
    size = sum(tensor.numel() * tensor.element_size() for tensor in adapter.values())
    return Cost(
        client_steps=sum(update.steps for update in accepted),
        tokens=sum(_count(update, "tokens") for update in accepted),
        bytes_up=size * len(accepted),
        bytes_down=size * asked,
    )
