"""What a round came to in numbers: loss, cost, and what its LoRA scheme loses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from oblivion.aggregation.fedavg import FedAvg
from oblivion.aggregation.products import product_error
from oblivion.aggregation.rule import Aggregator
from oblivion.ledger.replay import Replay
from oblivion.ledger.rounds import RoundState
from oblivion.types import Adapter, ClientUpdate, Cost, GlobalState, RoundInfo


def scheme_error(
    replay: Replay, before: RoundState, updates: Sequence[ClientUpdate], after: RoundState, info: RoundInfo
) -> float:
    """What the scheme, with a plain mean, loses of the clients' mean product, whatever the rule makes of it besides."""
    if not updates:
        return 0.0
    mean = cast("Aggregator", FedAvg())
    state = after.state
    if replay.rule != mean:
        state, _ = replay.scheme.combine(mean, updates, before.state, {}, info)
    return product_error(before.state, updates, state, replay.scheme.ranks)


def mean_loss(accepted: Sequence[ClientUpdate]) -> float:
    """Mean training loss of those that tell one, weighted by examples."""
    told = [update for update in accepted if "loss" in update.metrics]
    weight = sum(update.num_examples for update in told)
    return sum(update.metrics["loss"] * update.num_examples for update in told) / weight if weight else math.nan


def count(update: ClientUpdate, name: str) -> int:
    """A whole number of an update's metrics; 0 where it is none."""
    return int(update.metrics.get(name, 0.0))


def cost_of(accepted: Sequence[ClientUpdate], state: GlobalState, asked: int, corrected: bool) -> Cost:
    """What a round cost; with `corrected`, every client was sent a correction besides the state."""
    down = _bytes(state.adapter) * (2 if corrected else 1) + _bytes(state.residual)
    return Cost(
        client_steps=sum(update.steps for update in accepted),
        tokens=sum(count(update, "tokens") for update in accepted),
        bytes_up=sum(_bytes(update.delta) for update in accepted),
        bytes_down=down * asked,
    )


def _bytes(tensors: Adapter) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
