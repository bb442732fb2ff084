"""FedEraser: train the retained rounds again, short, and keep the lengths of the old updates (Liu et al., IWQoS 2021).

The state goes back to before the client u took part. Of the first round, the stored updates of the other clients are
aggregated without u's: nothing of u is in them. Then, for every retained round t_j, each other client k trains from the
present state for a fraction of its epochs, and its update is calibrated: the new direction, at the old length,

    ``d~_k = |d_k^{t_j}| * dhat_k / |dhat_k|``,    ``w <- w + sum_k p_k d~_k``  over the clients k that are left.

Each client is calibrated by itself, as in the paper; released code calibrates the mean. ``ratio`` is the paper's r
(calibration epochs over local epochs) and ``interval`` its Delta t.

Deviations. Lengths are taken tensor by tensor, because A and B have lengths of their own; a tensor that did not move
stays. The state goes back to the round before the client's first, in the place of round 0: earlier rounds hold nothing
of it. The calibrated updates pass the run's own rule, which is the paper's weighted mean if that is ``fedavg``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from oblivion.aggregation.gate import tensor_norms
from oblivion.aggregation.round import RoundState
from oblivion.config import MOST_ROUNDS
from oblivion.errors import PlanRefusedError, plural
from oblivion.parameters import check_count, check_positive
from oblivion.removal.checklist import ADAPTER, CONTROL, RESIDUAL, RULE_STATE, UPDATES, Verdict, checklist
from oblivion.removal.context import PlanningContext, from_round
from oblivion.removal.ledger_reader import LedgerReader
from oblivion.removal.phases import Phase, Restore, Rounds, ServerStep, Visit
from oblivion.removal.plan import RemovalPlan
from oblivion.removal.stored_updates import check_stored_updates
from oblivion.types import ClientUpdate, ForgetRequest


@dataclass(frozen=True)
class FedEraser:
    """Calibrate the retained rounds without the client, each other client by itself, then recover (approximate).

    Parameters
    ----------
    interval : int, default 2
        One of so many rounds is retained.
    ratio : float, default 0.5
        Calibration epochs as a fraction of the local epochs of a round; at least one epoch is trained.
    recovery_rounds : int, default 2
        The number of rounds without the client afterwards.
    """

    interval: int = 2
    ratio: float = 0.5
    recovery_rounds: int = 2
    requires: ClassVar[frozenset[str]] = frozenset({"updates", "norms", "checkpoints"})

    def __post_init__(self) -> None:
        check_count("interval", self.interval, 1, MOST_ROUNDS)
        check_count("recovery_rounds", self.recovery_rounds, 0, MOST_ROUNDS)
        check_positive("ratio", self.ratio, 1.0)

    def plan(self, request: ForgetRequest, context: PlanningContext) -> RemovalPlan:
        """Plan the first round without the client, one visit for each further retained round, and the recovery.

        Raises
        ------
        PlanRefusedError
            If something of a retained round is not kept any more, or the rule or the scheme does not go with it.
        """
        check_stored_updates("federaser", request, context)
        if context.aggregator.needs_client_state:
            raise PlanRefusedError(
                f"federaser has no correction for {context.aggregator!r}, whose clients train with control variates; "
                "choose rollback, exclude or local"
            )
        t_u = from_round(request, context)
        retained = range(t_u, (context.rounds if t_u <= context.rounds else context.head) + 1, self.interval)
        if t_u - 1 not in context.restorable:
            raise PlanRefusedError(f"federaser begins after round {t_u - 1}, whose state is not kept; choose rollback")
        others_of(t_u, request, context)
        first = ServerStep(
            name="aggregate the first round without the client",
            function=partial(without, client=request.client_id, round=t_u),
            settings={"round": t_u},
            reset_rule_state=False,
        )
        visits = [self._visit(number, t_u + place, request, context) for place, number in enumerate(retained) if place]
        recovery: tuple[Phase, ...] = (Rounds(rounds=self.recovery_rounds),) if self.recovery_rounds else ()
        again: Verdict = ("cleaned", "restored from before the data and computed again without it")
        verdicts: dict[str, Verdict] = {
            ADAPTER: ("cleaned", "restored from before the data and calibrated without it; measured, not proven"),
            RULE_STATE: again,
            CONTROL: again,
            RESIDUAL: again,
            UPDATES: ("not covered", "their lengths are kept, and come from adapters that had learned the data"),
        }
        return RemovalPlan(
            label=f"federaser + {plural(self.recovery_rounds, 'round')}",
            guarantee="approximate",
            phases=(Restore(t_u - 1), first, *visits, *recovery),
            checklist=checklist(context, verdicts),
        )

    def _visit(self, number: int, at: int, request: ForgetRequest, context: PlanningContext) -> Visit:
        """Return the calibration of the retained round `number`, which becomes round `at` of the branch."""
        if context.scheme.trained(number) != context.scheme.trained(at):
            raise PlanRefusedError(
                f"federaser retains round {number} with an interval of {self.interval}, and the LoRA scheme trains "
                "A and B by turns; choose an odd interval"
            )
        return Visit(
            clients=others_of(number, request, context),
            rows="own",
            objective="lm",
            local_epochs=max(1, round(self.ratio * context.local_epochs)),
            learning_rate=context.learning_rate,
            combine=Calibrate(round=number),
            reset_rule_state=False,
        )


def others_of(number: int, request: ForgetRequest, context: PlanningContext) -> tuple[str, ...]:
    """Return the other clients that contributed to a retained round and still have rows to train on.

    Raises
    ------
    PlanRefusedError
        If not all contributions to the round are kept, or fewer clients are left than the rule needs.
    """
    there = context.stored.get(number, frozenset())
    accepted = {client for record in context.records if record.round == number for client in record.accepted}
    if not there or not there.issuperset(accepted):
        raise PlanRefusedError(
            f"federaser retains round {number}, whose contributions are not all kept; ledger.retention = 0 keeps all"
        )
    others = tuple(sorted(client for client in there - {request.client_id} if context.usable.get(client)))
    if len(others) < max(1, context.aggregator.needed()):
        raise PlanRefusedError(
            f"federaser retains round {number}, and without {request.client_id} it has {len(others)} of the at least "
            f"{max(1, int(context.aggregator.needed()))} clients that {context.aggregator!r} needs; choose rollback"
        )
    return others


def without(before: RoundState, history: LedgerReader, client: str, round: int) -> RoundState:
    """Return what a round makes of its stored contributions without those of a client."""
    others = [update for update in history.contributions(round) if update.client_id != client]
    return history.aggregate(before, others, round)


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Give each new update the lengths of the same client's update in a retained round, and aggregate by the rule.

    Parameters
    ----------
    round : int
        The retained round.
    """

    round: int
    name: ClassVar[str] = "calibrate"

    def combine(self, before: RoundState, updates: Sequence[ClientUpdate], history: LedgerReader) -> RoundState:
        """Return the next state."""
        calibrated = [calibrate(update, history.contribution(update.client_id, self.round)) for update in updates]
        return history.aggregate(before, calibrated, before.round + 1)


def calibrate(update: ClientUpdate, old: ClientUpdate) -> ClientUpdate:
    """Return an update whose tensors have the lengths of those of `old`; what did not move stays."""
    import torch

    lengths, wanted = tensor_norms(update.delta), tensor_norms(old.delta)
    delta = {
        name: (tensor.to(torch.float64) * (wanted[name] / lengths[name] if lengths[name] else 0.0)).to(torch.float32)
        for name, tensor in update.delta.items()
    }
    return replace(update, delta=delta)
