"""Ways to learn, one per file: each makes the phases of a whole training."""

from __future__ import annotations

from typing import Protocol

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


def learning_from(name: str) -> Learning:
    """Make a registered way to learn.

    Raises
    ------
    ConfigError
        If there is no such name.
    """
    from oblivion.parameters import build

    learning: Learning = build(learnings, name, {}, "federation.learning")
    return learning
