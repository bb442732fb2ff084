"""FedYogi (Reddi et al., 2021, "Adaptive federated optimization", Algorithm 2).

``v <- v - (1 - beta2) D^2 sign(v - D^2)``: v moves towards ``D^2`` by a share of ``D^2``, and not of the distance as
in Adam, so that it shrinks slowly after large updates. The rest, with the deviations from the paper, is in `adaptive`.

Flower's FedYogi differs in one point: its ``v`` starts at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oblivion.aggregation.rules.adaptive import Adaptive
from oblivion.parameters import check_decay

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FedYogi(Adaptive):
    """Yogi on the server, with the mean update as its gradient.

    Attributes
    ----------
    beta2 : float, default 0.99
        The decay of the second moment, which moves by a share ``1 - beta2`` of ``D^2``; at least 0 and below 1. For the
        other parameters see `Adaptive`.
    """

    beta2: float = 0.99

    state_fields: ClassVar[tuple[str, ...]] = (
        "first moment m: decaying mean of all rounds' updates",
        "second moment v: follows the squares of all rounds' mean updates",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay("beta2", self.beta2)

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Move v towards ``D^2`` by a share of ``D^2``."""
        return v - (1 - self.beta2) * squared * (v - squared).sign()
