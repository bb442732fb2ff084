"""FedProx (Li et al., 2020, "Federated optimization in heterogeneous networks", equation 2 and Algorithm 2).

Each client adds ``mu/2 ||w - x||^2`` to its loss, x being the global adapter that it began from; the server averages as
FedAvg does. With ``mu = 0`` it is FedAvg. Nothing is kept between rounds.

The client's half: `oblivion.training.local`, and `oblivion.training.arena` for fused cohorts, add the term's gradient
``mu (w - x)`` to that of the loss. In an unlearning visit there is no proximal term: it would pull the client back to
the adapter that still knows the data.

Deviation: weights are those of FedAvg (rows of the accepted clients); the paper's analysis samples clients by their
rows and averages equally.
"""

from __future__ import annotations

from dataclasses import dataclass

from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.parameters import check_at_least_zero


@dataclass(frozen=True, kw_only=True)
class FedProx(FedAvg):
    """Average the updates of clients that were held near the global adapter.

    Attributes
    ----------
    mu : float, default 0.01
        Weight of the proximal term, at least 0. For the other parameters see `FedAvg`.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero("mu", self.mu)

    @property
    def proximal_mu(self) -> float:
        """The weight of the proximal term, `mu`."""
        return self.mu
