"""Federated averaging (McMahan et al., 2017, Algorithm 1).

``x <- x + learning_rate * sum_k (n_k / n) delta_k``. With ``learning_rate = 1`` it is the paper's average
of client models, since ``delta_k = w_k - x`` and the weights sum to one.

Deviations: clients send differences instead of models; a server learning rate, as in Reddi et al. (2021),
which the paper does not have, and which may follow a schedule; the weights are normalised over the clients whose
updates were accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.schedule import SCHEDULES, Schedule, scheduled
from oblivion.aggregation.sums import example_weights, mean_update, moved
from oblivion.parameters import check_choice, check_positive
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedAvg(Rule):
    """Average the updates, weighted by the number of examples.

    Attributes
    ----------
    learning_rate : float, default 1.0
        Server step on the mean update, above 0.
    schedule : {"constant", "cosine", "linear"}
        How `learning_rate` changes over the rounds.
    """

    learning_rate: float = 1.0
    schedule: Schedule = "constant"

    of_weights: ClassVar[bool] = True
    of_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)
        check_choice("schedule", self.schedule, SCHEDULES)

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """Return ``learning_rate * n_k / n``."""
        return example_weights(updates, scheduled(self.learning_rate, self.schedule, info))

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Add the mean update, which is rounded to fp32 before the learning rate multiplies it."""
        return moved(state, mean_update(updates), scheduled(self.learning_rate, self.schedule, info)), rule_state
