"""No sequence of gradients takes a visit further than `reach` says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from oblivion.config import PrivacyConfig, TrainConfig
from oblivion.seeding import torch_generator
from oblivion.training.local import make_optimizer
from oblivion.training.reach import reach

NONE = PrivacyConfig()
SIZE, ROWS = 50, 40


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"batch_size": 8, "local_epochs": 4, "learning_rate": 0.01, **changes})


def visited(train: TrainConfig, gradients: list[torch.Tensor], start: torch.Tensor) -> float:
    """How far the optimizer goes with these gradients."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = make_optimizer([parameter], train)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        if train.optimizer == "sgd":
            torch.nn.utils.clip_grad_norm_([parameter], train.clip_norm)
        optimizer.step()
    return float((parameter.detach() - start).double().norm())


def test_by_hand() -> None:
    # one row: one step of AdamW, which moves each of four values by the rate
    one = settings(local_epochs=1)
    assert reach(one, NONE, 1, 4, 0.0) == pytest.approx(0.01 * 2, rel=2e-3)
    # SGD: 5 batches x 4 passes, each by the rate times a gradient that is cut to 1, and a correction of 0.5
    sgd = settings(optimizer="sgd")
    assert reach(sgd, NONE, ROWS, 4, 0.0, correction=0.5) == pytest.approx(20 * 0.01 * 1.5, rel=2e-3)
    # decay takes at most 20 times 1 % of 1 % off a start of length 3
    assert reach(settings(weight_decay=1.0, optimizer="sgd"), NONE, ROWS, 4, 3.0) == pytest.approx(
        0.2 + 0.2 * 3.2, rel=2e-3
    )
    assert math.isinf(reach(settings(weight_decay=200.0), NONE, 1, 4, 0.0)), "nothing can be said"


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("growth", [0.7, 1.0, 1.11, 1.6, 30.0])
def test_no_gradients_lead_further(optimizer: str, decay: float, growth: float) -> None:
    """Gradients of one sign that grow are the worst for AdamW; random ones and shrinking ones go less far."""
    train = settings(optimizer=optimizer, weight_decay=decay)
    generator = torch_generator(0, "reach", 1)
    start = torch.randn(SIZE, generator=generator)
    most = reach(train, NONE, ROWS, SIZE, float(start.norm()))
    same = [torch.full((SIZE,), growth**t) for t in range(20)]
    drawn = [growth**t * torch.randn(SIZE, generator=generator) for t in range(20)]
    assert visited(train, drawn, start) <= visited(train, same, start) * 1.5 <= most * 1.5
    assert visited(train, same, start) <= most
    if growth == 1.0 and not decay:
        assert visited(train, same, start) >= 0.9 * most, "and it is no empty promise"


def test_noise_on_clipped_sums_is_within_reach_of_sgd() -> None:
    privacy, train = PrivacyConfig(unit="sample", noise_multiplier=2.0), settings(optimizer="sgd", clip_norm=1e9)
    generator = torch_generator(0, "reach", 2)
    sums = torch.full((SIZE,), ROWS / SIZE**0.5)  # every sample drawn, and all of one mind
    steps = [(sums + 2.0 * torch.randn(SIZE, generator=generator)) / 8 for _ in range(20)]
    assert visited(train, steps, torch.zeros(SIZE)) <= reach(train, privacy, ROWS, SIZE, 0.0)
