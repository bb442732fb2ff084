"""Check whether rounds fit the privacy budget of a run, before any of them runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from oblivion.config import RunConfig
from oblivion.errors import ConfigError, PlanRefusedError
from oblivion.ledger.rounds import Charge, Ledger
from oblivion.privacy.budget import Budget, budget_of, expected_rounds


def check_learning(config: RunConfig, samples: Mapping[str, int]) -> Budget | None:
    """Return the budget after the learning of a run; None without privacy.

    Parameters
    ----------
    config : RunConfig
        The settings of the run.
    samples : mapping of str to int
        The number of samples of each client.

    Raises
    ------
    ConfigError
        If the budget would be exceeded; the message says how many rounds fit.
    """
    budget, federation = budget_of(config), config.federation
    if budget is None:
        return None
    where = (config.privacy.unit, samples, federation.joins, federation.clients_per_round)
    rounds = expected_rounds(*where, config.seed, 1, federation.rounds)
    excess = budget.excess(rounds)
    if excess:
        raise ConfigError(
            f"the learning does not fit the privacy budget: {excess}. Set federation.rounds to that, raise "
            "privacy.noise-multiplier, or raise privacy.max-epsilon"
        )
    return budget.after(*rounds)


def spent(config: RunConfig, ledger: Ledger) -> Budget | None:
    """Return the budget after everything that a run has begun so far; None without privacy."""
    budget = budget_of(config)
    return None if budget is None else budget.after(*(one.clients for one in ledger.charged()))


def check_rounds(budget: Budget, wanted: Iterable[tuple[str, Sequence[Charge]]]) -> None:
    """Refuse the first of some lines of rounds that the budget has no room for, each after those before it.

    Parameters
    ----------
    budget : Budget
        What was spent before.
    wanted : iterable of (str, sequence of Charge)
        The name of each line and what its rounds charge, in the order in which the lines will run.

    Raises
    ------
    PlanRefusedError
        The message names the line, and how many of its rounds fit.
    """
    for label, rounds in wanted:
        excess = budget.excess(rounds)
        if excess:
            raise PlanRefusedError(
                f"{label} does not fit the privacy budget of the clients that stay: {excess}. Choose fewer methods, "
                "recovery rounds or evaluate.oracle-seeds, or raise privacy.max-epsilon"
            )
        budget = budget.after(*rounds)
