"""Schedules of the server learning rate over the rounds of a branch.

The factor depends on the number of the round, and with ``linear`` and ``cosine`` on the last round R of its branch, on
nothing else: a replay that ends where the original ended finds the same one from any round on; a branch that goes on
for longer has other factors. In round r of R, with ``p = (r - 1) / R``: ``constant`` 1, ``linear`` ``1 - p``,
``cosine`` ``(1 + cos(pi p)) / 2`` (Loshchilov and Hutter, 2017, "SGDR", equation 5, without restarts and with a minimum
of 0). The first round has the full rate, and the last one still moves.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

from oblivion.errors import FederationError
from oblivion.types import RoundInfo

Schedule: TypeAlias = Literal["constant", "cosine", "linear"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)


def scheduled(learning_rate: float, schedule: Schedule, info: RoundInfo) -> float:
    """Return the server learning rate of a round.

    Parameters
    ----------
    learning_rate : float
        The rate of the first round.
    schedule : str
        ``constant``, ``cosine`` or ``linear``.
    info : RoundInfo
        The round and the number of rounds; a constant rate does not depend on it.

    Returns
    -------
    float
        The rate of this round, above 0 and at most `learning_rate`.

    Raises
    ------
    FederationError
        If the branch has no such round.
    """
    if schedule == "constant":
        return learning_rate
    if not 1 <= info.round <= info.rounds:
        raise FederationError(
            f"round {info.round} is not one of the {info.rounds} rounds of branch '{info.branch}', so that a "
            f"'{schedule}' learning rate has no value there; use schedule = 'constant'"
        )
    past = (info.round - 1) / info.rounds
    return learning_rate * (1 - past if schedule == "linear" else (1 + math.cos(math.pi * past)) / 2)
