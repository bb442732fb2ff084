"""Ways to learn, one per file: each makes the phases of a whole training."""

from __future__ import annotations

from typing import Protocol

from oblivion.config import RunConfig
from oblivion.errors import InputError
from oblivion.parameters import build
from oblivion.registry import Registry
from oblivion.removal.phases import Phase

learnings = Registry("learning", {"rounds": "oblivion.learning.rounds:LearnInRounds"}, needs=("phases",))


class Learning(Protocol):
    """A way to learn. The oracle and `retrain` learn in the same way, without the client."""

    def phases(self, rounds: int, replay: bool) -> tuple[Phase, ...]:
        """Return the phases of a training of so many rounds, from the adapter before any training.

        Parameters
        ----------
        rounds : int
            ``federation.rounds``.
        replay : bool
            Whether each round is the one that was run before, without the forgotten data.
        """
        ...


def learning_phases(config: RunConfig, replay: bool) -> tuple[Phase, ...]:
    """Return the phases of a whole training; see `Learning.phases`.

    Raises
    ------
    ConfigError
        If there is no such way to learn.
    InputError
        If it comes from another package and cannot be loaded, or does not return phases.
    """
    federation = config.federation
    learning: Learning = build(learnings, federation.learning, {}, "federation.learning")
    phases = learning.phases(federation.rounds, replay)
    if not isinstance(phases, tuple) or not all(isinstance(phase, Phase) for phase in phases):
        raise InputError(f"learning '{federation.learning}' is not valid: its phases are no tuple of phases")
    return phases
