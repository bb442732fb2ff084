"""Learning in rounds: all clients of a round train from the same state, and the rule makes the next one of it.

McMahan et al., 2017, algorithm 1, with any rule in the place of the mean.
"""

from __future__ import annotations

from oblivion.removal.phases import Phase, Rounds


class LearnInRounds:
    """Run one ordinary round after another."""

    def phases(self, rounds: int, replay: bool) -> tuple[Phase, ...]:
        """Return a single phase."""
        return (Rounds(rounds=rounds, replay=replay),)
