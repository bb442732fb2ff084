"""What a run has spent of privacy, and whether there is enough left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from oblivion.config import RunConfig
from oblivion.errors import ConfigError
from oblivion.ledger.register import MAIN
from oblivion.training.accountant import group_bounds, rounds_within, spent

_FAR = 10_000  # rounds; nobody plans a removal that has more


def check_budget(config: RunConfig, sizes: Mapping[str, int]) -> None:
    """Refuse a learning that would spend more than ``privacy.max-epsilon``.

    Raises
    ------
    ConfigError
        With what it would spend, and how many rounds fit.
    """
    privacy, rounds = config.privacy, config.federation.rounds
    if privacy.unit == "none" or not privacy.max_epsilon:
        return
    found = spent(config, sizes, rounds)
    if found > privacy.max_epsilon:
        fit = rounds_within(config, sizes, rounds)
        raise ConfigError(
            f"{rounds} rounds with privacy.noise-multiplier = {privacy.noise_multiplier:g} spend an epsilon of "
            f"{found:.2f} (delta {privacy.delta:g}), and privacy.max-epsilon = {privacy.max_epsilon:g}; {fit} rounds "
            "fit (federation.rounds), or take more noise"
        )


def rounds_left(config: RunConfig, sizes: Mapping[str, int], trained: int) -> int | None:
    """How many more rounds ``privacy.max-epsilon`` allows after some on all branches; None for no limit."""
    privacy = config.privacy
    if privacy.unit == "none" or not privacy.max_epsilon:
        return None
    return max(0, rounds_within(config, sizes, trained + _FAR) - trained)


def privacy_summary(
    config: RunConfig, sizes: Mapping[str, int], rounds: Mapping[str, int], trained: int
) -> dict[str, Any] | None:
    """What ``metrics.json`` and the report say of privacy.

    Parameters
    ----------
    config : RunConfig
        Of the run.
    sizes : mapping of str to int
        Rows of each client.
    rounds : mapping of str to int
        Branch to the number of rounds that led to its head.
    trained : int
        Rounds that were ever trained, on all branches together.

    Returns
    -------
    dict or None
        ``unit``, ``noise_multiplier``, ``clip_norm``, ``delta``; ``by_round``, epsilon after each round of the
        learning; ``models``, per branch its rounds and the epsilon of its model alone; ``all``, the same of every round
        that was trained, oracles included, as if all models were given away; with the unit ``client`` also
        ``forgetting``, what that says of clients that leave with nothing done. An epsilon that is infinite is None.
        None without differential privacy.
    """
    privacy = config.privacy
    if privacy.unit == "none":
        return None

    def entry(count: int) -> dict[str, Any]:
        found = spent(config, sizes, count)
        return {"rounds": count, "epsilon": found if math.isfinite(found) else None}

    learned = rounds.get(MAIN, 0)
    summary: dict[str, Any] = {
        "unit": privacy.unit,
        "noise_multiplier": privacy.noise_multiplier,
        "clip_norm": privacy.clip_norm,
        "delta": privacy.delta,
        "by_round": [entry(number)["epsilon"] for number in range(1, learned + 1)],
        "models": {name: entry(count) for name, count in rounds.items()},
        "all": entry(trained),
    }
    if privacy.unit == "client":
        bounds = group_bounds(spent(config, sizes, learned), privacy.delta)
        summary["forgetting"] = {
            str(k): {"epsilon": e if math.isfinite(e) else None, "delta": d} for k, (e, d) in bounds.items()
        }
    return summary
