"""FedAdagrad (Reddi et al., 2021, "Adaptive federated optimization", Algorithm 2).

``v <- v + D^2``: the squares of all rounds' mean updates add up and never decay, so that steps only become smaller.
``beta1`` is 0 by default, as in the paper's experiments. The rest, with the deviations from the paper, is in
`adaptive`.

Flower's FedAdagrad differs in one point: its ``v`` starts at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oblivion.aggregation.rules.adaptive import Adaptive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(Adaptive):
    """Adagrad on the server, with the mean update as its gradient.

    Attributes
    ----------
    beta1 : float, default 0.0
        Decay of the first moment, at least 0 and below 1. For the other parameters see `Adaptive`.
    """

    beta1: float = 0.0

    state_fields: ClassVar[tuple[str, ...]] = (
        "first moment m: decaying mean of all rounds' updates",
        "second moment v: sum of the squares of all rounds' mean updates, which never decays",
    )

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Add ``D^2``."""
        return v + squared
