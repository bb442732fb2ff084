"""Aggregate updates: ours sums in fp64 in client-id order, Flower's in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.measure import Result, cpu_seconds
from oblivion.aggregation.sums import mean_update
from oblivion.types import ClientUpdate

UPDATES, RANK, LAYERS = 8, 32, 16
LINEARS = ((2048, 2048), (2048, 512), (2048, 512), (2048, 2048), (2048, 8192), (2048, 8192), (8192, 2048))
"""The inputs and outputs of a layer of Llama 3.2 1B, of 22.5 million values with LoRA of rank 32."""


def run() -> Iterator[Result]:
    """Measure eight updates, and the best that a machine can do: one product in fp32 over updates in one buffer."""
    from flwr.server.strategy.aggregate import aggregate

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shapes = [shape for _ in range(LAYERS) for n, m in LINEARS for shape in ((RANK, n), (m, RANK))]
    updates = [
        ClientUpdate(
            client_id=f"client-{k}",
            round=1,
            delta={f"{i:03d}": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)},
            num_examples=10 + k,
            steps=1,
        )
        for k in range(UPDATES)
    ]
    results = [([tensor.numpy() for tensor in update.delta.values()], update.num_examples) for update in updates]
    # Flower comes before ours: once a large buffer was freed, the allocator has memory ready, for Flower as well.
    other_s = cpu_seconds(lambda: aggregate(results))
    for ours, other in zip(mean_update(updates).values(), aggregate(results), strict=True):
        np.testing.assert_allclose(ours.numpy(), other, atol=1e-6)
    size = sum(tensor.numel() for tensor in updates[0].delta.values())
    case = f"{UPDATES} updates of {size / 1e6:.1f} M values"
    ours = cpu_seconds(lambda: mean_update(updates))
    yield Result("aggregation", case, ours, "Flower's aggregate, by itself", other_s)
    yield Result("aggregation", case, ours, "Flower's aggregate, after ours", cpu_seconds(lambda: aggregate(results)))
    buffer = torch.stack([torch.cat([tensor.flatten() for tensor in update.delta.values()]) for update in updates])
    weights = torch.tensor([float(update.num_examples) for update in updates])
    yield Result("aggregation", case, ours, "one fp32 product", cpu_seconds(lambda: (weights / weights.sum()) @ buffer))
