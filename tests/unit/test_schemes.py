"""LoRA schemes: by hand, against dense matrices in NumPy, in their limits, and what they refuse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rule_rounds import check_purity, info, update

from oblivion.aggregation import rule_of, scheme_of
from oblivion.aggregation.compatibility import check_factors, check_scheme
from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.rules.fedadam import FedAdam
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.aggregation.rules.fedavgm import FedAvgM
from oblivion.aggregation.rules.fednova import FedNova
from oblivion.aggregation.rules.geometric_median import GeometricMedian
from oblivion.aggregation.rules.krum import Krum
from oblivion.aggregation.rules.multi_krum import MultiKrum
from oblivion.aggregation.rules.scaffold import Scaffold
from oblivion.aggregation.schemes import schemes
from oblivion.aggregation.schemes.fedex import FedEx
from oblivion.aggregation.schemes.fedit import FedIT
from oblivion.aggregation.schemes.ffa import FFA
from oblivion.aggregation.schemes.flexlora import FlexLoRA
from oblivion.aggregation.schemes.flora import FLoRA
from oblivion.aggregation.schemes.products import (
    as_adapter,
    best_of_rank,
    bounded,
    product_error,
    squared_norm,
    stacked,
)
from oblivion.aggregation.schemes.rolora import RoLoRA
from oblivion.aggregation.sums import ordered
from oblivion.config import load_config
from oblivion.errors import ConfigError
from oblivion.models.factors import factor_of, only, start_of, truncated
from oblivion.types import Adapter, ClientUpdate, GlobalState

RANK = 2
SHAPES = {
    "x.lora_A.weight": (RANK, 7),
    "x.lora_B.weight": (5, RANK),
    "y.lora_A.weight": (RANK, 4),
    "y.lora_B.weight": (6, RANK),
}
EVERY: tuple[Any, ...] = (FedIT(), FFA(), RoLoRA(), FlexLoRA(), FLoRA(), FedEx())
IN_PRODUCTS: tuple[Any, ...] = (FlexLoRA(), FLoRA(), FedEx())
EXACT: tuple[Any, ...] = (FLoRA(), FedEx())


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(21)


def adapter(generator: np.random.Generator, scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(generator.normal(scale=scale, size=s).astype(np.float32)) for n, s in SHAPES.items()}


def clients(generator: np.random.Generator, count: int = 5, factors: Sequence[str] = ("A", "B")) -> list[ClientUpdate]:
    made = [only(adapter(generator, 0.3), factors) for _ in range(count)]  # type: ignore[arg-type]
    return [update(k, delta, (3, 40, 17, 1, 128)[k % 5], steps=k + 1) for k, delta in enumerate(made)]


def dense(tensors: Mapping[str, torch.Tensor], layer: str) -> np.ndarray:
    if f"{layer}.lora_A.weight" not in tensors:
        return np.zeros((SHAPES[f"{layer}.lora_B.weight"][0], SHAPES[f"{layer}.lora_A.weight"][1]))
    a, b = (tensors[f"{layer}.lora_{part}.weight"].double().numpy() for part in ("A", "B"))
    return np.asarray(b @ a)


def effective(state: GlobalState, layer: str) -> np.ndarray:
    return dense(state.adapter, layer) + dense(state.residual, layer)


def client_product(state: GlobalState, one: ClientUpdate, layer: str) -> np.ndarray:
    zero = {n: torch.zeros_like(t) for n, t in state.adapter.items()}
    return dense({n: state.adapter[n] + one.delta.get(n, zero[n]) for n in state.adapter}, layer)


def mean_product(state: GlobalState, updates: Sequence[ClientUpdate], layer: str) -> np.ndarray:
    total = sum(u.num_examples for u in updates)
    return np.asarray(sum(u.num_examples / total * client_product(state, u, layer) for u in updates))


def combined(
    scheme: Any, rule: Any, state: GlobalState, updates: Sequence[ClientUpdate], number: int = 1
) -> GlobalState:
    after, _ = scheme.combine(rule, updates, state, scheme.init(rule, state), info(number, clients=5))
    return after  # type: ignore[no-any-return]


def scalar(a: float, b: float) -> Adapter:
    return {"z.lora_A.weight": torch.tensor([[a]]), "z.lora_B.weight": torch.tensor([[b]])}


# By hand: scalar factors, two clients of equal weight: A = 1, 3 and B = 2, 6


ZERO = GlobalState(adapter=scalar(0.0, 0.0))
TWO = [update(0, scalar(1.0, 2.0)), update(1, scalar(3.0, 6.0))]


def product(state: GlobalState) -> tuple[float, float]:
    parts = []
    for tensors in (state.adapter, state.residual):
        a, b = tensors.get("z.lora_A.weight"), tensors.get("z.lora_B.weight")
        parts.append(0.0 if a is None or b is None else float(b @ a))
    return parts[0], parts[1]


def test_fedit_by_hand() -> None:
    # mean of products (2 + 18) / 2 = 10, product of means 2 * 4 = 8: the cross terms ((-1)(-2) + 1 * 2) / 2 are lost
    after = combined(FedIT(), FedAvg(), ZERO, TWO)
    assert product(after) == (8.0, 0.0)
    assert product_error(ZERO, TWO, after, {}) == pytest.approx(0.2)


def test_fedex_by_hand() -> None:
    after = combined(FedEx(), FedAvg(), ZERO, TWO)
    assert product(after) == (8.0, 2.0)
    assert product_error(ZERO, TWO, after, {}) == pytest.approx(0.0, abs=1e-7)


def test_flora_by_hand() -> None:
    after = combined(FLoRA(), FedAvg(), ZERO, TWO)
    assert product(after) == (0.0, 10.0)
    assert float(after.adapter["z.lora_B.weight"]) == 0 and float(after.adapter["z.lora_A.weight"]) != 0
    again = combined(FLoRA(), FedAvg(), after, TWO, number=2)  # from a: (a + 1) * 2 and (a + 3) * 6
    a = float(after.adapter["z.lora_A.weight"])
    assert product(again)[1] == pytest.approx(10 + ((a + 1) * 2 + (a + 3) * 6) / 2, rel=1e-6)


def test_flexlora_by_hand() -> None:
    after = combined(FlexLoRA(), FedAvg(), ZERO, TWO)
    assert product(after) == (pytest.approx(10.0), 0.0)
    assert [float(t) for t in after.adapter.values()] == pytest.approx([math.sqrt(10)] * 2), "sqrt(S) on both sides"


def test_ffa_and_rolora_by_hand() -> None:
    state = GlobalState(adapter=scalar(2.0, 1.0))
    after = combined(FFA(), FedAvg(), state, [update(0, only(scalar(0.0, 2.0), ("B",))), update(1, scalar(9.0, 6.0))])
    assert {n: float(t) for n, t in after.adapter.items()} == {"z.lora_A.weight": 2.0, "z.lora_B.weight": 5.0}
    odd, even = (combined(RoLoRA(), FedAvg(), state, TWO, number) for number in (1, 2))
    assert [float(t) for t in odd.adapter.values()] == [2.0, 5.0]
    assert [float(t) for t in even.adapter.values()] == [4.0, 1.0]


# Against dense matrices


@pytest.mark.parametrize("scheme", EXACT, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("rounds", [1, 4])
def test_the_exact_schemes_make_the_mean_of_the_products(
    generator: np.random.Generator, scheme: Any, rounds: int
) -> None:
    """Over four rounds the residual reaches min(in, out) and is kept as one matrix."""
    state = GlobalState(adapter=adapter(generator))
    for number in range(1, rounds + 1):
        updates = clients(generator)
        expected = {x: dense(state.residual, x) + mean_product(state, updates, x) for x in ("x", "y")}
        after = combined(scheme, FedAvg(), state, updates, number)
        for layer, target in expected.items():
            np.testing.assert_allclose(effective(after, layer), target, atol=2e-5)
            assert after.residual[f"{layer}.lora_A.weight"].shape[0] <= min(target.shape)
        assert product_error(state, updates, after, {}) < 1e-5
        state = after


def test_flexlora_is_the_truncated_dense_svd(generator: np.random.Generator) -> None:
    state, updates = GlobalState(adapter=adapter(generator)), clients(generator)
    after = combined(FlexLoRA(), FedAvg(), state, updates)
    for layer in ("x", "y"):
        u, s, vt = np.linalg.svd(mean_product(state, updates, layer), full_matrices=False)
        np.testing.assert_allclose(dense(after.adapter, layer), (u[:, :RANK] * s[:RANK]) @ vt[:RANK], atol=1e-5)
    lost, norm = 0.0, 0.0
    for layer in ("x", "y"):
        mean = mean_product(state, updates, layer)
        lost += float(np.square(dense(after.adapter, layer) - mean).sum())
        norm += float(np.square(mean - dense(state.adapter, layer)).sum())
    assert product_error(state, updates, after, {}) == pytest.approx(math.sqrt(lost / norm), rel=1e-4)


@pytest.mark.parametrize("number", [1, 2])
def test_rolora_and_ffa_lose_nothing(generator: np.random.Generator, number: int) -> None:
    state = GlobalState(adapter=adapter(generator))
    for scheme in (RoLoRA(), FFA()):
        updates = clients(generator, factors=scheme.trained(number))
        after = combined(scheme, FedAvg(), state, updates, number)
        for layer in ("x", "y"):
            np.testing.assert_allclose(dense(after.adapter, layer), mean_product(state, updates, layer), atol=1e-5)
        assert product_error(state, updates, after, {}) < 1e-5
    fedit = combined(FedIT(), FedAvg(), state, both := clients(generator))
    assert product_error(state, both, fedit, {}) > 0.01


@pytest.mark.parametrize(
    "rule",
    [FedAvg(learning_rate=0.5), FedNova(), Krum(), MultiKrum(), GeometricMedian()],
    ids=lambda r: type(r).__name__,
)
def test_the_weights_of_a_rule_are_those_of_its_own_step(generator: np.random.Generator, rule: Any) -> None:
    state, updates = GlobalState(adapter=adapter(generator)), clients(generator)
    weights = rule.weights(ordered(updates), info(clients=5))
    after, _ = rule.step(updates, state, rule.init(state), info(clients=5))
    for name, tensor in after.adapter.items():
        step = sum(w * u.delta[name].double() for w, u in zip(weights, ordered(updates), strict=True))
        torch.testing.assert_close(tensor.double(), state.adapter[name].double() + step, rtol=0, atol=1e-6)
    mixed = combined(FLoRA(), rule, state, updates)
    for layer in ("x", "y"):
        own = [w * client_product(state, u, layer) for w, u in zip(weights, ordered(updates), strict=True)]
        expected = (1 - sum(weights)) * dense(state.adapter, layer) + sum(own)
        np.testing.assert_allclose(effective(mixed, layer), expected, atol=2e-5)


# Frozen halves


@pytest.mark.parametrize("rule", [FedAvgM(), FedAdam(), Scaffold()], ids=lambda r: type(r).__name__)
def test_no_memory_moves_what_was_not_trained(generator: np.random.Generator, rule: Any) -> None:
    for scheme in (FFA(), RoLoRA()):
        state = GlobalState(adapter=adapter(generator))
        rule_state = scheme.init(rule, state)
        for number in (1, 2, 3, 4):
            updates = clients(generator, factors=scheme.trained(number))
            after, rule_state = scheme.combine(rule, updates, state, rule_state, info(number, clients=5))
            for name, tensor in state.adapter.items():
                moved = not torch.equal(after.adapter[name], tensor)
                assert moved == (factor_of(name) in scheme.trained(number)), (type(scheme).__name__, number, name)
            state = after


# Limits and properties


@pytest.mark.parametrize("scheme", EVERY, ids=lambda s: type(s).__name__)
def test_one_client_alone_is_taken_as_it_is(generator: np.random.Generator, scheme: Any) -> None:
    state = GlobalState(adapter=adapter(generator))
    (one,) = updates = clients(generator, 1, scheme.trained(1))
    after = combined(scheme, FedAvg(), state, updates)
    for layer in ("x", "y"):
        np.testing.assert_allclose(effective(after, layer), client_product(state, one, layer), atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.3], ids=["nothing changed", "clients of rank 1"])
def test_flexlora_keeps_the_directions_that_a_round_did_not_use(generator: np.random.Generator, scale: float) -> None:
    """A direction that is zero in A and in B at once would never have a gradient again."""
    at_start = {n: t if factor_of(n) == "A" else torch.zeros_like(t) for n, t in adapter(generator).items()}
    state = GlobalState(adapter=at_start)
    (one,) = [update(0, truncated(adapter(generator, scale), 1))]
    after = combined(FlexLoRA(ranks={"client-0": 1}), FedAvg(), state, [one])
    used = 1 if scale else 0
    for layer in ("x", "y"):
        a, b = (after.adapter[f"{layer}.lora_{part}.weight"] for part in ("A", "B"))
        assert all(row.norm() > 0.1 for row in a), "every direction can be trained"
        assert int(b.any(dim=0).sum()) == used, "and adds nothing yet"
        start = truncated(state.adapter, 1)
        expected = dense({n: start[n] + one.delta[n] for n in start}, layer)
        np.testing.assert_allclose(dense(after.adapter, layer), expected, atol=1e-6)
    again = combined(FlexLoRA(ranks={"client-0": 1}), FedAvg(), state, [one])
    assert all(torch.equal(t, after.adapter[n]) for n, t in again.adapter.items())
    later = combined(FlexLoRA(ranks={"client-0": 1}), FedAvg(), state, [one], number=2)
    assert not torch.equal(later.adapter["x.lora_A.weight"], after.adapter["x.lora_A.weight"]), "anew in every round"


@pytest.mark.parametrize("scheme", EVERY, ids=lambda s: type(s).__name__)
@given(order=st.permutations(range(5)), seed=st.integers(0, 2**16))
def test_the_order_of_arrival_changes_no_bit(scheme: Any, order: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    state, updates = GlobalState(adapter=adapter(generator)), clients(generator)
    one, other = (combined(scheme, FedAvg(), state, [updates[i] for i in places]) for places in (range(5), order))
    for a, b in ((one.adapter, other.adapter), (one.residual, other.residual)):
        assert list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("scheme", EVERY, ids=lambda s: type(s).__name__)
def test_nothing_that_comes_in_is_changed(generator: np.random.Generator, scheme: Any) -> None:
    state, rule = GlobalState(adapter=adapter(generator)), FedAvg()

    class Bound:
        def init(self, state: GlobalState) -> Any:
            return scheme.init(rule, state)

        def step(self, updates: Any, state: GlobalState, rule_state: Any, told: Any) -> Any:
            after, rule_state = scheme.combine(rule, updates, state, rule_state, told)
            if after is state:
                return after, rule_state
            same = {n: t.clone() if t is state.adapter[n] else t for n, t in after.adapter.items()}  # what was frozen
            return dataclasses.replace(after, adapter=same, residual=state.residual), rule_state

    check_purity(Bound(), clients(generator), state, info())


@given(seed=st.integers(0, 2**16), ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_stacking_bounding_and_norms_are_those_of_the_dense_sum(seed: int, ranks: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        (torch.randn(r, 5, generator=generator).double(), torch.randn(3, r, generator=generator).double())
        for r in ranks
    ]
    weights = torch.randn(len(ranks), generator=generator).double().tolist()
    expected = sum(w * (b @ a) for w, (a, b) in zip(weights, pairs, strict=True))
    found = stacked(zip(weights, pairs, strict=True))
    assert found is not None
    for a, b in (found, bounded(found)):
        torch.testing.assert_close(b @ a, expected)
    assert bounded(found)[0].shape[0] <= max(3, min(sum(ranks), 2))
    assert squared_norm(found) == pytest.approx(float(torch.as_tensor(expected).square().sum()), rel=1e-6, abs=1e-9)


def test_the_same_product_gives_the_same_factors_whatever_its_signs() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 6, generator=generator).double(), torch.randn(5, 3, generator=generator).double()
    one, other = best_of_rank((a, b), 2), best_of_rank((-a, -b), 2)
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x, y)
    filled = best_of_rank((a, b), 5)
    assert not filled[0][3:].any() and not filled[1][:, 3:].any()


def test_adapter_and_residual_as_one_adapter(generator: np.random.Generator) -> None:
    state = combined(FedEx(), FedAvg(), GlobalState(adapter=adapter(generator)), clients(generator))
    one = as_adapter(state)
    for layer in ("x", "y"):
        np.testing.assert_allclose(dense(one, layer), effective(state, layer), atol=1e-5)
    assert len({t.shape[0] for n, t in one.items() if factor_of(n) == "A"}) == 1, "one rank for all layers"
    plain = GlobalState(adapter=adapter(generator))
    assert as_adapter(plain) is plain.adapter


# Ranks


def test_a_client_of_a_lower_rank_begins_with_the_leading_part(generator: np.random.Generator) -> None:
    whole = adapter(generator)
    part = start_of(whole, {"client-1": 1}, "client-1")
    assert torch.equal(part["x.lora_A.weight"][0], whole["x.lora_A.weight"][0]) and not part["x.lora_A.weight"][1].any()
    assert torch.equal(part["x.lora_B.weight"][:, 0], whole["x.lora_B.weight"][:, 0])
    assert not part["x.lora_B.weight"][:, 1].any()
    assert start_of(whole, {"client-1": 1}, "client-11") is whole
    assert all(torch.equal(t, whole[n]) for n, t in truncated(whole, RANK).items())


@pytest.mark.parametrize("kind", [FlexLoRA, FLoRA])
def test_clients_of_different_ranks_count_with_what_they_have(generator: np.random.Generator, kind: Any) -> None:
    ranks = {"client-1": 1, "client-3": 1}
    state, updates = GlobalState(adapter=adapter(generator)), clients(generator)
    cut = [dataclasses.replace(u, delta=truncated(u.delta, ranks.get(u.client_id, RANK))) for u in updates]
    after = combined(kind(ranks=ranks), FedAvg(), state, cut)
    total = sum(u.num_examples for u in cut)
    for layer in ("x", "y"):
        own = []
        for u in cut:
            start = truncated(state.adapter, ranks.get(u.client_id, RANK))
            own.append(u.num_examples / total * dense({n: start[n] + u.delta[n] for n in start}, layer))
        target = np.asarray(sum(own))
        if kind is FlexLoRA:
            a, s, vt = np.linalg.svd(target, full_matrices=False)
            target = (a[:, :RANK] * s[:RANK]) @ vt[:RANK]
        np.testing.assert_allclose(effective(after, layer), target, atol=2e-5)
    if kind is FLoRA:
        assert product_error(state, cut, after, ranks) < 1e-5


# What is refused


def checked(**settings: Any) -> None:
    config = load_config(None, {k.replace("__", "."): v for k, v in settings.items()})
    check_scheme(rule_of(config), scheme_of(config), config)


PRODUCT_RULES = {"fedavg", "fedprox", "fednova", "krum", "multi_krum", "geometric_median", "clipped_mean"}


@pytest.mark.parametrize("scheme", sorted(schemes.names()))
@pytest.mark.parametrize("rule", sorted({*aggregators.names()} - {"flower"}))
def test_products_take_weighted_sums_alone_and_the_other_schemes_every_rule(scheme: str, rule: str) -> None:
    if scheme in ("flexlora", "flora", "fedex") and rule not in PRODUCT_RULES:
        with pytest.raises(
            ConfigError,
            match=rf"'{rule}' cannot be used with lora.scheme = '{scheme}': .* clipped_mean, fedavg, fednova",
        ):
            checked(lora__scheme=scheme, federation__aggregator=rule)
    else:
        checked(lora__scheme=scheme, federation__aggregator=rule)


def test_what_a_flower_strategy_keeps_cannot_be_told_apart_by_factor() -> None:
    flower = {"federation__aggregator": "flower", "federation__parameters__strategy": "FedAdam"}
    with pytest.raises(ConfigError, match=r"'flower' cannot be used with lora\.scheme = 'rolora'"):
        checked(lora__scheme="rolora", **flower)
    checked(lora__scheme="ffa", **flower)


@pytest.mark.parametrize("scheme", ["fedit", "ffa", "rolora", "fedex"])
def test_ranks_that_a_scheme_cannot_mix_are_refused(scheme: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"federation.ranks.client-3 = 4, but lora.scheme = '{scheme}'.*flexlora, flora"
    ):
        checked(lora__scheme=scheme, federation__ranks={"client-3": 4})
    checked(lora__scheme=scheme, federation__ranks={"client-3": 16})
    checked(lora__scheme="flexlora", federation__ranks={"client-3": 4})


@pytest.mark.parametrize("name", sorted(schemes.names()))
def test_an_adapter_without_factors_is_refused_by_every_scheme_that_works_on_them(name: str) -> None:
    scheme = schemes.get(name)()
    check_factors(scheme, name, ["x.lora_A.weight", "x.lora_B.weight"])
    if name == "fedit":
        check_factors(scheme, name, ["bias", "weight"])
    else:
        with pytest.raises(ConfigError, match=rf"'{name}' combines the LoRA factors .* 'bias' is neither; .*: fedit$"):
            check_factors(scheme, name, ["x.lora_A.weight", "weight", "bias"])


@pytest.mark.parametrize("scheme", sorted(schemes.names()))
def test_a_residual_is_not_folded_into_weights_that_would_round_it_away(scheme: str) -> None:
    if scheme in ("flora", "fedex"):
        with pytest.raises(ConfigError, match=rf"'bfloat16', but lora.scheme = '{scheme}' .* model.dtype = 'float32'"):
            checked(lora__scheme=scheme, model__dtype="bfloat16")
    else:
        checked(lora__scheme=scheme, model__dtype="bfloat16")
    checked(lora__scheme=scheme, model__dtype="float32")


@pytest.mark.parametrize("ranks", [{"client-3": 0}, {"client-3": 17}, {"": 2}])
def test_ranks_that_no_client_can_have_are_refused(ranks: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="ranks"):
        load_config(None, {"federation.ranks": ranks})
