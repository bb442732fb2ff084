"""FedNova (Wang et al., 2020, "Tackling the objective inconsistency problem", equations 9 to 11).

Clients that take more steps count for more in an average of updates, and the federation then minimises another loss
than the one it says. FedNova averages updates *per step*. With ``p_k = n_k / n`` and tau_k steps of client k:

    x <- x + learning_rate * tau_eff * sum_k p_k delta_k / tau_k,        tau_eff = sum_k p_k tau_k

This is the paper's form for plain SGD (``||a_k||_1 = tau_k``), which is why other local optimizers are refused. All
of it is computed from the updates of the round: there is nothing to correct when a client leaves.

The client's half: every update says how many optimizer steps it took (`ClientUpdate.steps`), and the gate checks that
number against the client's number of examples.

Deviation: the weights are normalised over the clients whose updates were accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.aggregation.rule import WeightedRule
from oblivion.parameters import check_positive
from oblivion.types import ClientUpdate, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedNova(WeightedRule):
    """Average the updates per step, times the mean number of steps.

    Attributes
    ----------
    learning_rate : float, default 1.0
        Server step, above 0.
    """

    learning_rate: float = 1.0

    plain_sgd: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """Return ``learning_rate * tau_eff * p_k / tau_k``; the tau_k of an update without a step counts as 1."""
        total = sum(update.num_examples for update in updates)
        effective = math.fsum(update.num_examples / total * update.steps for update in updates)
        return [self.learning_rate * effective * u.num_examples / total / max(1, u.steps) for u in updates]
