"""Whether learning and removals fit the privacy budget, before anything of them runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.errors import ConfigError, PlanRefusedError
from oblivion.federation.planning import oracle_seeds
from oblivion.ledger.store import StoredLedger
from oblivion.privacy.budget import Budget, budget_of, expected_rounds, statement
from oblivion.removal.plan import RemovalPlan


def check_learning(config: RunConfig, data: FederatedData) -> Budget | None:
    """The budget after the learning of a run; None without privacy.

    Raises
    ------
    ConfigError
        If it would be exceeded, saying how many rounds fit.
    """
    budget, federation = budget_of(config), config.federation
    if budget is None:
        return None
    samples = {client: len(rows) for client, rows in data.clients.items()}
    where = (config.privacy.unit, samples, federation.joins, federation.clients_per_round)
    rounds = expected_rounds(*where, config.seed, 1, federation.rounds)
    excess = budget.excess(rounds)
    if excess:
        raise ConfigError(
            f"the learning does not fit the privacy budget: {excess}. Set federation.rounds to that, raise "
            "privacy.noise-multiplier, or raise privacy.max-epsilon"
        )
    return budget.after(*rounds)


def spent(config: RunConfig, ledger: StoredLedger) -> Budget | None:
    """The budget after everything that a run has begun so far; None without privacy."""
    budget = budget_of(config)
    return None if budget is None else budget.after(*(one.clients for one in ledger.charged()))


def check_removals(
    budget: Budget | None,
    config: RunConfig,
    samples: Mapping[str, int],
    oracles: Sequence[str],
    plans: Sequence[RemovalPlan],
) -> None:
    """Refuse removals, and the oracles that they are compared with, that the budget has no room for.

    Parameters
    ----------
    budget : Budget or None
        What was spent before; None without privacy.
    config : RunConfig
        Resolved.
    samples : mapping of str to int
        The clients that are left, with their number of samples.
    oracles : sequence of str
        The names of those that are still to be trained, of `oracle_seeds`.
    plans : sequence of RemovalPlan
        Those that are still to be carried out, in order.

    Raises
    ------
    PlanRefusedError
        Naming the first that does not fit, and how many of its rounds do.
    """
    if budget is None:
        return
    federation = config.federation
    where = (config.privacy.unit, samples, federation.joins, federation.clients_per_round)
    seeds = oracle_seeds(config)
    wanted = [(f"the {name}", expected_rounds(*where, seeds[name], 1, federation.rounds)) for name in oracles]
    wanted += [(plan.label, [dict(charge) for charge in plan.charges]) for plan in plans]
    for label, rounds in wanted:
        excess = budget.excess(rounds)
        if excess:
            raise PlanRefusedError(
                f"{label} does not fit the privacy budget of the clients that stay: {excess}. Choose fewer methods, "
                "forget.recovery-rounds or evaluate.oracle-seeds, or raise privacy.max-epsilon"
            )
        budget = budget.after(*rounds)


def privacy_values(config: RunConfig, ledger: StoredLedger, head: str) -> dict[str, Any] | None:
    """What ``metrics.json`` says of privacy; None without."""
    if config.privacy.unit == "none":
        return None
    there = any(branch.name == head for branch in ledger.branches())
    return statement(config, ledger.charged(), ledger.line(head) if there else ())
