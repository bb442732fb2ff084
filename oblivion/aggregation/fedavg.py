"""Federated averaging (McMahan et al., 2017, Algorithm 1).

``x <- x + learning_rate * sum_k (n_k / n) delta_k``. With ``learning_rate = 1`` it is the paper's average
of client models, since ``delta_k = w_k - x`` and the weights sum to one.

Deviations: clients send differences instead of models; a server learning rate, as in Reddi et al. (2021),
which the paper does not have; the weights are normalised over the clients whose updates were accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from oblivion.aggregation.rule import RuleState, mean_update
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """Average the updates, weighted by the number of examples.

    Attributes
    ----------
    learning_rate : float, default 1.0
        Server step on the mean update, above 0.
    """

    learning_rate: float = 1.0

    linear: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ()
    needs_client_state: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.learning_rate, bool) or not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate = {self.learning_rate!r} is not allowed; it must be above 0 and finite")

    def init(self, state: GlobalState) -> RuleState:
        """Return the empty state: the rule remembers nothing."""
        return {}

    def apply(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Add the weighted mean update to the adapter.

        Parameters
        ----------
        updates : sequence of ClientUpdate
            Any order; summed by client id in fp64. Their tensors have the adapter's names and shapes.
        state : GlobalState
            The state that the clients started from.
        rule_state : mapping
            Empty.
        info : RoundInfo
            Not used.

        Returns
        -------
        tuple of GlobalState and RuleState
            The next state with fp32 tensors; the very same objects where there are no updates.
        """
        import torch

        if not updates:
            return state, rule_state
        mean = mean_update(updates)
        adapter = {
            name: state.adapter[name].to(torch.float64).add(mean[name], alpha=self.learning_rate).to(torch.float32)
            for name in sorted(state.adapter)
        }
        return replace(state, adapter=adapter), rule_state

    def min_clients(self, n: int, byzantine: int) -> int:
        """One update is enough; with hostile ones no number is, so more than `n` is asked for."""
        return n + 1 if byzantine else 1
