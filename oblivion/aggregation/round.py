"""Aggregate a round: make the state after it from the state before it and the round's contributions.

`aggregate_round` is a pure function, so a round can be aggregated again from what the ledger stored, with the same
bits. `oblivion.federation.rounds` calls it once for every round, and `oblivion.federation.replay` calls it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from oblivion.aggregation.gate import GateState, limited
from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.aggregation.scheme import LoraScheme
from oblivion.aggregation.schemes.products import product_error
from oblivion.models.factors import only
from oblivion.types import Adapter, ClientUpdate, GlobalState, RoundInfo

NoisedMean: TypeAlias = Callable[[Sequence[ClientUpdate], Adapter, RoundInfo], ClientUpdate]
"""From a round's updates, the tensors that are trained in it and the round to one pseudo-update, their noised mean."""


@dataclass(frozen=True, kw_only=True)
class RoundState:
    """Everything that the server carries from one round to the next."""

    round: int
    state: GlobalState
    rule_state: RuleState
    gate_state: GateState


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """The settings with which a run aggregates its rounds.

    Attributes
    ----------
    rule : Rule
        The server rule.
    scheme : LoraScheme
        The LoRA scheme, which lets the rule work in its space.
    max_influence : float, default 0.0
        A client's number of examples counts at most this many times the median of the round; 0 for no limit.
    noised_mean : callable or None
        With client-level privacy, what makes the one pseudo-update that the rule then sees; None without.
    """

    rule: Rule
    scheme: LoraScheme
    max_influence: float = 0.0
    noised_mean: NoisedMean | None = None


def aggregate_round(
    before: RoundState,
    contributions: Sequence[ClientUpdate],
    info: RoundInfo,
    aggregation: Aggregation,
    refused: Mapping[str, str] | None = None,
) -> RoundState:
    """Aggregate a round; nothing that comes in is changed.

    Parameters
    ----------
    before : RoundState
        The state before the round.
    contributions : sequence of ClientUpdate
        The updates that passed the gate, as the ledger stored them; summed in client-id order.
    info : RoundInfo
        The round.
    aggregation : Aggregation
        The settings of the run.
    refused : mapping of str to str, optional
        The clients whose update was refused in this round, with the reason.

    Returns
    -------
    RoundState
        The state after the round. Without contributions, and without client-level privacy, adapter and rule state are
        those before it.

    Raises
    ------
    FederationError
        If there are contributions, but fewer than the rule needs.
    """
    scheme, counted = aggregation.scheme, limited(contributions, aggregation.max_influence)
    if aggregation.noised_mean is not None:
        trained = only(before.state.adapter, scheme.trained(info.round))
        counted = [aggregation.noised_mean(counted, trained, info)]
    state, rule_state = scheme.combine(aggregation.rule, counted, before.state, before.rule_state, info)
    return RoundState(
        round=info.round,
        state=state,
        rule_state=rule_state,
        gate_state=before.gate_state.after(info.round, contributions, refused),
    )


def scheme_error(
    before: RoundState,
    contributions: Sequence[ClientUpdate],
    info: RoundInfo,
    aggregation: Aggregation,
    after: RoundState,
) -> float:
    """Measure what the scheme loses of the mean of the clients' products, with a plain mean in place of the rule.

    Both means are weighted by the numbers of examples that count, see `Aggregation.max_influence`.

    Parameters
    ----------
    before, contributions, info, aggregation
        The arguments of `aggregate_round`.
    after : RoundState
        The result of `aggregate_round`.

    Returns
    -------
    float
        See `oblivion.aggregation.schemes.products.product_error`; 0 without contributions.
    """
    if not contributions:
        return 0.0
    scheme, counted, mean = aggregation.scheme, limited(contributions, aggregation.max_influence), FedAvg()
    state = after.state
    if aggregation.rule != mean:
        state, _ = scheme.combine(mean, counted, before.state, {}, info)
    return product_error(before.state, counted, state, scheme.ranks)
