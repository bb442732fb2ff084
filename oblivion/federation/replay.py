"""From stored contributions to states again: `aggregate_round` is a pure function, so that a round can be repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from oblivion.aggregation import rule_of, scheme_of
from oblivion.aggregation.gate import QUARANTINE
from oblivion.aggregation.round import Aggregation, NoisedMean, RoundState, aggregate_round
from oblivion.aggregation.rules.control import ControlRule
from oblivion.aggregation.schemes.products import as_adapter
from oblivion.config import RunConfig
from oblivion.errors import IntegrityError
from oblivion.ledger.rounds import Branch, Ledger, RoundRecord, line
from oblivion.privacy.client_noise import client_privacy_of
from oblivion.run_format import open_run
from oblivion.selection import population
from oblivion.types import RoundInfo


class Replay:
    """Aggregates the contributions that a ledger stored again.

    Parameters
    ----------
    ledger : Ledger
        The ledger that holds the contributions.
    aggregation : Aggregation
        The settings of the run.
    info : callable
        Makes the `RoundInfo` of a branch's round from the branch's name and the round.
    """

    def __init__(self, ledger: Ledger, aggregation: Aggregation, info: Callable[[str, int], RoundInfo]) -> None:
        self.ledger = ledger
        self.aggregation = aggregation
        self.info = info

    def state(self, name: str, round: int, start: RoundState | None = None) -> RoundState:
        """Return the state after a round of a branch's line.

        Parameters
        ----------
        name : str
            The branch.
        round : int
            The round; at least the branch's fork.
        start : RoundState, optional
            An earlier state of the line; by default the last one that is kept at or before the round.

        Raises
        ------
        IntegrityError
            If contributions between the two states are no longer stored.
        """
        state = start or self.ledger.last_state(name, round)
        records = {record.round: record for record in self.ledger.records(name)}
        for number in range(state.round + 1, round + 1):
            owner = self.owner(name, number)
            contributions = self.ledger.contributions(owner.name, number)
            record = records[number]
            if record.unlearned or tuple(update.client_id for update in contributions) != record.accepted:
                raise IntegrityError(
                    f"the state after round {number} of {name!r} cannot be aggregated again: its contributions are not "
                    "all kept"
                )
            entered, info = self._entering(owner, state), self.info(owner.name, number)
            state = aggregate_round(entered, contributions, info, self.aggregation, _struck(record))
        return self._entering(self.ledger.branch(name), state)

    def head(self, name: str) -> RoundState:
        """Return the state after the branch's last committed round; aggregated again where it is not kept."""
        done = self.ledger.records(name)
        return self.state(name, done[-1].round if done else self.ledger.branch(name).fork)

    def check(self, name: str) -> int:
        """Aggregate a branch's own rounds again from the ledger, and compare the results with the states that it kept.

        Returns
        -------
        int
            The number of rounds that were aggregated again.

        Raises
        ------
        IntegrityError
            If a stored state differs from the result.
        """
        branch = self.ledger.branch(name)
        own = [record for record in self.ledger.records(name) if record.branch == name]
        kept = set(self.ledger.restorable(name))
        state, count = None, 0
        for record in own:
            if record.unlearned or record.round - 1 not in kept:
                state = None
                continue
            before = state or self.state(name, record.round - 1)
            contributions = self.ledger.contributions(name, record.round)
            if tuple(update.client_id for update in contributions) != record.accepted:
                state = None
                continue
            entered, info = self._entering(branch, before), self.info(name, record.round)
            state = aggregate_round(entered, contributions, info, self.aggregation, _struck(record))
            count += 1
            stored = self.ledger.last_state(name, record.round)
            if stored.round == record.round and not _same(stored, state):
                raise IntegrityError(
                    f"the state after round {record.round} of {name!r} is not what its contributions make; "
                    "`oblivion ledger verify` says what was changed"
                )
        return count

    def _entering(self, branch: Branch, state: RoundState) -> RoundState:
        """Return the state with which a branch begins: its gate and rule state hold nothing of removed clients."""
        rule = self.aggregation.rule
        if state.round == branch.fork:
            for absence in branch.absent:
                if absence.samples is None:
                    state = dataclasses.replace(state, gate_state=state.gate_state.without(absence.client))
                    if isinstance(rule, ControlRule):
                        rule_state = rule.without(state.rule_state, absence.client)
                        state = dataclasses.replace(state, rule_state=rule_state)
        return state

    def owner(self, name: str, round: int) -> Branch:
        """Return the branch of a line on which a round was run."""
        branches = {branch.name: branch for branch in self.ledger.branches()}
        pieces = line(branches, name, round)
        return next(branches[owner] for owner, first, last in pieces if first <= round <= last)


def _struck(record: RoundRecord) -> dict[str, str]:
    """Return the clients whose update was refused in a round, without those in quarantine, which were not asked."""
    return {c: why for c, why in record.refused.items() if not why.startswith(QUARANTINE)}


def _same(one: RoundState, other: RoundState) -> bool:
    import torch

    pairs = (
        (one.state.adapter, other.state.adapter),
        (one.state.residual, other.state.residual),
        (one.rule_state, other.rule_state),
    )
    same = all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)
    return same and one.gate_state == other.gate_state


def verify_head(root: Path, request: str = "") -> str:
    """Aggregate the head of a run again from its contributions, and return the SHA-256 of the adapter file.

    Only the last removal of a run can be replayed: the result of an earlier one holds clients that were forgotten
    since. If a `request` is named and the head does not answer it, the text is empty.

    Raises
    ------
    OblivionError
        If the ledger is damaged, or a stored state is not the one that its contributions give.
    """
    import hashlib

    from oblivion.ledger.opening import read_ledger
    from oblivion.models.resident import weight_bytes

    ledger, register = read_ledger(root)
    try:
        config = open_run(root)
        clients = register.clients()
        head = register.head()
        if request and not head.startswith(f"{request}/"):
            return ""
        replay = replay_of(config, ledger, clients)
        replay.check(head)
        return hashlib.sha256(weight_bytes(as_adapter(replay.head(head).state))).hexdigest()
    finally:
        ledger.close()


def replay_of(config: RunConfig, ledger: Ledger, clients: Iterable[str]) -> Replay:
    """Return the replay of a run; `clients` are looked at anew for every round, as they may still be coming in."""

    def info(name: str, number: int) -> RoundInfo:
        branch = ledger.branch(name)
        there = [client for client in clients if not branch.leaves(client)]
        return RoundInfo(
            branch=name,
            round=number,
            rounds=branch.rounds,
            population=population(there, config.federation.joins, number),
            seed=branch.seed,
        )

    aggregation = Aggregation(
        rule=rule_of(config),
        scheme=scheme_of(config),
        max_influence=config.federation.max_influence,
        noised_mean=_noised_mean(config, ledger),
    )
    return Replay(ledger, aggregation, info)


def _noised_mean(config: RunConfig, ledger: Ledger) -> NoisedMean | None:
    """Return the stage of client-level privacy, with the secret of the branch that a round is on; None without."""
    privacy = client_privacy_of(config)
    if privacy is None:
        return None
    return lambda updates, trained, info: privacy.mean(updates, trained, ledger.noise_secret(info.branch), info)
