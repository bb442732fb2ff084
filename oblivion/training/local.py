"""Train one client: copy the global adapter in, take optimizer steps on local rows, return the difference.

The steps are local SGD or AdamW as in FedAvg (McMahan et al., 2017, Algorithm 1, ClientUpdate); the proximal term is
that of FedProx (Li et al., 2020, equation 2), ``mu / 2 * ||w - w_global||^2``, added as its gradient before clipping.
The correction of rules with control variates (SCAFFOLD, FedDyn) is added after clipping, as it is: it steers the step
and is no gradient of the client's own. The optimizer is new at every visit, so that a visit is a pure function of what
the message holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oblivion.config import TrainConfig
from oblivion.models.factors import Factor, factor_of
from oblivion.objectives.needs import Role, Source
from oblivion.objectives.terms import Objective, Stateful
from oblivion.seeding import derive_seed, numpy_generator
from oblivion.tasks.task import Learner, Row
from oblivion.training.batches import epochs
from oblivion.training.gradients import Gradients, with_state
from oblivion.training.outputs import Wanted
from oblivion.types import Adapter, ClientUpdate, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """One client's rows by role.

    Attributes
    ----------
    client_id : str
        The client.
    rows : mapping of role to sequence of Row
        Learning has the one role ``retain``; unlearning has ``forget`` and, where there is an anchor, ``retain``. Row
        i in role ``alternate`` has the same question as row i to forget, and another answer.
    skipped : int
        Rows of the client that are too long for the model's context.
    proximal_mu : float
        Weight of the proximal term, at least 0.
    correction : Adapter
        Added to the gradient at every step; empty for nothing.
    start : Adapter or None
        What the client begins from in place of the global adapter, if it has a rank of its own.
    factors : tuple of str
        Which factors, of ``"A"`` and ``"B"``, are trained; the same for all clients of a cohort.
    noise_key : bytes
        The secret of this visit, from which privacy noise is drawn; empty without privacy.
    """

    client_id: str
    rows: Mapping[Role, Sequence[Row]]
    skipped: int = 0
    proximal_mu: float = 0.0
    correction: Adapter = field(default_factory=dict)
    start: Adapter | None = None
    factors: tuple[Factor, ...] = ("A", "B")
    noise_key: bytes = field(default=b"", repr=False)

    @property
    def leading(self) -> Sequence[Row]:
        """The rows whose passes are counted: those to forget, or else those to learn."""
        return self.rows["forget"] if "forget" in self.rows else self.rows["retain"]


Rows = dict[Role, list[Row]]


def micro_batches(task: LocalTask, settings: TrainConfig, info: RoundInfo) -> Iterator[list[Rows]]:
    """Yield, per optimizer step, its micro-batches by role.

    Anchors are cycled through beside the leading rows; alternates stand where the rows stand that they belong to.
    """
    others = dict(zip(task.rows.get("forget", ()), task.rows.get("alternate", ()), strict=False))

    def batches(role: Role, count: int) -> Iterator[list[Row]]:
        own = numpy_generator(info.seed, f"batches/{role}", info.round, task.client_id)
        shared = numpy_generator(info.seed, f"places/{role}", info.round)
        return epochs(task.rows[role], settings.batch_size, count, own, shared)

    leading: Role = "forget" if "forget" in task.rows else "retain"
    anchors = batches("retain", 1 << 30) if leading == "forget" and task.rows.get("retain") else None
    for rows in batches(leading, settings.local_epochs):
        by_role: dict[Role, list[Row]] = {leading: rows}
        if anchors is not None:
            by_role["retain"] = next(anchors)
        if others:
            by_role["alternate"] = [others[row] for row in rows]
        count = min(settings.accumulation, *(len(chosen) for chosen in by_role.values()))
        yield [{role: chosen[i::count] for role, chosen in by_role.items()} for i in range(count)]


def denominators(step: Sequence[Rows], objective: Objective) -> dict[Role, float]:
    """Count the tokens, or sequences, by which the sums of one optimizer step are divided, over its micro-batches."""
    totals: dict[Role, float] = {}
    for micro in step:
        for role, rows in micro.items():
            per_sequence = role == "forget" and objective.reduction == "sequence"
            count = len(rows) if per_sequence else sum(len(row.labels) for row in rows)
            totals[role] = totals.get(role, 0.0) + count
    return totals


def visit_update(
    task: LocalTask, info: RoundInfo, delta: Adapter, losses: Sequence[float], tokens: int
) -> ClientUpdate:
    """Make what a client sends back, from the losses of its steps and the tokens that it forwarded."""
    return ClientUpdate(
        client_id=task.client_id,
        round=info.round,
        delta=delta,
        num_examples=len(task.leading),
        steps=len(losses),
        metrics={"loss": math.fsum(losses) / len(losses), "tokens": float(tokens), "skipped": float(task.skipped)},
    )


class LocalVisit:
    """One client's adapter in the resident model: from the global adapter, step by step, to its change.

    Parameters
    ----------
    resident, start, task, settings
        As in `train_client`.

    Attributes
    ----------
    start : Adapter
        What the client begins from.
    trained : dict of str to Parameter
        The tensors that are trained.
    """

    def __init__(self, resident: Learner, start: Adapter, task: LocalTask, settings: TrainConfig) -> None:
        self.start = task.start or start
        resident.write(self.start)
        self.trained: dict[str, Any] = {
            name: p for name, p in resident.parameters.items() if factor_of(name) in task.factors
        }
        self._resident, self._task = resident, task
        self._parameters = list(self.trained.values())
        self._anchor = [self.start[name].to(p.device) for name, p in self.trained.items()]
        self._correction = [task.correction[name].to(p) for name, p in self.trained.items()] if task.correction else []
        self._optimizer = make_optimizer(self._parameters, settings)
        self._kept: Adapter | None = None

    def use(self, source: Source) -> None:
        """Put the adapter of a source into effect, by copying it in: a teacher is never a second model.

        The adapter that is being trained is kept meanwhile, and comes back with ``"own"``.
        """
        import torch

        if source == "own":
            if self._kept is not None:
                self._resident.write(self._kept)
                self._resident.drop(True)
                self._kept = None
            return
        if self._kept is None:
            self._kept = self._resident.read()
            self._resident.drop(False)
        teacher = self.start
        if source == "base":
            teacher = {name: torch.zeros_like(tensor) for name, tensor in self.start.items()}
        self._resident.write(teacher)

    def zero_gradients(self) -> None:
        """Forget the gradients, before each step and after the last."""
        self._optimizer.zero_grad(set_to_none=True)

    def step(self, clip_norm: float | None = None) -> None:
        """Step with the gradients that are there; the proximal term is clipped with them, the correction is not."""
        import torch

        if self._task.proximal_mu:
            _add_proximal_gradient(self._parameters, self._anchor, self._task.proximal_mu)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, clip_norm)
        if self._correction:
            for parameter, extra in zip(self._parameters, self._correction, strict=True):
                parameter.grad.add_(extra)
        self._optimizer.step()

    def delta(self) -> Adapter:
        """Return the adapter now, less the one at the beginning."""
        self.zero_gradients()
        after = self._resident.read()
        return {name: after[name] - self.start[name] for name in self.trained}


def train_client(
    resident: Learner,
    start: Adapter,
    task: LocalTask,
    objective: Objective,
    settings: TrainConfig,
    info: RoundInfo,
) -> ClientUpdate:
    """Train one client from the global adapter.

    Parameters
    ----------
    resident : Learner
        The base model in memory; its adapter is overwritten before and after.
    start : Adapter
        The global adapter, also the anchor of the proximal term and the reference of objectives that need one.
    task : LocalTask
        The client and its rows.
    objective : Objective
        The local loss.
    settings : TrainConfig
        Batch size, epochs, optimizer.
    info : RoundInfo
        The round, which with the client id decides all randomness.

    Returns
    -------
    ClientUpdate
        ``delta`` = adapter after minus adapter before; `metrics` has ``loss`` (mean over steps) and ``tokens``.
    """
    import torch

    visit = LocalVisit(resident, start, task, settings)
    like = next(iter(visit.trained.values())).detach()
    wanted, gradients = Wanted.of(objective), Gradients(objective, list(visit.trained.values()))
    state = dict(objective.init()) if isinstance(objective, Stateful) else {}
    losses: list[float] = []
    tokens = 0
    with torch.random.fork_rng(), resident.training(settings.gradient_checkpointing, visit.trained):
        torch.manual_seed(derive_seed(info.seed, "dropout", info.round, task.client_id))
        for step in micro_batches(task, settings, info):
            micros = [{r: resident.task.collate(rows, like.device) for r, rows in micro.items()} for micro in step]
            counts = denominators(step, objective)
            visit.zero_gradients()
            total, by_role = 0.0, dict.fromkeys(counts, 0.0)
            for micro in micros:
                outputs = wanted.make(resident.task, resident.model, micro, visit.use)
                terms = objective.loss(outputs, {r: with_state(b.answers, [state], like) for r, b in micro.items()})
                total += gradients.add({r: t.weight * t.sums.sum() / counts[r] for r, t in terms.items()})
                tokens += wanted.forwarded({role: batch.size for role, batch in micro.items()})
                for role in terms if state else ():
                    by_role[role] += float(terms[role].sums.detach().sum() / counts[role])
            gradients.finish()
            visit.step(settings.clip_norm)
            losses.append(total)
            state = dict(objective.update(state, by_role)) if isinstance(objective, Stateful) else {}
    return visit_update(task, info, visit.delta(), losses, tokens)


def _add_proximal_gradient(parameters: Sequence[Any], anchor: Sequence[Tensor], mu: float) -> None:
    """Add the gradient of ``mu / 2 * ||w - anchor||^2``."""
    import torch

    with torch.no_grad():
        for parameter, start in zip(parameters, anchor, strict=True):
            parameter.grad.add_(parameter - start, alpha=mu)


def make_optimizer(parameters: Sequence[Any], settings: TrainConfig) -> Any:
    """Make AdamW (Loshchilov and Hutter, 2019) or plain SGD, at a constant rate."""
    import torch

    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
