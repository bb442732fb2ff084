"""Train the clients of a cohort together: one forward and backward pass over the frozen base, one adapter row each.

In every LoRA layer (Hu et al., 2021) the rows of client k go through its own ``A_k`` and ``B_k``: ``y = W x + (alpha/r)
B_k A_k x`` as two batched products. The loss is the sum over clients of each client's own mean, so every client gets
the gradient that it would get alone; clipping and the optimizer work row by row (`oblivion.training.arena`). A row is
given to the next client as soon as its client has ended. The same idea serves many adapters at inference in S-LoRA
(Sheng et al., 2024); here it trains them.
"""

from __future__ import annotations

import functools
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oblivion.config import TrainConfig
from oblivion.models.attention import changes_with_length
from oblivion.models.factors import factor_of
from oblivion.models.resident import ResidentModel
from oblivion.objectives.needs import Role, Source
from oblivion.objectives.terms import CombinesGradients, Objective, Stateful
from oblivion.tasks.task import Batch, Learner, Row, Task
from oblivion.training.arena import Arena
from oblivion.training.gradients import with_state
from oblivion.training.local import LocalTask, Rows, denominators, micro_batches, visit_update
from oblivion.training.outputs import Wanted
from oblivion.types import Adapter, ClientUpdate, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor


def fusible(resident: Learner) -> str | None:
    """Say why a model's clients cannot be trained together; None if they can."""
    if not isinstance(resident, ResidentModel):
        return "the model has no LoRA layers through which clients could share a pass"
    import torch
    from peft.tuners.lora import Linear

    if any(config.lora_dropout for config in resident.model.peft_config.values()):
        return "lora.dropout is above 0, and its masks would depend on the neighbours"
    for name, module in resident.lora_layers.items():
        if type(module) is not Linear or type(module.base_layer) is not torch.nn.Linear:
            return f"layer {name} is not a plain linear layer"
    if changes_with_length(resident.base.model, resident.max_length):
        return "the model's positions depend on the longest text of a batch, and so would on the neighbours'"
    return None


@dataclass
class _Visit:
    """A client in a row of the arena, and what it has done so far."""

    task: LocalTask
    steps: Iterator[list[Rows]]
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    state: Mapping[str, float] = field(default_factory=dict)
    by_role: dict[Role, float] = field(default_factory=dict)

    def begin_step(self) -> None:
        """Begin with no loss."""
        self.losses.append(0.0)
        self.by_role = {}

    def add(self, loss: float, by_role: Mapping[Role, float], tokens: int) -> None:
        """Add what a micro-batch gave."""
        self.losses[-1] += loss
        self.tokens += tokens
        for role, value in by_role.items():
            self.by_role[role] = self.by_role.get(role, 0.0) + value

    def end_step(self, objective: Objective) -> None:
        """Let the objective update its state."""
        if isinstance(objective, Stateful):
            self.state = objective.update(self.state, self.by_role)

    def end(self, start: Adapter, after: Adapter, info: RoundInfo) -> ClientUpdate:
        """Return what the client sends back, from the global adapter and its own."""
        begun = self.task.start or start
        delta = {name: (tensor - begun[name].to(tensor.dtype)).float() for name, tensor in after.items()}
        return visit_update(self.task, info, delta, self.losses, self.tokens)


def train_fused(
    resident: Learner,
    start: Adapter,
    tasks: Sequence[LocalTask],
    objective: Objective,
    settings: TrainConfig,
    info: RoundInfo,
    slots: int,
) -> list[ClientUpdate]:
    """Train every client of a cohort from the global adapter, up to `slots` at a time.

    Parameters
    ----------
    resident, start, objective, settings, info
        As in `oblivion.training.local.train_client`.
    tasks : sequence of LocalTask
        The clients, each with rows; all train the same factors. Where the objective needs a reference, it is `start`
        for all.
    slots : int
        The number of rows of the arena.

    Returns
    -------
    list of ClientUpdate
        In the order of `tasks`; a client whose loss was not finite has an update that is not, for the gate to refuse.
    """
    from oblivion.training.lora_linear import through  # imported here, since it imports torch

    # Rows of the arena lie further apart than their tensors are long; torch remarks on it once, and it costs nothing.
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
    queue = deque(tasks)
    trained = {name: p for name, p in resident.parameters.items() if factor_of(name) in tasks[0].factors}
    arena = Arena(trained, min(slots, len(tasks)), settings)
    there: dict[int, _Visit] = {}
    done: dict[str, ClientUpdate] = {}
    adapters = _Adapters(resident, arena, start)
    state = objective.init() if isinstance(objective, Stateful) else {}
    combine = objective.combine_gradients if isinstance(objective, CombinesGradients) else None
    with resident.training(settings.gradient_checkpointing), through(resident.lora_layers, adapters.of):
        while True:
            running: dict[int, list[Rows]] = {}
            for row in range(arena.values.shape[0]):
                micros = None
                while micros is None and (row in there or queue):
                    if row not in there:
                        task = queue.popleft()
                        arena.load(row, task.start or start, task.proximal_mu, task.correction)
                        there[row] = _Visit(task, micro_batches(task, settings, info), state=state)
                    micros = next(there[row].steps, None)
                    if micros is None:  # the client has ended, and its row is free for the next
                        visit = there.pop(row)
                        done[visit.task.client_id] = visit.end(start, arena.read(row), info)
                if micros is not None:
                    running[row] = micros
            if not running:
                break
            _step(resident, adapters, arena, running, there, objective)
            arena.step(sorted(running), combine)
    return [done[task.client_id] for task in tasks]


