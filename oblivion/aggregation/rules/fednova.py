"""FedNova (Wang et al., 2020, "Tackling the objective inconsistency problem", equations 9 to 11).

Clients that take more steps count for more in an average of updates, and the federation then minimises another loss
than the one it says. FedNova averages updates *per step*. With ``p_k = n_k / n`` and tau_k steps of client k::

    x <- x + learning_rate * tau_eff * sum_k p_k delta_k / tau_k,        tau_eff = sum_k p_k tau_k

This is the paper's form for plain SGD (``||a_k||_1 = tau_k``), which is why other local optimizers are refused. All
of it is computed from the updates of the round: there is nothing to correct when a client leaves.

Deviation: the weights are normalised over the clients whose updates were accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.aggregation.checks import check_positive
from oblivion.aggregation.rule import RuleState, moved, ordered, weighted_sum
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedNova:
    """Average the updates per step, times the mean number of steps.

    Attributes
    ----------
    learning_rate : float, default 1.0
        Server step, above 0.
    """

    learning_rate: float = 1.0

    linear: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ()
    needs_client_state: ClassVar[bool] = False
    plain_sgd: ClassVar[bool] = True
    proximal_mu: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)

    def init(self, state: GlobalState) -> RuleState:
        """Return the empty state: the rule remembers nothing."""
        return {}

    def apply(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Add the normalised mean update to the adapter.

        Parameters
        ----------
        updates : sequence of ClientUpdate
            Any order; summed by client id in fp64. One without a step has an update of zero, and counts as such.
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
        if not updates:
            return state, rule_state
        by_id = ordered(updates)
        return moved(state, weighted_sum([u.delta for u in by_id], self.weights(by_id, info))), rule_state

    def weights(self, updates: Sequence[ClientUpdate], info: RoundInfo) -> list[float]:
        """``learning_rate * tau_eff * p_k / tau_k`` of updates in client-id order."""
        total = sum(update.num_examples for update in updates)
        effective = math.fsum(update.num_examples / total * update.steps for update in updates)
        return [self.learning_rate * effective * u.num_examples / total / max(1, u.steps) for u in updates]

    def min_clients(self, n: int, byzantine: int) -> int:
        """One update is enough; with hostile ones no number is, so more than `n` is asked for."""
        return n + 1 if byzantine else 1
