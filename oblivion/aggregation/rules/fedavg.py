"""Federated averaging (McMahan et al., 2017, Algorithm 1).

``x <- x + learning_rate * sum_k (n_k / n) delta_k``. With ``learning_rate = 1`` it is the paper's average
of client models, since ``delta_k = w_k - x`` and the weights sum to one.

Deviations: clients send differences instead of models; a server learning rate, as in Reddi et al. (2021),
which the paper does not have, and which may follow a schedule; the weights are normalised over the clients whose
updates were accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from oblivion.aggregation.checks import check_positive
from oblivion.aggregation.rule import RuleState, mean_update
from oblivion.aggregation.schedule import Schedule, check_schedule, scheduled
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedAvg:
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

    linear: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ()
    needs_client_state: ClassVar[bool] = False
    plain_sgd: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)
        check_schedule(self.schedule)

    @property
    def proximal_mu(self) -> float:
        """Clients add no proximal term."""
        return 0.0

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
            Used by the schedule only.

        Returns
        -------
        tuple of GlobalState and RuleState
            The next state with fp32 tensors; the very same objects where there are no updates.
        """
        import torch

        if not updates:
            return state, rule_state
        learning_rate = scheduled(self.learning_rate, self.schedule, info)
        mean = mean_update(updates)
        adapter = {
            name: state.adapter[name].to(torch.float64).add(mean[name], alpha=learning_rate).to(torch.float32)
            for name in sorted(state.adapter)
        }
        return replace(state, adapter=adapter), rule_state

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """``learning_rate * n_k / n`` of updates in client-id order."""
        learning_rate = scheduled(self.learning_rate, self.schedule, info)
        total = float(sum(update.num_examples for update in updates))
        return [learning_rate * update.num_examples / total for update in updates]

    def min_clients(self, n: int, byzantine: int) -> int:
        """One update is enough; with hostile ones no number is, so more than `n` is asked for."""
        return n + 1 if byzantine else 1