def _step(
    resident: Learner,
    adapters: _Adapters,
    arena: Arena,
    running: Mapping[int, list[Rows]],
    there: Mapping[int, _Visit],
    objective: Objective,
) -> None:
    """Gather one optimizer step's gradients for every running client, micro-batch by micro-batch."""
    rows, task, wanted = sorted(running), resident.task, Wanted.of(objective)
    counts = {row: denominators(running[row], objective) for row in rows}
    for row in rows:
        there[row].begin_step()
    for index in range(max(len(micros) for micros in running.values())):
        own = {row: micros[index] for row, micros in running.items() if index < len(micros)}
        roles = sorted({role for by_role in own.values() for role in by_role})
        for group, chosen in _alike(own, roles):
            stacked = {role: _Stacked.of([own[row][role] for row in group], task, adapters.device) for role in chosen}
            batches = {role: one.batch for role, one in stacked.items()}
            outputs = wanted.make(task, resident.model, batches, functools.partial(adapters.use, rows=group))
            states = [there[row].state for row in group]
            answers = {role: with_state(one.answers, states, arena.values) for role, one in batches.items()}
            terms = objective.loss(outputs, answers)
            sums = {role: term.sums.view(len(group), -1).sum(1) for role, term in terms.items()}
            divisors = {r: one.new_tensor([counts[row][r] for row in group]) for r, one in sums.items()}
            losses = _backward(arena, {r: terms[r].weight * sums[r] / divisors[r] for r in terms}, objective)
            for place, row in enumerate(group):
                sizes = {role: sum(line.size for line in own[row][role]) for role in chosen}
                by_role = {r: float(sums[r].detach()[place] / divisors[r][place]) for r in terms if there[row].state}
                there[row].add(losses[place], by_role, wanted.forwarded(sizes))
    for row in rows:
        there[row].end_step(objective)


def _backward(arena: Arena, parts: Mapping[Role, Tensor], objective: Objective) -> list[float]:
    """Add the gradients of the terms, each (clients,), and return each client's own loss."""
    import torch

    losses = torch.stack(list(parts.values())).sum(0)
    if isinstance(objective, CombinesGradients):
        for role, part in parts.items():
            with arena.gathering(role):
                part.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    else:
        losses.sum().backward()  # type: ignore[no-untyped-call]
    return losses.tolist()


def _alike(own: Mapping[int, Rows], roles: Sequence[Role]) -> list[tuple[list[int], list[Role]]]:
    """Group the rows of the arena whose clients have rows in the same roles; almost always one group has all."""
    groups: dict[tuple[Role, ...], list[int]] = {}
    for row, by_role in sorted(own.items()):
        groups.setdefault(tuple(role for role in roles if by_role.get(role)), []).append(row)
    return [(rows, list(chosen)) for chosen, rows in groups.items()]


@dataclass(frozen=True)
class _Stacked:
    """The batches of several clients as one, client after client, each padded to the same number of sequences."""

    batch: Batch
    clients: int
    width: int

    @classmethod
    def of(cls, by_client: Sequence[Sequence[Row]], task: Task, device: Any) -> _Stacked:
        width = max(len(rows) for rows in by_client)
        blank = task.blank(by_client[0][0])
        padded = [[*rows, *[blank] * (width - len(rows))] for rows in by_client]
        return cls(task.collate([row for rows in padded for row in rows], device), len(by_client), width)


class _Adapters:
    """Which adapters the LoRA layers send the sequences through: each client's own row of the arena, or a teacher's.

    The reference of every client is the global adapter, and the base model is an adapter of zeros: one more adapter on
    the same base, never one more model.
    """

    def __init__(self, resident: Learner, arena: Arena, start: Adapter) -> None:
        import torch

        self.device = arena.values.device
        self._rows: Sequence[int] | None = None
        self._count = arena.values.shape[0]
        self._layers = resident.lora_layers
        self._own: dict[str, tuple[Tensor, Tensor]] = {}
        self._teachers: dict[Source, dict[str, tuple[Tensor, Tensor]]] = {"reference": {}, "base": {}}
        self._now: dict[str, tuple[Tensor, Tensor]] = {}
        for layer, module in self._layers.items():
            names = [f"{layer}.{part}.weight" for part in ("lora_A", "lora_B")]
            a, b = (start[name].to(module.base_layer.weight)[None] for name in names)
            self._teachers["reference"][layer] = (a, b)
            self._teachers["base"][layer] = (torch.zeros_like(a), torch.zeros_like(b))
            own_a, own_b = (  # a factor that is not trained is everyone's
                arena.parameters.get(name, whole.expand(self._count, -1, -1))
                for name, whole in zip(names, (a, b), strict=True)
            )
            self._own[layer] = (own_a, own_b)

    def of(self, layer: str) -> tuple[Tensor, Tensor]:
        """Return a layer's present factors."""
        return self._now[layer]

    def use(self, source: Source, rows: Sequence[int]) -> None:
        """Put a source into effect: with ``"own"``, client i's sequences go through row ``rows[i]`` of the arena."""
        import torch

        if source != "own":
            self._now = self._teachers[source]
            return
        self._now = {}
        chosen = None if list(rows) == list(range(self._count)) else torch.tensor(rows, device=self.device)
        for layer, (a, b) in self._own.items():
            if chosen is not None:
                a, b = a.index_select(0, chosen), b.index_select(0, chosen)
            precision = self._layers[layer].base_layer.weight.dtype  # the arena's own numbers stay in fp32
            self._now[layer] = (a.to(precision), b.to(precision))
