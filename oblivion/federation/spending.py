"""Whether removals fit the privacy budget of a run, and the summary of what it spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oblivion.config import RunConfig
from oblivion.federation.planning import oracle_seeds
from oblivion.ledger.store import StoredLedger
from oblivion.privacy.budget import Budget, expected_rounds, statement
from oblivion.privacy.budget_checks import check_rounds
from oblivion.removal.plan import RemovalPlan
from oblivion.run.records import PrivacyRecord


def check_removals(
    budget: Budget | None,
    config: RunConfig,
    samples: Mapping[str, int],
    oracles: Sequence[str],
    plans: Sequence[RemovalPlan],
) -> None:
    """Refuse removals that the budget has no room for, with the oracles that they are compared with.

    Parameters
    ----------
    budget : Budget or None
        The budget that was spent before; None without privacy.
    config : RunConfig
        The resolved config.
    samples : mapping of str to int
        The number of samples of each client that is left.
    oracles : sequence of str
        The names of the oracles that are still to be trained; see `oracle_seeds`.
    plans : sequence of RemovalPlan
        The removals that are still to be carried out, in order.

    Raises
    ------
    PlanRefusedError
        The message names the first that does not fit, and how many of its rounds do.
    """
    if budget is None:
        return
    federation = config.federation
    where = (config.privacy.unit, samples, federation.joins, federation.clients_per_round)
    seeds = oracle_seeds(config)
    wanted = [(f"the {name}", expected_rounds(*where, seeds[name], 1, federation.rounds)) for name in oracles]
    wanted += [(plan.label, [dict(charge) for charge in plan.charges]) for plan in plans]
    check_rounds(budget, wanted)


def privacy_values(config: RunConfig, ledger: StoredLedger, head: str) -> PrivacyRecord | None:
    """What ``metrics.json`` says of privacy; None without."""
    if config.privacy.unit == "none":
        return None
    there = any(branch.name == head for branch in ledger.branches())
    return PrivacyRecord.model_validate(statement(config, ledger.charged(), ledger.line(head) if there else ()))
