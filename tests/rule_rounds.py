"""Made-up rounds for the tests of server rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from oblivion.aggregation.rule import RuleState
from oblivion.types import Adapter, ClientUpdate, GlobalState, RoundInfo

SHAPES = {"layer.lora_A": (4, 3), "layer.lora_B": (2, 4)}
SIZES = (3, 40, 17, 1, 128, 9, 60)


def info(round: int = 1, rounds: int = 3, clients: int = 0) -> RoundInfo:
    population = tuple(f"client-{k}" for k in range(clients))
    return RoundInfo(branch="main", round=round, rounds=rounds, population=population, seed=0)


def update(client: int, delta: Adapter, num_examples: int = 1, **more: Any) -> ClientUpdate:
    fields = {"round": 1, "steps": 1, **more}
    return ClientUpdate(client_id=f"client-{client}", delta=delta, num_examples=num_examples, **fields)


def one(value: float, *more: float) -> Adapter:
    return {"w": torch.tensor([value, *more], dtype=torch.float32)}


def scalars(*values: float) -> list[ClientUpdate]:
    """One client with one example for each value."""
    return [update(client, one(value)) for client, value in enumerate(values)]


def random_adapter(generator: np.random.Generator, scale: float = 1.0) -> Adapter:
    return {n: torch.from_numpy(generator.normal(scale=scale, size=s).astype(np.float32)) for n, s in SHAPES.items()}


def random_round(generator: np.random.Generator, round: int = 1) -> list[ClientUpdate]:
    """Seven clients of unequal size."""
    return [update(k, random_adapter(generator, 0.1), size, round=round, steps=k + 1) for k, size in enumerate(SIZES)]


def start(generator: np.random.Generator) -> GlobalState:
    return GlobalState(adapter=random_adapter(generator))


def arrays(adapter: Adapter) -> list[np.ndarray]:
    return [tensor.numpy().astype(np.float64) for tensor in adapter.values()]


def flat(adapter: Adapter) -> np.ndarray:
    """All tensors as one vector, fp64."""
    return np.concatenate([array.ravel() for array in arrays(adapter)])


def matrix(updates: Sequence[ClientUpdate]) -> np.ndarray:
    """One row per client."""
    return np.stack([flat(update.delta) for update in updates])


def value(rule: Any, updates: Sequence[ClientUpdate], at: float = 0.0) -> list[float]:
    """Where a rule takes an adapter of one tensor in its first round."""
    state = GlobalState(adapter={"w": torch.full_like(updates[0].delta["w"], at)})
    after, _ = rule.step(updates, state, rule.init(state), info())
    return list(after.adapter["w"].tolist())


def check_purity(rule: Any, updates: Sequence[ClientUpdate], state: GlobalState, told: RoundInfo) -> None:
    """Nothing that comes in is changed, nothing that comes out shares memory with it, all of it can be stored."""

    def tensors(*groups: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        return [tensor for group in groups for tensor in group.values()]

    rule_state: RuleState = rule.init(state)
    inputs = tensors(state.adapter, rule_state, *(u.delta for u in updates))
    before = [tensor.clone() for tensor in inputs]
    after, after_rule = rule.step(updates, state, rule_state, told)
    assert all(torch.equal(one, two) for one, two in zip(inputs, before, strict=True))
    assert after.residual is state.residual
    assert list(after.adapter) == sorted(state.adapter)
    assert any(not torch.equal(after.adapter[name], tensor) for name, tensor in state.adapter.items())
    assert set(after_rule) >= set(rule_state)
    places = {tensor.data_ptr() for tensor in inputs}
    for tensor in tensors(after.adapter, after_rule):
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor.data_ptr() not in places
    nothing, nothing_new = rule.step([], state, rule_state, told)
    assert nothing is state
    assert nothing_new is rule_state
