"""MSA: model state arithmetic (arXiv 2506.20941), with the states that a ledger has.

``w' = w - alpha * (w1 - w0) + beta * (w2 - w0)``: ``w0`` is the state before the data was seen, ``w1`` that state
trained on the data to be forgotten, ``w2`` that state trained on data to be kept.

In a federation, ``w0`` is the state before the client's first contribution, ``w1 - w0`` is that contribution, and
``w2 - w0`` is the mean of the others' contributions to the same round, weighted by their numbers of examples.

Deviations. In the paper both states are trained for the purpose; here they are the first round's, and nothing is
trained. The arithmetic is on the factors A and B, in the place of all weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from oblivion.aggregation.round import RoundState
from oblivion.config import MOST_ROUNDS
from oblivion.errors import PlanRefusedError, plural
from oblivion.parameters import check_at_least_zero, check_count, check_positive
from oblivion.removal.checklist import checklist
from oblivion.removal.combinations import mean_of, moved
from oblivion.removal.context import PlanningContext
from oblivion.removal.ledger_reader import LedgerReader
from oblivion.removal.phases import Phase, Rounds, ServerStep
from oblivion.removal.plan import RemovalPlan
from oblivion.removal.stored_updates import check_stored_updates, moved_by_the_server
from oblivion.types import ForgetRequest


@dataclass(frozen=True)
class Msa:
    """Subtract what the client's first round taught and add what it taught the others (approximate).

    Parameters
    ----------
    alpha : float, default 0.5
        The weight of the client's first update, which is subtracted.
    beta : float, default 0.5
        The weight of the others' mean update of the same round, which is added.
    recovery_rounds : int, default 0
        The number of rounds without the client afterwards.
    """

    alpha: float = 0.5
    beta: float = 0.5
    recovery_rounds: int = 0
    requires: ClassVar[frozenset[str]] = frozenset({"updates"})

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)
        check_at_least_zero("beta", self.beta)
        check_count("recovery_rounds", self.recovery_rounds, 0, MOST_ROUNDS)

    def plan(self, request: ForgetRequest, context: PlanningContext) -> RemovalPlan:
        """Plan the arithmetic and the recovery rounds.

        Raises
        ------
        PlanRefusedError
            If the client's first contribution is not kept any more: a later one does not start from before the data.
        """
        check_stored_updates("msa", request, context)
        client, first = request.client_id, context.stored_rounds(request.client_id)[0]
        taken = next((record.round for record in context.records if client in record.accepted), first)
        if taken < first:
            raise PlanRefusedError(
                f"msa needs the first update of {client}, and that of round {taken} is not kept; "
                "ledger.retention = 0 keeps all. Choose puf, which takes the last one"
            )
        step = ServerStep(
            name="model state arithmetic",
            function=partial(combine_states, client=client, round=first, alpha=self.alpha, beta=self.beta),
            settings={"round": first, "alpha": self.alpha, "beta": self.beta},
        )
        recovery: tuple[Phase, ...] = (Rounds(rounds=self.recovery_rounds),) if self.recovery_rounds else ()
        return RemovalPlan(
            label=f"msa + {plural(self.recovery_rounds, 'round')}",
            guarantee="approximate",
            phases=(step, *recovery),
            checklist=checklist(context, moved_by_the_server("against the client's first update")),
        )


def combine_states(
    before: RoundState, history: LedgerReader, client: str, round: int, alpha: float, beta: float
) -> RoundState:
    """Return the state moved by ``-alpha`` times a client's update and ``beta`` times the others' mean update."""
    import torch

    own = history.contribution(client, round)
    others = [update for update in history.contributions(round) if update.client_id != client]
    by = {name: -alpha * delta.to(torch.float64) for name, delta in own.delta.items()}
    if others and beta:
        by = {name: by[name] + beta * tensor for name, tensor in mean_of(others).items()}
    return moved(before, by)
