"""SCAFFOLD (Karimireddy et al., 2020, "Stochastic controlled averaging", Algorithm 1, option II).

Client k takes K_k steps ``y <- y - eta (g - c_k + c)`` from x. With ``delta_k = y - x``, S the clients of the round
and N those of the federation:

    c_k <- c_k - c - delta_k / (eta K_k)
    x <- x + learning_rate * mean over S of delta_k
    c <- mean over all N of c_k

Clients count once each, whatever their number of rows, as in the paper.

The client's half: at every step `oblivion.training.local`, and `oblivion.training.arena` for fused cohorts, add the
`corrections` that are sent with the task to the gradient, after clipping.

Deviations: variates are kept on the server (`oblivion.aggregation.rules.control` says why) and in the unit of a step,
``eta c_k``, so that the rule need not know eta; the gradient that enters is the clipped one, if the client clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.aggregation.rule import RuleState
from oblivion.aggregation.rules.control import ControlRule, kept, mean_kept, with_kept
from oblivion.aggregation.sums import equal_mean, moved
from oblivion.parameters import check_positive
from oblivion.types import Adapter, ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class Scaffold(ControlRule):
    """Average the updates of clients whose steps were corrected for what they pull apart.

    Attributes
    ----------
    learning_rate : float, default 1.0
        Server step on the mean update (eta_g in the paper), above 0.
    """

    learning_rate: float = 1.0

    state_fields: ClassVar[tuple[str, ...]] = ("control variates c_k: each seen client's mean step",)

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)

    def corrections(
        self, rule_state: RuleState, clients: Sequence[str], info: RoundInfo, learning_rate: float
    ) -> Mapping[str, Adapter]:
        """Return ``c - c_k`` for each client; it is empty before the first round."""
        import torch

        mean, made = mean_kept(rule_state, info.population), {}
        for client in clients:
            own = kept(rule_state, client)
            differences = {name: t - own[name].to(torch.float64) if own else t for name, t in mean.items()}
            made[client] = {name: (t / learning_rate).to(torch.float32) for name, t in differences.items()}
        return made

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Renew the variates ``eta c_k`` of the clients that took a step, and move the adapter by the mean update."""
        import torch

        mean = mean_kept(rule_state, info.population)
        changed = {}
        for update in (update for update in updates if update.steps):
            own, new = kept(rule_state, update.client_id), {}
            for name, delta in update.delta.items():
                variate = -delta.to(torch.float64) / update.steps
                if mean:
                    variate -= mean[name]
                if own:
                    variate += own[name].to(torch.float64)
                new[name] = variate
            changed[update.client_id] = new
        step = {name: self.learning_rate * t for name, t in equal_mean(updates).items()}
        return moved(state, step), with_kept(rule_state, changed)
