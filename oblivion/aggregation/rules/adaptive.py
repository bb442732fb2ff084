"""The step of FedAdagrad, FedAdam and FedYogi (Reddi et al., 2021, "Adaptive federated optimization", Algorithm 2).

With the pseudo-gradient ``D = sum_k (n_k / n) delta_k``: ``m <- beta1 m + (1 - beta1) D``; then v from ``D^2``, each
rule in its own way; then ``x <- x + learning_rate m / (sqrt(v) + tau)``, each coordinate for itself. As in the paper
``m`` starts at 0 and ``v`` at ``tau^2`` (the paper asks for at least that), and there is no bias correction, so the
first steps are small: with ``beta1 = 0.9`` m has a tenth of ``D`` after one round.

Deviations: clients are weighted by their examples, as in the paper's experiments; its Algorithm 2 has equal weights.
The learning rate may follow a schedule; by default it is constant.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.schedule import SCHEDULES, Schedule, scheduled
from oblivion.aggregation.sums import mean_update
from oblivion.parameters import check_choice, check_decay, check_positive
from oblivion.types import ClientUpdate, GlobalState, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Adaptive(Rule):
    """A step that is larger in coordinates where the updates were small so far.

    Attributes
    ----------
    learning_rate : float, default 0.01
        Server step (eta in the paper), above 0.
    beta1 : float, default 0.9
        Decay of the first moment, at least 0 and below 1.
    tau : float, default 1e-3
        Degree of adaptivity, above 0: coordinates whose updates are far smaller than `tau` move like SGD.
    schedule : {"constant", "cosine", "linear"}
        How `learning_rate` changes over the rounds.
    """

    learning_rate: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3
    schedule: Schedule = "constant"

    of_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)
        check_positive("tau", self.tau)
        check_decay("beta1", self.beta1)
        check_choice("schedule", self.schedule, SCHEDULES)

    @abstractmethod
    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return the next v, made from the last one and from ``D^2``; all are in fp64."""

    def init(self, state: GlobalState) -> RuleState:
        """Make the moments ``m/<tensor>``, zeros, and ``v/<tensor>``, ``tau^2`` everywhere, in fp32."""
        import torch

        first = {f"m/{name}": torch.zeros_like(t, dtype=torch.float32) for name, t in sorted(state.adapter.items())}
        second = {
            f"v/{name}": torch.full_like(t, self.tau**2, dtype=torch.float32)
            for name, t in sorted(state.adapter.items())
        }
        return first | second

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Renew both moments and move the adapter."""
        import torch

        learning_rate = scheduled(self.learning_rate, self.schedule, info)
        mean = mean_update(updates)
        adapter, first, second = {}, {}, {}
        for name in sorted(state.adapter):
            gradient = mean[name].to(torch.float64)
            m = self.beta1 * rule_state[f"m/{name}"].to(torch.float64) + (1 - self.beta1) * gradient
            v = self.second_moment(rule_state[f"v/{name}"].to(torch.float64), gradient.square())
            step = learning_rate * m / (v.sqrt() + self.tau)
            adapter[name] = (state.adapter[name].to(torch.float64) + step).to(torch.float32)
            first[f"m/{name}"] = m.to(torch.float32)
            second[f"v/{name}"] = v.to(torch.float32)
        return replace(state, adapter=adapter), first | second
