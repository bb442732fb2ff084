"""DP-SGD on one client (Abadi et al., 2016, "Deep learning with differential privacy", Algorithm 1), through Opacus.

The unit of privacy is one of the client's samples. Every step draws a Poisson sample of the rows, each with
probability ``q = batch / rows``; each drawn row's gradient of the adapter is clipped to an L2 norm of C; Gaussian
noise of ``sigma C`` is added to their sum, and the result is divided by the *expected* batch ``q rows``, whatever was
drawn. A draw without rows is a step of noise alone. Per-sample gradients come from Opacus' hooks on the LoRA factors,
clipping and noise from its optimizer.

Draws and noise come from a secret and not from the run's seed: what can be computed again protects nobody. What comes
after the noise (FedProx' term, a control variate) uses nothing of the samples.

Deviations: a row's loss is the mean over its own tokens, since a mean over all tokens of the batch would let one row
change what the others count. Clients are trained one by one, not in fused cohorts. No loss and no number of tokens is
reported: they would say more than the noise allows. The noise is floating point (Mironov, 2012, shows what that can
leak) from a generator that is seeded by the secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oblivion.config import PrivacyConfig, TrainConfig
from oblivion.models.factors import factor_of
from oblivion.models.forward import answer_logits
from oblivion.models.resident import ResidentModel
from oblivion.objectives.terms import Objective
from oblivion.seeding import numpy_generator, torch_generator
from oblivion.training.accountant import sampling_rate
from oblivion.training.batches import collate, steps_per_visit
from oblivion.training.local import LocalTask, add_correction, add_proximal_gradient, make_optimizer
from oblivion.types import Adapter, ClientUpdate, RoundInfo

if TYPE_CHECKING:
    from oblivion.data.tokens import TokenRow


def train_client_privately(
    resident: ResidentModel,
    start: Adapter,
    task: LocalTask,
    objective: Objective,
    settings: TrainConfig,
    info: RoundInfo,
    privacy: PrivacyConfig,
    secret: int,
) -> ClientUpdate:
    """Train one client from the global adapter, with noise.

    Parameters
    ----------
    resident, start, task, objective, settings, info
        As in `oblivion.training.local.train_client`; `settings.clip_norm` is not used, since every row's gradient is
        clipped.
    privacy : PrivacyConfig
        Clip norm and noise multiplier.
    secret : int
        What draws and noise come from; nobody but the client should know it.

    Returns
    -------
    ClientUpdate
        Without loss and tokens.
    """
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    start = task.start or start
    resident.write(start)
    names = [name for name in resident.parameters if factor_of(name) in task.factors]
    parameters = [resident.parameters[name] for name in names]
    anchor = [start[name].to(parameters[0].device) for name in names]
    correction = [task.correction[name].to(parameters[0]) for name in names] if task.correction else []
    rows = task.rows["retain"]
    rate = sampling_rate(len(rows), settings.batch_size)
    steps = steps_per_visit(len(rows), settings.batch_size, settings.local_epochs)
    draws = numpy_generator(secret, "poisson", info.round, task.client_id)
    with resident.training(settings.gradient_checkpointing, names):
        hooked = GradSampleModule(resident.model, loss_reduction="sum")
        optimizer = DPOptimizer(
            make_optimizer(parameters, settings),
            noise_multiplier=privacy.noise_multiplier,
            max_grad_norm=privacy.clip_norm,
            expected_batch_size=rate * len(rows),
            generator=torch_generator(secret, "noise", info.round, task.client_id),
        )
        try:
            for _ in range(steps):
                drawn = [row for row, chance in zip(rows, draws.random(len(rows)), strict=True) if chance < rate]
                optimizer.zero_grad()
                _backward(resident, drawn, objective, parameters)
                optimizer.pre_step()
                if task.proximal_mu:
                    add_proximal_gradient(parameters, anchor, task.proximal_mu)
                if correction:
                    add_correction(parameters, correction)
                optimizer.original_optimizer.step()
        finally:
            optimizer.zero_grad()
            hooked.remove_hooks()
            _clean(resident)
    after = resident.read()
    delta = {name: after[name] - start[name] for name in names}
    return ClientUpdate(
        client_id=task.client_id,
        round=info.round,
        delta=delta,
        num_examples=len(rows),
        steps=steps,
        metrics={"skipped": float(task.skipped)},
    )


def _clean(resident: ResidentModel) -> None:
    """Take from the parameters what Opacus keeps on them."""
    for parameter in resident.parameters.values():
        for attribute in ("grad_sample", "summed_grad", "_forward_counter"):
            if hasattr(parameter, attribute):
                delattr(parameter, attribute)
        parameter.grad = None


def _backward(
    resident: ResidentModel, drawn: Sequence[TokenRow], objective: Objective, parameters: Sequence[Any]
) -> None:
    """Per-sample gradients of every row's own mean loss, as `grad_sample` of the parameters."""
    import torch

    if not drawn:
        for parameter in parameters:
            parameter.grad_sample = torch.zeros((0, *parameter.shape), device=parameter.device)
        return
    batch = collate(drawn, resident.tokenizer.pad_token_id, parameters[0].device)
    logits = answer_logits(resident.model, batch.ids, batch.answers.rows, batch.positions)
    (term,) = objective.loss({"retain": logits}, {"retain": batch.answers}, {}).values()
    (term.weight * term.sums / term.counts).sum().backward()  # type: ignore[no-untyped-call]
