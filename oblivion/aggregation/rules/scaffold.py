"""SCAFFOLD (Karimireddy et al., 2020, "Stochastic controlled averaging", Algorithm 1, option II).

Client k takes K_k steps ``y <- y - eta (g - c_k + c)`` from x. With ``delta_k = y - x``, S the clients of the round
and N those of the federation::

    c_k <- c_k - c - delta_k / (eta K_k)
    x <- x + learning_rate * mean over S of delta_k
    c <- mean over all N of c_k

Clients count once each, whatever their number of rows, as in the paper.

Deviations: variates are kept on the server (`oblivion.aggregation.rules.control` says why) and in the unit of a step,
``eta c_k``, so that the rule need not know eta; the gradient that enters is the clipped one, if the client clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.aggregation.checks import check_positive
from oblivion.aggregation.rule import RuleState, equal_mean, moved, ordered
from oblivion.aggregation.rules.control import ControlRule, kept, mean_kept, with_kept
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

    proximal_mu: ClassVar[float] = 0.0
    state_fields: ClassVar[tuple[str, ...]] = ("control variates c_k: each seen client's mean step",)

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)

    def corrections(
        self, rule_state: RuleState, clients: Sequence[str], info: RoundInfo, learning_rate: float
    ) -> Mapping[str, Adapter]:
        """``c - c_k``; empty while no client was seen."""
        import torch

        mean, made = mean_kept(rule_state, info.population), {}
        for client in clients:
            own = kept(rule_state, client)
            differences = {name: t - own[name].to(torch.float64) if own else t for name, t in mean.items()}
            made[client] = {name: (t / learning_rate).to(torch.float32) for name, t in differences.items()}
        return made

    def apply(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Take one server step and renew the variates of the clients that took part.

        Parameters
        ----------
        updates : sequence of ClientUpdate
            Any order; averaged by client id in fp64. A client without a step keeps its variate.
        state : GlobalState
            The state that the clients started from.
        rule_state : mapping
            ``control/<client>/<tensor>``, ``eta c_k``.
        info : RoundInfo
            Whose population c is the mean over.

        Returns
        -------
        tuple of GlobalState and RuleState
            New fp32 tensors; the very same objects where there are no updates.
        """
        import torch

        if not updates:
            return state, rule_state
        mean = mean_kept(rule_state, info.population)
        changed = {}
        for update in (update for update in ordered(updates) if update.steps):
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
