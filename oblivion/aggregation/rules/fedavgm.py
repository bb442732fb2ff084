"""FedAvgM (Hsu et al., 2019, "Measuring the effects of non-identical data distribution").

With ``D = sum_k (n_k / n) delta_k``: ``m <- momentum m + D``; ``x <- x + learning_rate m``. ``m`` starts at 0, so the
first round's step is that of FedAvg; D counts in full and not with ``1 - momentum``, so that under a constant D the
step grows to ``D / (1 - momentum)``, ten times D with the default. There is no bias to correct.

Deviations: a server learning rate, as in Reddi et al. (2021); with 1 it is the paper's rule. Momentum is plain, without
a look ahead. The weights are normalised over the clients whose updates were accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.schedule import SCHEDULES, Schedule, scheduled
from oblivion.aggregation.sums import mean_update, moved
from oblivion.parameters import check_choice, check_decay, check_positive
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedAvgM(Rule):
    """Average the updates and keep a decaying sum of the averages as the step.

    Attributes
    ----------
    learning_rate : float, default 1.0
        Server step on the sum, above 0.
    momentum : float, default 0.9
        The share of the sum that is kept each round (beta in the paper), at least 0 and below 1.
    schedule : {"constant", "cosine", "linear"}
        How `learning_rate` changes over the rounds.
    """

    learning_rate: float = 1.0
    momentum: float = 0.9
    schedule: Schedule = "constant"

    state_fields: ClassVar[tuple[str, ...]] = ("momentum m: decaying sum of all rounds' updates",)
    of_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)
        check_decay("momentum", self.momentum)
        check_choice("schedule", self.schedule, SCHEDULES)

    def init(self, state: GlobalState) -> RuleState:
        """Make the momentum ``m/<tensor>``: zeros in fp32."""
        import torch

        return {f"m/{name}": torch.zeros_like(t, dtype=torch.float32) for name, t in sorted(state.adapter.items())}

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Decay the momentum, add the mean update to it, and move the adapter by it."""
        import torch

        learning_rate = scheduled(self.learning_rate, self.schedule, info)
        mean = mean_update(updates)
        momentum = {
            name: self.momentum * rule_state[f"m/{name}"].to(torch.float64) + mean[name].to(torch.float64)
            for name in sorted(state.adapter)
        }
        after = moved(state, {name: learning_rate * m for name, m in momentum.items()})
        return after, {f"m/{name}": m.to(torch.float32) for name, m in momentum.items()}
