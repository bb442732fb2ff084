"""From contributions to states again: what a round made of them is a pure function, so it can be made twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from oblivion.aggregation import rule_of, scheme_of
from oblivion.aggregation.gate import QUARANTINE, limited
from oblivion.aggregation.rule import Rule
from oblivion.aggregation.rules.control import ControlRule
from oblivion.aggregation.scheme import LoraScheme
from oblivion.aggregation.schemes.products import as_adapter
from oblivion.config import RunConfig
from oblivion.errors import IntegrityError
from oblivion.ledger.rounds import Branch, Ledger, RoundRecord, RoundState, line
from oblivion.models.factors import only
from oblivion.privacy.client_noise import ClientPrivacy, client_privacy_of
from oblivion.run_format import open_run
from oblivion.selection import population
from oblivion.types import ClientUpdate, RoundInfo


class Replay:
    """Aggregates stored contributions again.

    Parameters
    ----------
    ledger : Ledger
        Where they are.
    rule, scheme, max_influence, privacy
        Those of the run.
    info : callable
        Branch name and round to what the rule is told of it.
    """

    def __init__(
        self,
        ledger: Ledger,
        rule: Rule,
        scheme: LoraScheme,
        info: Callable[[str, int], RoundInfo],
        max_influence: float = 0.0,
        privacy: ClientPrivacy | None = None,
    ) -> None:
        self.ledger = ledger
        self.rule = rule
        self.scheme = scheme
        self.info = info
        self.max_influence = max_influence
        self.privacy = privacy

    def step(
        self,
        before: RoundState,
        contributions: Sequence[ClientUpdate],
        info: RoundInfo,
        refused: Mapping[str, str] | None = None,
    ) -> RoundState:
        """The state after a round, from the state before it, its contributions in client-id order and its refusals."""
        counted = limited(contributions, self.max_influence)
        if self.privacy is not None:
            trained = only(before.state.adapter, self.scheme.trained(info.round))
            counted = [self.privacy.mean(counted, trained, self.ledger.noise_secret(info.branch), info)]
        state, rule_state = self.scheme.combine(self.rule, counted, before.state, before.rule_state, info)
        return RoundState(
            round=info.round,
            state=state,
            rule_state=rule_state,
            gate_state=before.gate_state.after(info.round, contributions, refused),
        )

    def state(self, name: str, round: int, start: RoundState | None = None) -> RoundState:
        """The state after a round of a branch's line.

        Parameters
        ----------
        name : str
            The branch.
        round : int
            The round, or the branch's fork.
        start : RoundState, optional
            An earlier state of the line; by default the last that is kept at or before the round.

        Raises
        ------
        IntegrityError
            If contributions on the way are kept no more.
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
            state = self.step(
                self._entering(owner, state), contributions, self.info(owner.name, number), _struck(record)
            )
        return self._entering(self.ledger.branch(name), state)

    def check(self, name: str) -> int:
        """Aggregate a branch's own rounds again from what the ledger holds, and compare with the states that it kept.

        Returns
        -------
        int
            How many rounds were aggregated again.

        Raises
        ------
        IntegrityError
            If a state is not what its contributions make.
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
            entered = self._entering(branch, before)
            state, count = self.step(entered, contributions, self.info(name, record.round), _struck(record)), count + 1
            stored = self.ledger.last_state(name, record.round)
            if stored.round == record.round and not _same(stored, state):
                raise IntegrityError(
                    f"the state after round {record.round} of {name!r} is not what its contributions make; "
                    "`oblivion ledger verify` says what was changed"
                )
        return count

    def _entering(self, branch: Branch, state: RoundState) -> RoundState:
        """The state as a branch takes it over from its parent: gate and rule no longer hold what is of who left."""
        if state.round == branch.fork:
            for absence in branch.absent:
                if absence.samples is None:
                    state = dataclasses.replace(state, gate_state=state.gate_state.without(absence.client))
                    if isinstance(self.rule, ControlRule):
                        rule_state = self.rule.without(state.rule_state, absence.client)
                        state = dataclasses.replace(state, rule_state=rule_state)
        return state

    def owner(self, name: str, round: int) -> Branch:
        """The branch of a line that a round was run on."""
        branches = {branch.name: branch for branch in self.ledger.branches()}
        pieces = line(branches, name, round)
        return next(branches[owner] for owner, first, last in pieces if first <= round <= last)


def _struck(record: RoundRecord) -> dict[str, str]:
    """The clients whose update was refused in a round, without those that were not asked for one."""
    return {c: why for c, why in record.refused.items() if not why.startswith(QUARANTINE)}


def _same(one: RoundState, other: RoundState) -> bool:
    import torch

    pairs = (
        (one.state.adapter, other.state.adapter),
        (one.state.residual, other.state.residual),
        (one.state.broadcast, other.state.broadcast),
        (one.rule_state, other.rule_state),
    )
    same = all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)
    return same and one.gate_state == other.gate_state


def verify_head(root: Path, request: str = "") -> str:
    """Aggregate the head of a run again from its contributions, and return the SHA-256 of the adapter file.

    Only the last removal of a run can be replayed: what an earlier one made holds who was forgotten since. Where the
    head is not what answered `request` (if one is named), the text is empty.

    Raises
    ------
    OblivionError
        If the ledger is damaged, or a state is not what its contributions make.
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
        done = ledger.records(head)
        state = replay.state(head, done[-1].round if done else ledger.branch(head).fork)
        return hashlib.sha256(weight_bytes(as_adapter(state.state))).hexdigest()
    finally:
        ledger.close()


def replay_of(config: RunConfig, ledger: Ledger, clients: Iterable[str]) -> Replay:
    """The replay of a run; `clients` are looked at anew for every round, as they may still be coming in."""

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

    return Replay(
        ledger, rule_of(config), scheme_of(config), info, config.federation.max_influence, client_privacy_of(config)
    )
