"""The gate: no malformed update passes, and none changes what the others give."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.aggregation.gate import FOR_OTHERS, Gate, GateState, limited, total_norm, update_norm
from oblivion.aggregation.rules.fedadam import FedAdam
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.errors import ConfigError
from oblivion.types import ClientUpdate, GlobalState, RoundInfo

SHAPES = {"x.lora_A": (2, 3), "x.lora_B": (4, 2), "y.lora_A": (1, 3), "y.lora_B": (3, 1)}
REFERENCE = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
GATE = Gate(REFERENCE, max_norm=10.0, fingerprint="code-1")
ROUND = 3
ASKED = {f"client-{k}": 50 for k in range(5)}
BAD = "client-2"


def good(client: str, seed: int = 0) -> ClientUpdate:
    generator = torch.Generator().manual_seed(seed)
    return ClientUpdate(
        client_id=client,
        round=ROUND,
        delta={name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()},
        num_examples=10 + seed,
        steps=5,
        fingerprint="code-1",
    )


REST = [good(f"client-{k}", k) for k in range(5) if f"client-{k}" != BAD]

Change = Callable[[ClientUpdate], ClientUpdate]


def field(**changes: Any) -> Change:
    return lambda update: dataclasses.replace(update, **changes)


def tensor(name: str, change: Callable[[torch.Tensor], Any]) -> Change:
    return lambda update: dataclasses.replace(update, delta={**update.delta, name: change(update.delta[name])})


def entry(name: str, index: int, value: float) -> Change:
    def change(old: torch.Tensor) -> torch.Tensor:
        new = old.clone()
        new.view(-1)[index] = value
        return new

    return tensor(name, change)


def names(change: Callable[[dict], Any]) -> Change:
    return lambda update: dataclasses.replace(update, delta=change(dict(update.delta)))


def without(name: str) -> Change:
    return names(lambda delta: {n: t for n, t in delta.items() if n != name})


def renamed(name: str, other: Any) -> Change:
    return names(lambda delta: {other if n == name else n: t for n, t in delta.items()})


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64]
DTYPES += [torch.uint8, torch.bool, torch.complex64]


def at_the_bound(delta: dict) -> dict:
    """An update whose norm is exactly 10: 6 and 8 in one tensor, zeros elsewhere."""
    return {n: torch.zeros_like(t) for n, t in delta.items()} | {"y.lora_A": torch.tensor([[6.0, 0.0, -8.0]])}


def table() -> list[tuple[str, Change, str]]:
    rows: list[tuple[str, Change, str]] = []
    for name in SHAPES:
        for index in (0, -1):
            for value in (math.nan, math.inf, -math.inf):
                rows.append((f"{value} in {name}[{index}]", entry(name, index, value), "not finite"))
            for value in (1e30, -1e30, 3.4e38, 10.1, -11.0):
                rows.append((f"{value} in {name}[{index}]", entry(name, index, value), "L2 norm"))
        rows.append((f"no {name}", without(name), "lacks 1 of 4"))
        for other in (name.upper(), name + " ", "../../etc/passwd", "", 7, "x.lora_a", f"base.{name}"):
            rows.append((f"{name} called {other!r}", renamed(name, other), "lacks 1 of 4"))
        for shape in ((), (1,), (1, 1), (1, 1, 1), (1000, 1000), (0,), (*SHAPES[name][::-1], 1)):
            rows.append((f"{name} of {shape}", tensor(name, lambda _, s=shape: torch.zeros(s)), "shape"))
        rows.append((f"{name} transposed", tensor(name, lambda t: t.T.contiguous()), "shape"))
        rows.append((f"{name} flat", tensor(name, lambda t: t.reshape(-1)), "shape"))
        rows.append((f"{name} one axis more", tensor(name, lambda t: t[None]), "shape"))
        for dtype in DTYPES:
            rows.append((f"{name} as {dtype}", tensor(name, lambda t, d=dtype: t.to(d)), "not float32"))
        rows.append((f"{name} sparse", tensor(name, lambda t: t.to_sparse()), "dense"))
        rows.append((f"{name} without data", tensor(name, lambda t: t.to("meta")), "dense"))
        for value in (None, 0.0, [[0.0]], "0", np.zeros(SHAPES[name], dtype=np.float32)):
            rows.append((f"{name} is a {type(value).__name__}", tensor(name, lambda _, v=value: v), "not a tensor"))
    rows += [
        ("an extra tensor", names(lambda d: {**d, "z": torch.zeros(1)}), "has 1 tensors that"),
        ("an extra empty tensor", names(lambda d: {**d, "": torch.zeros(0)}), "has 1 tensors that"),
        ("three extra names", names(lambda d: {**d, 1: 1, None: 2, "x": 3}), "has 3 tensors that"),
        ("no tensors", names(lambda _: {}), "lacks 4 of 4"),
        ("a list", names(lambda d: list(d.items())), "not a mapping"),
        ("nothing", names(lambda _: None), "not a mapping"),
        (
            "all large together",
            names(lambda d: {n: torch.full_like(t, 2.3) for n, t in d.items()}),
            "L2 norm",
        ),
        ("other code", field(fingerprint="code-2"), "other code"),
        ("no fingerprint", field(fingerprint=""), "other code"),
        ("fingerprint is None", field(fingerprint=None), "other code"),
    ]
    for count in (
        0,
        -1,
        -80,
        51,
        10**12,
        10.0,
        math.nan,
        math.inf,
        True,
        False,
        None,
        "10",
        np.int64(10),
        [10],
    ):
        rows.append((f"{count!r} examples", field(num_examples=count), "number of examples"))
    for steps in (-1, 1.0, True, None, "5", math.nan):
        rows.append((f"{steps!r} steps", field(steps=steps), "number of steps"))
    for round in (0, 2, 4, -3, 3.0, "3", None, True, 10**9):
        rows.append((f"round {round!r}", field(round=round), "not of round 3"))
    for client in (
        "client-9",
        "CLIENT-2",
        "client-2 ",
        "",
        "../client-2",
        None,
        2,
        b"client-2",
        ["client-2"],
        "a" * 9999,
    ):
        rows.append((f"client {str(client)[:20]!r}", field(client_id=client), "not asked"))
    return rows


TABLE = table()


def aggregate(updates: tuple[ClientUpdate, ...] | list[ClientUpdate], rule: FedAvg | FedAdam) -> list[torch.Tensor]:
    state = GlobalState(adapter=REFERENCE)
    info = RoundInfo(branch="main", round=ROUND, rounds=ROUND, population=tuple(ASKED), seed=0)
    after, rule_state = rule.step(updates, state, rule.init(state), info)
    return [*after.adapter.values(), *rule_state.values()]


def same_bits(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(one, two, strict=True)
    )


def test_the_table_is_long_enough_and_has_no_row_twice() -> None:
    assert len(TABLE) >= 200
    assert len({name for name, _, _ in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("name", "change", "reason"), TABLE, ids=[row[0] for row in TABLE])
def test_no_malformed_update_passes_and_none_changes_the_rest(name: str, change: Change, reason: str) -> None:
    bad = change(good(BAD, 2))
    said = GATE.check(bad, BAD, ROUND, ASKED[BAD])
    assert said is not None
    assert reason in said
    accepted, refused = GATE.admit([REST[3], bad, *REST[:3]], ASKED, ROUND)
    if bad.client_id not in list(ASKED):
        assert accepted == () and refused == dict.fromkeys(ASKED, FOR_OTHERS), "its host answers for nobody else"
        return
    assert list(accepted) == REST
    assert list(refused) == [BAD]
    assert reason in refused[BAD]
    assert [total_norm(update.norms) for update in accepted] == [update_norm(update.delta) for update in REST]
    for rule in (FedAvg(), FedAdam()):
        assert same_bits(aggregate(accepted, rule), aggregate(REST, rule))


def test_every_malformed_update_at_once() -> None:
    everything = [change(dataclasses.replace(good(BAD, 2))) for _, change, _ in TABLE]
    everything = [update for update in everything if update.client_id == BAD]
    accepted, refused = GATE.admit([*everything, *REST], ASKED, ROUND)
    assert list(accepted) == REST
    assert set(refused) == {BAD}
    assert same_bits(aggregate(accepted, FedAvg()), aggregate(REST, FedAvg()))


@pytest.mark.parametrize("second", [good(BAD, 2), good(BAD, 7), entry("x.lora_A", 0, math.nan)(good(BAD, 2))])
@pytest.mark.parametrize("first_place", [0, 2, 5])
def test_of_two_updates_of_one_client_neither_passes_in_any_order(second: ClientUpdate, first_place: int) -> None:
    updates = [second, *REST]
    updates.insert(first_place, good(BAD, 2))
    accepted, refused = GATE.admit(updates, ASKED, ROUND)
    assert list(accepted) == REST
    assert refused == {BAD: "more than one update claims to come from this client"}


def test_good_updates_pass_in_client_order_whatever_the_order_of_arrival() -> None:
    updates = [*REST[:2], good(BAD, 2), *REST[2:]]
    forward = GATE.admit(updates, ASKED, ROUND)
    backward = GATE.admit(updates[::-1], ASKED, ROUND)
    assert [u.client_id for u in forward[0]] == sorted(ASKED)
    assert [u.client_id for u in backward[0]] == sorted(ASKED)
    assert forward[1] == backward[1] == {}


SOUND = [
    field(num_examples=1),
    field(num_examples=50),
    names(lambda d: {n: torch.full_like(t, 1e-30) for n, t in d.items()}),
    field(metrics={"loss": 0.5}),
    names(lambda d: {n: d[n] for n in reversed(list(d))}),
    names(lambda d: {n: torch.zeros_like(t) for n, t in d.items()}),
    tensor("x.lora_A", lambda t: torch.zeros(3, 2).T),
    names(at_the_bound),
]


@pytest.mark.parametrize("change", SOUND)
def test_what_is_unusual_but_sound_passes(change: Change) -> None:
    assert GATE.check(change(good(BAD, 2)), BAD, ROUND, 50) is None


def test_reasons_carry_nothing_that_a_client_sent() -> None:
    secret = "my-secret-name"
    for change in (
        renamed("x.lora_A", secret),
        names(lambda d: {**d, secret: torch.zeros(1)}),
        field(client_id=secret.upper()),
        field(fingerprint=secret),
        field(num_examples=987654321),
        entry("x.lora_A", 0, 98765.0),
    ):
        _, refused = GATE.admit([change(good(BAD, 2))], ASKED, ROUND)
        text = repr(refused).lower()
        assert secret not in text
        assert "98765" not in text


def test_norm_by_hand_and_without_overflow() -> None:
    assert update_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[0.0, -4.0]])}) == 5.0
    assert update_norm({}) == 0.0
    assert update_norm({"a": torch.full((4,), 1e30)}) == pytest.approx(2e30, rel=1e-6)  # its squares overflow fp32


def test_the_state_grows_by_one_round_and_the_old_one_stays() -> None:
    before = GateState(norms=((("client-0", 1.0),),), trained=("AB",))
    after = before.after(2, GATE.admit(REST[:2], ASKED, ROUND)[0])
    assert before.norms == ((("client-0", 1.0),),)
    expected = tuple((u.client_id, update_norm(u.delta)) for u in REST[:2])
    assert after.norms == (before.norms[0], expected) and after.trained == ("AB", "AB")
    assert after.after(3, ()).norms == (*after.norms, ())


def test_the_state_can_forget_a_client() -> None:
    state = GateState(norms=((("client-0", 1.0), ("client-1", 2.0)), (("client-1", 3.0),), (("client-2", 4.0),)))
    assert state.without("client-1").norms == ((("client-0", 1.0),), (), (("client-2", 4.0),))
    assert state.without("client-7") == state


# The bound from history: by hand, and what does not move it


BOTH = ("A", "B")


def known(*rows: tuple[tuple[str, float], ...]) -> GateState:
    return GateState(norms=rows, trained=("AB",) * len(rows))


def test_the_bound_is_the_factor_times_the_median_of_the_last_rounds() -> None:
    rows = tuple(tuple((f"client-{k}", float(t * 10 + k)) for k in range(3)) for t in range(1, 8))
    # rounds 3 to 7, three norms each: 30, 31, 32, ..., 70, 71, 72; the middle one of 15 is 51
    assert known(*rows).bound(10.0, BOTH) == 510.0
    assert known(*rows).bound(0.0, BOTH) == math.inf
    assert known(*rows[:2]).bound(10.0, BOTH) == math.inf, "six norms are too few"
    assert known((("a", 0.0),) * 8).bound(10.0, BOTH) == math.inf, "norms of zero bound nothing"


def test_the_bound_looks_at_rounds_that_trained_the_same_factors() -> None:
    """B moves a thousand times as far as A: the median of both together would refuse every honest update of B."""
    state = GateState()
    for number in range(1, 13):
        name, norm = ("x.lora_B.weight", 1.0) if number % 2 else ("x.lora_A.weight", 1e-3)
        delta = {name: torch.tensor([norm])}
        state = state.after(number, [dataclasses.replace(u, delta=delta, norms={name: norm}) for u in REST])
    assert state.trained == ("B", "A") * 6
    assert state.bound(10.0, ("B",)) == 10.0 and state.bound(10.0, ("A",)) == pytest.approx(1e-2)
    assert state.bound(10.0, BOTH) == math.inf, "no round trained both"
    assert state.without(REST[0].client_id).bound(10.0, ("B",)) == 10.0


@given(st.lists(st.floats(1.0, 2.0), min_size=8, max_size=20), st.lists(st.floats(1e3, 1e9), max_size=7))
def test_fewer_than_half_of_the_norms_cannot_lift_the_bound(honest: list[float], hostile: list[float]) -> None:
    row = tuple((f"client-{k}", norm) for k, norm in enumerate([*honest, *hostile]))
    if len(hostile) < len(honest):
        assert known(row).bound(10.0, BOTH) <= 10 * 1e3 if len(row) % 2 == 0 else 20.0


# Quarantine


def test_three_refusals_in_a_row_are_a_quarantine_and_one_good_update_ends_the_count() -> None:
    state = GateState()
    for number in (1, 2):
        state = state.after(number, REST[:1], {BAD: "too large"})
    assert state.quarantined(3) == {} and state.quarantined(2) == {BAD: "in quarantine since round 1: too large"}
    passed = state.after(3, [dataclasses.replace(REST[0], client_id=BAD, norms={"x": 1.0})])
    assert passed.strikes == ()
    state = state.after(3, (), {BAD: "not finite"})
    assert state.quarantined(3) == {BAD: "in quarantine since round 1: too large"}
    assert state.after(4, REST[:1]).strikes == state.strikes, "who is not asked keeps its strikes"
    assert state.quarantined(0) == {} and state.without(BAD).strikes == ()


# The quota of influence


def test_no_client_counts_more_than_ten_times_the_median() -> None:
    claimed = [dataclasses.replace(u, num_examples=n) for u, n in zip(REST, (3, 5, 7, 10**6), strict=True)]
    assert [u.num_examples for u in limited(claimed, 10.0)] == [3, 5, 7, 60]
    assert [u.num_examples for u in claimed] == [3, 5, 7, 10**6], "what was claimed stays"
    assert limited(claimed, 0.0) is claimed and list(limited([], 10.0)) == []
    assert list(limited(claimed[:3], 10.0)) == claimed[:3]


@given(st.lists(st.integers(1, 10**9), min_size=3, max_size=12))
def test_nobody_outweighs_all_others_together(sizes: list[int]) -> None:
    updates = [dataclasses.replace(REST[0], client_id=f"c{k}", num_examples=n) for k, n in enumerate(sizes)]
    counted = [u.num_examples for u in limited(updates, 1.0)]
    assert max(counted) <= max(1, statistics.median(sizes)) and min(counted) == min(sizes)


# Steps and metrics


def test_a_number_of_steps_that_no_visit_takes_is_refused() -> None:
    gate = dataclasses.replace(GATE, steps=lambda examples: examples // 2)  # the update has ten
    assert gate.check(good(BAD), BAD, ROUND, 50) is None
    for steps in (0, 1, 4, 6, 10**9):
        assert "steps" in str(gate.check(dataclasses.replace(good(BAD), steps=steps), BAD, ROUND, 50))


def test_tensors_that_changed_without_a_step_are_refused() -> None:
    still = dataclasses.replace(good(BAD), steps=0, delta={n: torch.zeros(s) for n, s in SHAPES.items()})
    assert GATE.check(still, BAD, ROUND, 50) is None
    assert "without a step" in str(GATE.check(dataclasses.replace(good(BAD), steps=0), BAD, ROUND, 50))


def test_a_visit_goes_no_further_than_its_examples_can_take_it() -> None:
    gate = dataclasses.replace(GATE, reach=lambda client, examples: update_norm(good(BAD).delta) * examples / 10)
    assert gate.check(good(BAD), BAD, ROUND, 50) is None, "at the bound"
    assert "above the bound" in str(gate.check(dataclasses.replace(good(BAD), num_examples=9), BAD, ROUND, 50))


def test_metrics_that_cannot_be_true_are_dropped() -> None:
    told = {"loss": math.nan, "tokens": 5.0, "skipped": 1e300, "together": True, "secret": 1.0}
    ((one,), refused) = GATE.admit([dataclasses.replace(good(BAD), metrics=told)], {BAD: 50}, ROUND)
    assert one.metrics == {"tokens": 5.0} and not refused
    ((none,), _) = GATE.admit([dataclasses.replace(good(BAD), metrics=None)], {BAD: 50}, ROUND)
    assert none.metrics == {}


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf, True])
def test_a_bound_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(ConfigError, match="norm bound"):
        Gate(REFERENCE, bound, "code-1")


numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, width=32), st.sampled_from([math.nan, math.inf, 1e30, 0.0])
)


@settings(max_examples=150)
@given(values=st.lists(numbers, min_size=20, max_size=20))
def test_what_passes_is_finite_and_within_the_bound(values: list[float]) -> None:
    parts = torch.tensor(values, dtype=torch.float32).split([math.prod(shape) for shape in SHAPES.values()])
    delta = {name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)}
    said = GATE.check(dataclasses.replace(good(BAD), delta=delta), BAD, ROUND, 50)
    norm = (
        math.sqrt(sum(float(np.float32(v)) ** 2 for v in values)) if np.isfinite(np.float32(values)).all() else math.nan
    )
    if said is None:
        assert norm <= 10.0 * (1 + 1e-9)
    else:
        assert not norm <= 10.0 * (1 - 1e-9)


@settings(max_examples=100)
@given(data=st.data())
def test_any_mix_of_manglings_leaves_the_rest_alone(data: st.DataObject) -> None:
    row = st.sampled_from(TABLE)
    mangled = [change(good(BAD, 2)) for _, change, _ in data.draw(st.lists(row, min_size=1, max_size=4))]
    mangled = [update for update in mangled if update.client_id == BAD]
    arrived = data.draw(st.permutations([*REST, *mangled]))
    accepted, _ = GATE.admit(arrived, ASKED, ROUND)
    assert list(accepted) == REST
    assert same_bits(aggregate(accepted, FedAdam()), aggregate(REST, FedAdam()))
