"""FedAdam (Reddi et al., 2021, "Adaptive federated optimization", Algorithm 2).

``v <- beta2 v + (1 - beta2) D^2``. The rest, with the deviations from the paper, is in `adaptive`.

Flower's FedAdam differs in two points: its ``v`` starts at 0, and it multiplies the server learning rate by
``sqrt(1 - beta2^(t+1)) / (1 - beta1^(t+1))`` in round t (Adam's correction, shifted by one round).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oblivion.aggregation.rules.adaptive import Adaptive
from oblivion.parameters import check_decay

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FedAdam(Adaptive):
    """Adam on the server, with the mean update as its gradient.

    Attributes
    ----------
    beta2 : float, default 0.99
        Decay of the second moment, at least 0 and below 1. For the other parameters see `Adaptive`.
    """

    beta2: float = 0.99

    state_fields: ClassVar[tuple[str, ...]] = (
        "first moment m: decaying mean of all rounds' updates",
        "second moment v: decaying mean of their squares",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay("beta2", self.beta2)

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Move v towards ``D^2`` by a share of the distance."""
        return self.beta2 * v + (1 - self.beta2) * squared
