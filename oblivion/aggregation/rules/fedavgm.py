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

from oblivion.aggregation.checks import check_decay, check_positive
from oblivion.aggregation.rule import RuleState, mean_update, moved
from oblivion.aggregation.schedule import Schedule, check_schedule, scheduled
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedAvgM:
    """Average the updates and keep a decaying sum of the averages as the step.

    Attributes
    ----------
    learning_rate : float, default 1.0
        Server step on the sum, above 0.
    momentum : float, default 0.9
        What is kept of the sum each round (beta in the paper), at least 0 and below 1.
    schedule : {"constant", "cosine", "linear"}
        How `learning_rate` changes over the rounds.
    """

    learning_rate: float = 1.0
    momentum: float = 0.9
    schedule: Schedule = "constant"

    linear: ClassVar[bool] = False
    state_fields: ClassVar[tuple[str, ...]] = ("momentum m: decaying sum of all rounds' updates",)
    needs_client_state: ClassVar[bool] = False
    plain_sgd: ClassVar[bool] = False
    proximal_mu: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)
        check_decay("momentum", self.momentum)
        check_schedule(self.schedule)

    def init(self, state: GlobalState) -> RuleState:
        """Make the momentum: ``m/<tensor>`` of zeros, in fp32."""
        import torch

        return {f"m/{name}": torch.zeros_like(t, dtype=torch.float32) for name, t in sorted(state.adapter.items())}

    def apply(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Take one server step.

        Parameters
        ----------
        updates : sequence of ClientUpdate
            Any order; averaged by client id in fp64. Their tensors have the adapter's names and shapes.
        state : GlobalState
            The state that the clients started from.
        rule_state : mapping
            ``m/<tensor>``, as `init` or the last `apply` returned them.
        info : RoundInfo
            Used by the schedule only.

        Returns
        -------
        tuple of GlobalState and RuleState
            New fp32 tensors; the very same objects where there are no updates (the momentum neither decays nor
            moves the adapter then).
        """
        import torch

        if not updates:
            return state, rule_state
        learning_rate = scheduled(self.learning_rate, self.schedule, info)
        mean = mean_update(updates)
        momentum = {
            name: self.momentum * rule_state[f"m/{name}"].to(torch.float64) + mean[name].to(torch.float64)
            for name in sorted(state.adapter)
        }
        after = moved(state, {name: learning_rate * m for name, m in momentum.items()})
        return after, {f"m/{name}": m.to(torch.float32) for name, m in momentum.items()}

    def min_clients(self, n: int, byzantine: int) -> int:
        """One update is enough; with hostile ones no number is, so more than `n` is asked for."""
        return n + 1 if byzantine else 1
