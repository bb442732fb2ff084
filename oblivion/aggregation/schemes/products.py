"""Compute with products of LoRA factors, without the dense matrices that they stand for.

A layer's change is ``P = B A``, with A of shape (rank, in) and B of shape (out, rank), before the factor alpha /
rank. A weighted sum of products is one product of stacked factors: ``sum_k w_k B_k A_k = [w_1 B_1, w_2 B_2, ...]
[A_1; A_2; ...]``. Everything here is computed in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from oblivion.models.factors import factor_of, start_of
from oblivion.types import Adapter, ClientUpdate, GlobalState

if TYPE_CHECKING:
    from torch import Tensor

Pair: TypeAlias = "tuple[Tensor, Tensor]"
"""A of shape (rank, in) and B of shape (out, rank), fp64."""


def layers(adapter: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return the names of A and B of every layer, sorted."""
    return [(name, name.replace(".lora_A", ".lora_B")) for name in sorted(adapter) if factor_of(name) == "A"]


def client_pair(state: GlobalState, update: ClientUpdate, ranks: Mapping[str, int], layer: tuple[str, str]) -> Pair:
    """Return a client's own A and B of one layer after its visit."""
    import torch

    names = dict.fromkeys(layer)
    start = start_of({name: state.adapter[name] for name in names}, ranks, update.client_id)
    a, b = (start[name].to(torch.float64) + update.delta[name].to(torch.float64) for name in layer)
    return a, b


def pair(adapter: Mapping[str, Tensor], layer: tuple[str, str]) -> Pair | None:
    """Return A and B of one layer in fp64; None if there are none."""
    import torch

    if layer[0] not in adapter:
        return None
    return adapter[layer[0]].to(torch.float64), adapter[layer[1]].to(torch.float64)


def stacked(weighted: Iterable[tuple[float, Pair | None]]) -> Pair | None:
    """Return the factors of ``sum_k w_k B_k A_k``, of rank ``sum_k r_k``; None if there is nothing to sum."""
    import torch

    parts = [(weight, one) for weight, one in weighted if one is not None and weight]
    if not parts:
        return None
    a = torch.cat([a for _, (a, _) in parts])
    b = torch.cat([weight * b for weight, (_, b) in parts], dim=1)
    return a, b


def bounded(factors: Pair) -> Pair:
    """Return the same product with factors of rank at most min(in, out), which cost no more than the matrix.

    This is exact but for rounding: where the rank has reached the bound, one factor is the product and the other the
    identity.
    """
    import torch

    a, b = factors
    wide, tall = a.shape[1], b.shape[0]
    if a.shape[0] < min(wide, tall):
        return factors
    product = b @ a
    if wide <= tall:
        return torch.eye(wide, dtype=product.dtype), product
    return product, torch.eye(tall, dtype=product.dtype)


def squared_norm(factors: Pair | None) -> float:
    """Return ``||B A||_F^2 = tr(B'B A A')``."""
    if factors is None:
        return 0.0
    a, b = factors
    return max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))


def best_of_rank(factors: Pair, rank: int) -> Pair:
    """Return a product's best approximation of at most some rank, in the Frobenius norm (Eckart and Young, 1936).

    It takes QR of both factors and an SVD of their small core: ``O((in + out) R^2)`` for stacked factors of rank R.

    Parameters
    ----------
    factors : tuple of Tensor
        A of shape (R, in) and B of shape (out, R).
    rank : int
        The rank of what is returned; it is filled up with zeros where the product has less.

    Returns
    -------
    tuple of Tensor
        ``A = sqrt(S) V'`` (rank, in) and ``B = U sqrt(S)`` (out, rank), singular values falling. The largest entry of
        each column of U is positive, so that the same product gives the same factors. Singular values that are rounding
        are zero in both.
    """
    import torch

    a, b = factors
    left, left_core = torch.linalg.qr(b)
    right, right_core = torch.linalg.qr(a.T)
    u, s, vt = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    rounding = max(a.shape[1], b.shape[0]) * torch.finfo(s.dtype).eps
    kept = min(rank, int((s > rounding * s.max()).sum()))
    u, root, vt = left @ u[:, :kept], s[:kept].sqrt(), vt[:kept] @ right.T
    largest = u.abs().argmax(dim=0)
    sign = torch.where(u[largest, torch.arange(kept)] < 0, -1.0, 1.0).to(u.dtype)
    new_a, new_b = torch.zeros(rank, a.shape[1], dtype=a.dtype), torch.zeros(b.shape[0], rank, dtype=b.dtype)
    new_a[:kept] = (sign * root)[:, None] * vt
    new_b[:, :kept] = u * (sign * root)
    return new_a, new_b


def as_adapter(state: GlobalState) -> Adapter:
    """Return adapter and residual as one adapter of a larger rank, the same for every layer.

    It is for a model with the same alpha / rank, that is, with an alpha that is larger by as much. Without a residual
    it is the adapter itself.
    """
    import torch

    if not state.residual:
        return state.adapter
    pairs = {}
    for layer in layers(state.adapter):
        both = [
            (state.adapter[layer[0]], state.adapter[layer[1]]),
            (state.residual[layer[0]], state.residual[layer[1]]),
        ]
        pairs[layer] = torch.cat([a for a, _ in both]), torch.cat([b for _, b in both], dim=1)
    rank = max(len(a) for a, _ in pairs.values())
    tensors = {}
    for (name_a, name_b), (a, b) in pairs.items():
        missing = rank - len(a)
        tensors[name_a] = torch.nn.functional.pad(a, (0, 0, 0, missing))
        tensors[name_b] = torch.nn.functional.pad(b, (0, missing))
    return dict(sorted(tensors.items()))


def product_error(
    before: GlobalState, updates: Sequence[ClientUpdate], after: GlobalState, ranks: Mapping[str, int]
) -> float:
    """Measure how far a round is from the true mean of the clients' products.

    Parameters
    ----------
    before, after : GlobalState
        The states before and after the round.
    updates : sequence of ClientUpdate
        Its contributions; what a client did not train counts as unchanged.
    ranks : mapping of str to int
        The ranks of the clients that have one of their own.

    Returns
    -------
    float
        ``||M - T||_F / ||T||_F`` over all layers, with M the change of adapter and residual together that the round
        made, and ``T = sum_k (n_k / n) B_k A_k - B A`` the mean change of the clients' products; 0 where T is 0. Below
        about 1e-6 it is rounding.
    """
    total = float(sum(update.num_examples for update in updates))
    error, change = 0.0, 0.0
    by_id = sorted(updates, key=lambda update: update.client_id)
    whole = [_filled(update, before.adapter) for update in by_id]
    for layer in layers(before.adapter):
        mean = [(u.num_examples / total, client_pair(before, u, ranks, layer)) for u in whole]
        made = [(1.0, pair(after.adapter, layer)), (1.0, pair(after.residual, layer))]
        made += [(-1.0, pair(before.residual, layer))]
        error += squared_norm(stacked([*made, *((-weight, one) for weight, one in mean)]))
        change += squared_norm(stacked([*mean, (-1.0, pair(before.adapter, layer))]))
    return math.sqrt(error / change) if change > 0 else 0.0


def _filled(update: ClientUpdate, adapter: Adapter) -> ClientUpdate:
    from dataclasses import replace

    import torch

    delta = {n: update.delta[n] if n in update.delta else torch.zeros_like(t) for n, t in adapter.items()}
    return replace(update, delta=delta)
