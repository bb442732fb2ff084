"""A federation whose process dies at a round of a trial, and trials on it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fake_hosts import INITIAL, FakeHosts, bits, config, federation

from oblivion.aggregation.round import RoundState
from oblivion.federation.absence import to_replay
from oblivion.federation.phase_runner import PhaseRunner
from oblivion.federation.rounds import Federation
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.rounds import Absence, Branch, RoundRecord
from oblivion.removal.phases import Phase, run_phases, starts
from oblivion.types import ForgetRequest

REQUEST = ForgetRequest(id="r", client_id="d")
TRIAL = "r/trial"
LEARNED = 3


class KilledError(Exception):
    """The process died."""


class Mortal(Federation):
    """A federation whose process dies right before, or right after, it commits its n-th round of a trial."""

    def mortal(self, commits: int, after: bool) -> None:
        self.commits_left, self.after = commits, after

    def commit(self, record: RoundRecord, after: RoundState, branch: Branch) -> None:
        last = branch.name == TRIAL and hasattr(self, "commits_left") and self.commits_left == 0
        if last and not self.after:
            raise KilledError
        super().commit(record, after, branch)
        if branch.name == TRIAL and hasattr(self, "commits_left"):
            self.commits_left -= 1
        if last:
            raise KilledError


def run(made: Federation, phases: Sequence[Phase]) -> int:
    """Run phases on a branch of their own, as a trial does; a branch that exists is taken up."""
    fork = phases[0].begins(LEARNED) if phases else LEARNED
    most = max((at + phase.rounds for phase, at in starts(phases, LEARNED)), default=LEARNED)
    absent = (Absence(client="d"),)
    parent = "main" if fork else None
    branch = Branch(name=TRIAL, seed=0, rounds=most, parent=parent, fork=fork, absent=absent)
    made.begin(branch, None if fork else INITIAL)
    replayed = to_replay(made.ledger.records("main"), 1)
    return run_phases(phases, PhaseRunner(made, "main", replayed), TRIAL, REQUEST, LEARNED)


def learned(ledger: MemoryLedger | None = None, **settings: object) -> Federation:
    """Return a federation that has learned."""
    made, _, _ = federation(FakeHosts(), config(**settings), ledger=ledger)
    while made.head("main").round < LEARNED:
        made.run_round("main")
    made.__class__ = Mortal
    return made


def survives(phases: Sequence[Phase], after: bool, **settings: object) -> Federation:
    """Check that phases which are killed at any of their rounds end with the bits of those that are not."""
    whole = learned(**settings)
    ended = run(whole, phases)
    expected = bits(whole, TRIAL)
    own = [record for record in whole.ledger.records(TRIAL) if record.branch == TRIAL]
    for commits in range(len(own)):
        ledger = MemoryLedger()
        dying = learned(ledger, **settings)
        dying.mortal(commits, after)
        with pytest.raises(KilledError):
            run(dying, phases)
        again = learned(ledger, **settings)
        assert run(again, phases) == ended and bits(again, TRIAL) == expected
        assert run(again, phases) == ended and bits(again, TRIAL) == expected, "nothing is done twice"
    if not any(record.unlearned for record in own):
        assert whole.replay.check(TRIAL) == len(own)
    return whole
