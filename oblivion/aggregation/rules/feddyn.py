"""FedDyn (Acar et al., 2021, "Federated learning based on dynamic regularization", Algorithm 1).

Client k minimises ``L_k(w) - <g_k, w> + alpha/2 ||w - x||^2`` from x. With ``delta_k = w_k - x``, S the clients of
the round and N those of the federation:

    g_k <- g_k - alpha delta_k                   for k in S
    h <- mean over all N of g_k
    x <- x + mean over S of delta_k - h / alpha

The paper carries h on as ``h - alpha (1/N) sum over S of delta_k``, which is the same mean. Clients count once each.

The client's half: at every step `oblivion.training.local`, and `oblivion.training.arena` for fused cohorts, add
``alpha (w - x)`` to the gradient and, after clipping, the `corrections` that are sent with the task.

Deviations: variates are kept on the server (`oblivion.aggregation.rules.control` says why) and divided by alpha, in the
unit of the parameters. The paper's clients minimise exactly; here, as in its experiments, they take some SGD steps,
so that ``g_k`` is the gradient of L_k at w_k only as nearly as they get there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from oblivion.aggregation.rule import RuleState
from oblivion.aggregation.rules.control import ControlRule, kept, mean_kept, with_kept
from oblivion.aggregation.sums import equal_mean, moved
from oblivion.parameters import check_positive
from oblivion.types import Adapter, ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class FedDyn(ControlRule):
    """Average models whose losses were bent until the clients' optima agree.

    Attributes
    ----------
    alpha : float, default 0.01
        Weight of the proximal term and rate of the variates, above 0.
    """

    alpha: float = 0.01

    state_fields: ClassVar[tuple[str, ...]] = ("gradients g_k: each seen client's sum of updates, and their mean h",)

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)

    @property
    def proximal_mu(self) -> float:
        """The weight of the proximal term, `alpha`; the term is that of FedProx."""
        return self.alpha

    def corrections(
        self, rule_state: RuleState, clients: Sequence[str], info: RoundInfo, learning_rate: float
    ) -> Mapping[str, Adapter]:
        """Return ``-g_k`` for each client; it is empty for a client that was not seen yet."""
        return {c: {name: -self.alpha * t for name, t in kept(rule_state, c).items()} for c in clients}

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Renew the variates ``g_k / alpha`` of the clients that took part, and move the adapter by the mean less h."""
        import torch

        changed = {}
        for update in updates:
            own = kept(rule_state, update.client_id)
            changed[update.client_id] = {
                name: (own[name].to(torch.float64) if own else 0) - delta.to(torch.float64)
                for name, delta in update.delta.items()
            }
        after = with_kept(rule_state, changed)
        mean, h = equal_mean(updates), mean_kept(after, info.population)
        return moved(state, {name: t - h[name] if h else t for name, t in mean.items()}), after
