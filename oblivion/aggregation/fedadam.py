"""FedAdam (Reddi et al., 2021, "Adaptive federated optimization", Algorithm 2).

With the pseudo-gradient ``D = sum_k (n_k / n) delta_k``: ``m <- beta1 m + (1 - beta1) D``; ``v <- beta2 v +
(1 - beta2) D^2``; ``x <- x + learning_rate m / (sqrt(v) + tau)``, each coordinate for itself. As in the
paper ``m`` starts at 0 and ``v`` at ``tau^2`` (the paper asks for at least that), and there is no bias
correction, so the first steps are small: ``m`` has a tenth of ``D`` after one round.

Deviations: clients are weighted by their examples, as in the paper's experiments; its Algorithm 2 has equal
weights.

Flower's FedAdam differs in two points: its ``v`` starts at 0, and it multiplies the server learning rate by
``sqrt(1 - beta2^(t+1)) / (1 - beta1^(t+1))`` in round t (Adam's correction, shifted by one round).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from oblivion.aggregation.rule import RuleState, mean_update
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedAdam:
    """Adam on the server, with the mean update as its gradient.

    Attributes
    ----------
    learning_rate : float, default 0.01
        Server step (eta in the paper), above 0.
    beta1, beta2 : float, default 0.9 and 0.99
        Decay of the two moments, at least 0 and below 1.
    tau : float, default 1e-3
        Degree of adaptivity, above 0: coordinates whose updates are far smaller than `tau` move like SGD.
    """

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    linear: ClassVar[bool] = False
    state_fields: ClassVar[tuple[str, ...]] = (
        "first moment m: decaying mean of all rounds' updates",
        "second moment v: decaying mean of their squares",
    )
    needs_client_state: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("learning_rate", "tau"):
            value = getattr(self, name)
            if isinstance(value, bool) or not 0 < value < math.inf:
                raise ValueError(f"{name} = {value!r} is not allowed; it must be above 0 and finite")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if isinstance(value, bool) or not 0 <= value < 1:
                raise ValueError(f"{name} = {value!r} is not allowed; it must be at least 0 and below 1")

    def init(self, state: GlobalState) -> RuleState:
        """Make the moments: ``m/<tensor>`` of zeros and ``v/<tensor>`` of ``tau^2``, in fp32."""
        import torch

        first = {f"m/{name}": torch.zeros_like(t, dtype=torch.float32) for name, t in sorted(state.adapter.items())}
        second = {
            f"v/{name}": torch.full_like(t, self.tau**2, dtype=torch.float32)
            for name, t in sorted(state.adapter.items())
        }
        return first | second

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
            ``m/<tensor>`` and ``v/<tensor>``, as `init` or the last `apply` returned them.
        info : RoundInfo
            Not used: without bias correction the rule does not depend on the round.

        Returns
        -------
        tuple of GlobalState and RuleState
            New fp32 tensors; the very same objects where there are no updates (the moments do not decay
            then).
        """
        import torch

        if not updates:
            return state, rule_state
        mean = mean_update(updates)
        adapter, first, second = {}, {}, {}
        for name in sorted(state.adapter):
            gradient = mean[name].to(torch.float64)
            m = self.beta1 * rule_state[f"m/{name}"].to(torch.float64) + (1 - self.beta1) * gradient
            v = self.beta2 * rule_state[f"v/{name}"].to(torch.float64) + (1 - self.beta2) * gradient.square()
            step = self.learning_rate * m / (v.sqrt() + self.tau)
            adapter[name] = (state.adapter[name].to(torch.float64) + step).to(torch.float32)
            first[f"m/{name}"] = m.to(torch.float32)
            second[f"v/{name}"] = v.to(torch.float32)
        return replace(state, adapter=adapter), first | second

    def min_clients(self, n: int, byzantine: int) -> int:
        """One update is enough; with hostile ones no number is, so more than `n` is asked for."""
        return n + 1 if byzantine else 1
