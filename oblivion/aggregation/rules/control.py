"""Rules with a control variate for each client (SCAFFOLD, FedDyn).

The papers let each client keep its own. Here the server keeps all of them in the rule state, as
``control/<client>/<tensor>``, because each is an exact function of the updates that its client has sent. So clients
keep nothing between rounds and any host can serve any client, a checkpoint holds all that a round begins from, a
rollback restores it bit for bit, and a client that leaves takes its variate with it even where it cannot be asked any
more. The price: each client is sent one more adapter, its correction, and the server holds one more for each client
it has seen.

The mean over the population is computed from what is kept instead of being carried on, so that it is always the mean
over those who take part: when client u leaves, ``c <- (N c - c_u) / (N - 1)`` holds by itself. A client that was never
seen has a variate of zero.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.sums import weighted_sum
from oblivion.types import Adapter, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor


class ControlRule(Rule):
    """Keep a control variate for each client that was seen, and correct the clients' gradients with them."""

    needs_client_state: ClassVar[bool] = True
    plain_sgd: ClassVar[bool] = True

    @abstractmethod
    def corrections(
        self, rule_state: RuleState, clients: Sequence[str], info: RoundInfo, learning_rate: float
    ) -> Mapping[str, Adapter]:
        """Compute what each client adds to its gradient at every step.

        Parameters
        ----------
        rule_state : mapping
            The rule state, as `init` or the last `step` returned it.
        clients : sequence of str
            The clients that are asked.
        info : RoundInfo
            The round; the mean is taken over its population.
        learning_rate : float
            The clients' constant rate.

        Returns
        -------
        mapping of str to Adapter
            For each of `clients` fp32 tensors in the unit of the gradient; empty where there is nothing to add.
        """

    def without(self, rule_state: RuleState, client_id: str) -> RuleState:
        """Return the state without one client's variate; the mean is over the others from then on."""
        return {name: t for name, t in rule_state.items() if not name.startswith(f"control/{client_id}/")}


def kept(rule_state: RuleState, client_id: str) -> Adapter:
    """Return one client's variate; it is empty if the client was never seen."""
    start = f"control/{client_id}/"
    return {name.removeprefix(start): rule_state[name] for name in sorted(rule_state) if name.startswith(start)}


def mean_kept(rule_state: RuleState, population: Sequence[str]) -> dict[str, Tensor]:
    """Return the mean of the variates over a population, in fp64; it is empty if no client of it was seen."""
    seen = [variate for client in sorted(population) if (variate := kept(rule_state, client))]
    return weighted_sum(seen, [1 / len(population)] * len(seen)) if seen else {}


def with_kept(rule_state: RuleState, changed: Mapping[str, Mapping[str, Tensor]]) -> RuleState:
    """Return the state with new variates for some clients, cast to fp32."""
    import torch

    new = {f"control/{c}/{name}": t.to(torch.float32) for c, variate in changed.items() for name, t in variate.items()}
    return dict(sorted({**rule_state, **new}.items()))
