"""The loss and the cost of a round, in numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from oblivion.ledger.rounds import RoundRecord
from oblivion.run.records import CostRecord
from oblivion.types import Adapter, ClientUpdate, Cost, GlobalState

BLIND = 16.0
"""Nats per token; whoever guesses blindly among nine million tokens loses as many, and no vocabulary is as large."""


def mean_loss(accepted: Sequence[ClientUpdate], factor: float = 0.0) -> float:
    """Mean training loss of those that tell one, weighted by examples.

    A client says itself what its loss was. With a `factor`, none counts as more than `factor` times the median of the
    round, or as `BLIND` where that is more, and none as less than 0.
    """
    told = [update for update in accepted if "loss" in update.metrics]
    weight = sum(update.num_examples for update in told)
    if not weight:
        return math.nan
    losses = [update.metrics["loss"] for update in told]
    if factor:
        most = max(BLIND, factor * statistics.median_low(losses))
        losses = [min(max(0.0, loss), most) for loss in losses]
    return sum(loss * update.num_examples for loss, update in zip(losses, told, strict=True)) / weight


def rounded_otherwise(repeats_bits: bool, records: Iterable[RoundRecord]) -> str:
    """Why rounds that are run again may be rounded differently, in words; empty where they give the same bits.

    Parameters
    ----------
    repeats_bits : bool
        Whether a visit does (`oblivion.tasks.task.Learner.repeats_bits`).
    records : iterable of RoundRecord
        The rounds.
    """
    if not repeats_bits:
        return "on this GPU the base model has operations without a deterministic kernel"
    rounds = sorted({record.round for record in records if record.halved})
    if rounds:
        return f"in round {rounds[0]} a cohort did not fit into memory as a whole; a smaller train.cohort avoids it"
    return ""


def count(update: ClientUpdate, name: str) -> int:
    """A whole number of an update's metrics; 0 where it is none."""
    return int(update.metrics.get(name, 0.0))


def cost_of(
    accepted: Sequence[ClientUpdate], state: GlobalState, asked: int, *, corrected: bool, private: bool
) -> Cost:
    """What a round cost; with `corrected`, every client was sent a correction besides the state.

    With `private` the number of tokens is withheld: it is computed from the texts, without noise.
    """
    down = _bytes(state.adapter) * (2 if corrected else 1) + _bytes(state.residual)
    return Cost(
        client_steps=sum(update.steps for update in accepted),
        tokens=None if private else sum(count(update, "tokens") for update in accepted),
        bytes_up=sum(_bytes(update.delta) for update in accepted),
        bytes_down=down * asked,
    )


def in_units(cost: Cost, oracle: Cost | CostRecord | None = None, planned: float | None = None) -> CostRecord:
    """Return a cost, with ``fraction`` (client-steps) and ``token_fraction`` (tokens) in units of the oracle's cost.

    A fraction is None where a number is withheld, or the oracle had nothing to do; without an oracle, it is as planned.
    """

    def share(name: str) -> float | None:
        part, whole = getattr(cost, name), getattr(oracle, name, None)
        return None if part is None or not whole else part / whole

    fraction = planned if oracle is None else share("client_steps")
    return CostRecord(**asdict(cost), fraction=fraction, token_fraction=share("tokens"))


def _bytes(tensors: Adapter) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
