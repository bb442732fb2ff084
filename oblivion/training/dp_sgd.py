"""DP-SGD: a client's visit that hides each of its samples (Abadi et al., 2016, Algorithm 1).

At every step each sample is drawn with probability ``q = B / n`` on its own; the gradient of each drawn sample is
scaled to an L2 norm of at most C; the step's gradient is ``(sum_i clipped_i + sigma C z) / B``, z standard normal, with
the expected batch size B, whatever was drawn (an empty batch is noise alone). Optimizer, proximal term and correction
come after that and see nothing else of the data.

Gradients of single samples come from the fused LoRA layers (`oblivion.training.lora_linear`), where every sample gets
an adapter of its own; Opacus' hooks give the same, and do not go together with gradient checkpointing.

Deviations: AdamW may take the place of SGD (post-processing); the gradients are those of the adapter alone; a sample's
loss is the mean over its own tokens, where ordinary training takes the mean over the batch's tokens, which mixes
samples; ``train.clip-norm`` is not used. The number of steps is fixed by n: as many as the epochs have without privacy.

What is sent back besides the update is n and the number of steps, which follow from the client's number of samples and
from the settings; neither says what was drawn. Loss and tokens would, and are left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from oblivion.config import PrivacyConfig, TrainConfig
from oblivion.errors import ConfigError
from oblivion.objectives.terms import CombinesGradients, Objective, Stateful
from oblivion.privacy.noise import NoiseStream, derive_key
from oblivion.tasks.task import Learner, Row
from oblivion.training.fused import fusible
from oblivion.training.local import LocalTask, LocalVisit
from oblivion.types import Adapter, ClientUpdate, RoundInfo
from oblivion.visit_steps import sampling_rate, steps_per_visit

if TYPE_CHECKING:
    from torch import Tensor


def poisson_batches(rows: Sequence[Row], samples: int, rate: float, steps: int, key: bytes) -> Iterator[list[Row]]:
    """Yield a batch for each step; every sample is in it with probability `rate`, independently of all else.

    Parameters
    ----------
    rows : sequence of Row
        The rows that can be trained on.
    samples : int
        All of the client's samples; those without a row are drawn as well, and change nothing.
    rate : float
        q.
    steps : int
        How many batches.
    key : bytes
        Secret; it decides the draws.
    """
    stream = NoiseStream(derive_key(key, "poisson"))
    for _ in range(steps):
        drawn = (stream.uniform(samples) < rate).tolist()
        yield [row for row, taken in zip(rows, drawn, strict=False) if taken]


def train_client_privately(
    resident: Learner,
    start: Adapter,
    task: LocalTask,
    objective: Objective,
    settings: TrainConfig,
    privacy: PrivacyConfig,
    info: RoundInfo,
) -> ClientUpdate:
    """Train one client from the global adapter so that the update hides each of its samples.

    Parameters
    ----------
    resident, start, objective, settings, info
        As in `oblivion.training.local.train_client`; `settings` gives B, and n gives the number of steps.
    task : LocalTask
        The client, its rows, and the secret `noise_key` of this visit.
    privacy : PrivacyConfig
        sigma and C.

    Returns
    -------
    ClientUpdate
        ``delta``, n and the number of steps; without metrics.

    Raises
    ------
    ValueError
        If the visit has no secret.
    ConfigError
        If the objective is not made of the client's own rows and logits alone.
    """
    _check(objective)
    visit = LocalVisit(resident, start, task, settings)
    trained = visit.trained
    samples = len(task.leading) + task.skipped
    rate = sampling_rate(samples, settings.batch_size)
    steps = steps_per_visit(samples, settings.batch_size, settings.local_epochs)
    noise = NoiseStream(derive_key(task.noise_key, "noise"))
    deviation = privacy.noise_multiplier * privacy.clip_norm
    with resident.training(settings.gradient_checkpointing, trained):
        for rows in poisson_batches(task.leading, samples, rate, steps, task.noise_key):
            total = clipped_sum(resident, trained, rows, objective, settings, privacy.clip_norm)
            extra = noise.gaussian_like(trained, deviation)
            for name, parameter in trained.items():
                parameter.grad = ((total[name] + extra[name].to(total[name])) / (rate * samples)).to(parameter.dtype)
            visit.step()
    return ClientUpdate(
        client_id=task.client_id, round=info.round, delta=visit.delta(), num_examples=samples, steps=steps
    )


def _check(objective: Objective) -> None:
    """Refuse what would take more from the rows than one clipped gradient of each."""
    name = type(objective).__name__
    if beyond := sorted(objective.needs - {"retain", "retain.logits"}):
        raise ConfigError(
            f"{name} needs {', '.join(beyond)}, and with privacy.unit = 'sample' each row's gradient is made from its "
            "own logits alone; take the objective 'lm'"
        )
    if isinstance(objective, Stateful | CombinesGradients):
        what = "keeps a state that follows from the rows" if isinstance(objective, Stateful) else "combines gradients"
        raise ConfigError(f"{name} {what}, which privacy.unit = 'sample' does not allow; take the objective 'lm'")


def clipped_sum(
    resident: Learner,
    trained: dict[str, Any],
    rows: Sequence[Row],
    objective: Objective,
    settings: TrainConfig,
    bound: float,
) -> dict[str, Tensor]:
    """Sum the gradients of samples, each scaled down to an L2 norm of at most `bound`.

    Parameters
    ----------
    resident, objective
        The model with its present adapter, and the loss.
    trained : dict of str to Parameter
        The tensors that gradients are taken of; the norm is over all of them together.
    rows : sequence of Row
        The samples; there may be none.
    settings : TrainConfig
        At most ``batch_size / accumulation`` samples are in memory at a time, however many were drawn.
    bound : float
        C.

    Returns
    -------
    dict of str to Tensor
        The sum of each tensor, in fp64.
    """
    import torch

    total = {name: torch.zeros_like(p, dtype=torch.float64, requires_grad=False) for name, p in trained.items()}
    together = max(1, settings.batch_size // settings.accumulation) if fusible(resident) is None else 1
    for place in range(0, len(rows), together):
        some = rows[place : place + together]
        gradients = _per_sample(resident, trained, some, objective)
        squares = torch.stack([g.double().flatten(1).square().sum(1) for g in gradients.values()]).sum(0)
        factors = (bound / squares.sqrt()).clamp(max=1.0)  # without any gradient the quotient is infinite, so 1
        for name, gradient in gradients.items():
            total[name].add_(torch.tensordot(factors, gradient.double(), dims=1))
    return total


def _per_sample(
    resident: Learner, trained: dict[str, Any], rows: Sequence[Row], objective: Objective
) -> dict[str, Tensor]:
    """Compute the gradient of each sample's own mean loss, by tensor: (samples, *shape)."""
    import torch

    batch = resident.task.collate(rows, next(iter(trained.values())).device)
    split = _split(resident, trained, len(rows)) if len(rows) > 1 else contextlib.nullcontext(trained)
    with split as leaves:
        outputs = resident.task.forward(resident.model, batch, ("logits",))
        terms = objective.loss({"retain": outputs}, {"retain": batch.answers})
        loss = torch.stack([(term.weight * term.sums / term.counts).sum() for term in terms.values()]).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
    if leaves is trained:
        gradients = tuple(gradient[None] for gradient in gradients)
    return dict(zip(leaves, gradients, strict=True))


@contextlib.contextmanager
def _split(resident: Learner, trained: dict[str, Any], count: int) -> Iterator[dict[str, Tensor]]:
    """Give every sample an adapter of its own for a while, all with the present values: (samples, *shape) each."""
    from oblivion.training.lora_linear import through  # imported here, since it imports torch

    leaves = {name: p.detach().expand(count, -1, -1).clone().requires_grad_() for name, p in trained.items()}

    def factors(layer: str) -> tuple[Tensor, Tensor]:
        precision = resident.lora_layers[layer].base_layer.weight.dtype
        a, b = (
            leaves.get(name, resident.parameters[name].detach().expand(count, -1, -1)).to(precision)
            for name in (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight")
        )
        return a, b

    with through(resident.lora_layers, factors):
        yield leaves
