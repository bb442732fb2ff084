"""The privacy budget: visits added up by hand, worst case over clients, refusals, and the ledger that remembers."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.aggregation.gate import GateState
from oblivion.aggregation.round import RoundState
from oblivion.config import LedgerConfig, load_config
from oblivion.errors import IntegrityError, PlanRefusedError
from oblivion.federation.planning import oracle_seeds
from oblivion.federation.spending import check_removals
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.rounds import Branch, Charged, Ledger, RoundRecord, Selection
from oblivion.privacy.accountant import epsilon_of_rdp, gaussian_epsilon, group, sampled_gaussian_rdp
from oblivion.privacy.budget import Budget, budget_of, charge, expected_rounds, forgetting_bounds, statement
from oblivion.types import GlobalState


def budget(unit: str, **more: Any) -> Budget:
    chosen = {f"privacy.{key.replace('_', '-')}": value for key, value in more.items()}
    made = budget_of(
        load_config(None, {"privacy.unit": unit, "train.batch-size": 4, "train.local-epochs": 2, **chosen})
    )
    assert made is not None
    return made


class TestBudget:
    def test_none_has_none(self) -> None:
        assert budget_of(load_config()) is None

    def test_clients_by_hand(self) -> None:
        # a is asked three times, b once; at sigma = 2 the three are one Gaussian with sigma = 2 / sqrt(3).
        spent = budget("client", noise_multiplier=2).trail([{"a": 1, "b": 1}, {"a": 1}, {"a": 1}])
        assert spent == pytest.approx([gaussian_epsilon(math.sqrt(t) / 2, 1e-5) for t in (1, 2, 3)])

    def test_a_round_in_which_another_takes_the_place_counts_twice(self) -> None:
        # b: one round of C, two of 2 C; a: two of C. mu^2 = (1 + 4 + 4) / 2^2.
        spent = budget("client", noise_multiplier=2).trail([{"a": 1, "b": 1}, {"b": 2, "a": 1}, {"b": 2}])
        assert spent == pytest.approx([gaussian_epsilon(mu / 2, 1e-5) for mu in (1, math.sqrt(5), 3)])

    def test_who_pays_for_what(self) -> None:
        samples, chosen = {"a": 7, "b": 9}, ("a", "b", "c")  # c was chosen and is unavailable
        assert charge("sample", samples, chosen, ("a", "b"), True) == samples
        assert charge("client", samples, chosen, ("a", "b"), False) == {"a": 1, "b": 1}
        assert charge("client", samples, chosen, ("a", "b"), True) == {"a": 2, "b": 2, "c": 1}

    def test_samples_by_hand(self) -> None:
        # 10 samples, batch 4, 2 epochs: rate 0.4 and 2 * ceil(10 / 4) = 6 steps. 3 samples: rate 1 and 2 steps.
        one, other = 6 * sampled_gaussian_rdp(0.4, 1.5), 2 * sampled_gaussian_rdp(1.0, 1.5)
        made = budget("sample", noise_multiplier=1.5, delta=1e-6)
        assert made.trail([{"a": 10}, {"a": 10}]) == pytest.approx([epsilon_of_rdp(k * one, 1e-6) for k in (1, 2)])
        worst = max(epsilon_of_rdp(2 * one, 1e-6), epsilon_of_rdp(other, 1e-6))
        assert made.trail([{"a": 10}, {"a": 10, "b": 3}])[-1] == pytest.approx(worst)

    def test_no_noise_has_no_bound(self) -> None:
        for unit in ("sample", "client"):
            for noise in (0, 5e-324, 1e-162, 1e-154, 1e-153):
                assert budget(unit, noise_multiplier=noise).trail([{"a": 5}]) == [math.inf]
        assert budget("client", noise_multiplier=1e-9).trail([{"a": 1}]) == pytest.approx([5e17])

    def test_excess_says_what_fits(self) -> None:
        bound = gaussian_epsilon(math.sqrt(2), 1e-5) + 1e-9
        made = budget("client", max_epsilon=bound)
        assert made.excess([{"a": 1}] * 2) == made.excess([]) == ""
        assert "2 of its 5 rounds fit" in made.excess([{"a": 1}] * 5)
        assert budget("client").excess([{"a": 1}] * 50) == ""  # 0 is no bound

    @settings(max_examples=30)
    @given(
        st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 40)), max_size=8),
        st.sampled_from(["sample", "client"]),
    )
    def test_never_falls_and_the_order_does_not_matter(self, rounds: list[dict[str, int]], unit: str) -> None:
        trail = budget(unit).trail(rounds)
        assert trail == sorted(trail)
        if trail:
            assert budget(unit).trail(rounds[::-1])[-1] == pytest.approx(trail[-1])

    def test_expected_rounds(self) -> None:
        sizes = {"a": 3, "b": 4, "c": 5}
        rounds = expected_rounds("sample", sizes, {"c": 3}, 8, 0, 2, 3)
        assert rounds == [{"a": 3, "b": 4}, {"a": 3, "b": 4, "c": 5}]
        assert all(len(one) == 2 for one in expected_rounds("sample", sizes, {}, 2, 0, 1, 9))
        before, after = expected_rounds(
            "client", sizes, {"c": 3}, 2, 0, 2, 3
        )  # two of two are asked, then two of three
        assert before == {"a": 1, "b": 1} and list(after.values()) == [2, 2]


class TestForgetting:
    def test_group_privacy(self) -> None:
        config = load_config(None, {"privacy.unit": "client", "privacy.noise-multiplier": 4})
        one, two, three = forgetting_bounds(config, [{"a": 1, "b": 1}, {"a": 1}])
        alone = gaussian_epsilon(math.sqrt(2) / 4, 1e-5)
        assert [b["clients"] for b in (one, two, three)] == [1, 2, 3]
        for size, bound in enumerate((one, two, three), start=1):
            assert (bound["epsilon"], bound["delta"]) == pytest.approx(group(alone, 1e-5, size))
            assert bound["gaussian_epsilon"] == pytest.approx(gaussian_epsilon(size * math.sqrt(2) / 4, 1e-5))

    def test_a_place_that_another_fills_counts_twice(self) -> None:
        config = load_config(None, {"privacy.unit": "client", "privacy.noise-multiplier": 4})
        (bound, *_) = forgetting_bounds(config, [{"a": 2, "b": 2}, {"b": 2, "c": 2}])
        assert bound["epsilon"] == pytest.approx(gaussian_epsilon(2 * math.sqrt(2) / 4, 1e-5))

    @pytest.mark.parametrize(
        ("clients", "asked", "rounds", "epsilon"), [(12, 4, 10, 28.37), (9, 8, 1, 10.0), (8, 8, 10, 17.86)]
    )
    def test_one_definition_and_one_number(self, clients: int, asked: int, rounds: int, epsilon: float) -> None:
        """What a plan expects, the budget tells, the bound refuses and the forgetting bound says: the same."""
        samples = {f"client-{n}": 20 for n in range(clients)}
        for seed in range(100):  # a seed whose busiest client is asked in five of ten rounds, as in the audit
            expected = expected_rounds("client", samples, {}, asked, seed, 1, rounds)
            times = max(sum(client in one for one in expected) for client in samples)
            if clients == asked or rounds == 1 or times == 5:
                break
        one = {"privacy.unit": "client", "privacy.max-epsilon": epsilon + 0.01}
        config = load_config(None, {**one, "federation.clients-per-round": asked})
        charged = [Charged(number=1, branch="main", round=r, clients=c) for r, c in enumerate(expected, start=1)]
        said = statement(config, charged, [(1, 0, rounds)])
        assert said["epsilon"] == said["rounds"][-1]["epsilon"] == pytest.approx(epsilon, abs=0.005)
        assert said["forgetting"][0]["epsilon"] == said["forgetting"][0]["gaussian_epsilon"] == said["epsilon"]
        made = budget_of(config)
        assert made is not None and not made.excess(expected)
        low = budget_of(load_config(None, {**one, "privacy.max-epsilon": epsilon - 0.01}))
        assert low is not None and f"would become {epsilon:.3g}" in low.excess(expected)

    def test_statement_bounds_the_line_of_the_head_alone(self) -> None:
        config = load_config(None, {"privacy.unit": "client"})
        charged = [
            *(Charged(number=1, branch="main", round=r, clients={"a": 1}) for r in (1, 2, 3)),
            Charged(number=7, branch="r/rollback", round=2, clients={"a": 1}),
        ]
        said = statement(config, charged, [(1, 0, 1), (7, 2, 99)])
        assert [one["round"] for one in said["rounds"]] == [1, 2, 3, 2]
        assert said["epsilon"] == pytest.approx(gaussian_epsilon(2.0, 1e-5))  # four rounds
        assert said["forgetting"][0]["epsilon"] == pytest.approx(gaussian_epsilon(math.sqrt(2), 1e-5))  # two of them
        assert statement(load_config(None, {"privacy.unit": "sample"}), charged, [])["forgetting"] == []


STATE = RoundState(round=0, state=GlobalState(adapter={"w": torch.zeros(2)}), rule_state={}, gate_state=GateState())


def fill(ledger: Ledger) -> None:
    ledger.open_branch(Branch(name="main", seed=0, rounds=2), STATE)
    ledger.open_branch(Branch(name="r/oracle", seed=0, rounds=2, history=False), STATE)
    for name, charged in (("main", {"a": 3, "b": 4}), ("r/oracle", {"b": 4})):
        selected = tuple(charged)
        ledger.begin(Selection(branch=name, round=1, selected=selected, cohorts=(selected,), charged=charged))


def commit(ledger: Ledger, name: str) -> None:
    after = RoundState(round=1, state=STATE.state, rule_state={}, gate_state=GateState())
    ledger.commit(RoundRecord(branch=name, round=1, selected=(), accepted=()), after, keep=True)


class TestLedger:
    def test_charges_outlive_their_branch(self, tmp_path: Path) -> None:
        stored, _ = open_ledger(tmp_path, LedgerConfig())
        try:
            for ledger in (MemoryLedger(), stored):
                fill(ledger)
                ledger.drop("r/oracle")
                assert [(one.branch, one.round, dict(one.clients)) for one in ledger.charged()] == [
                    ("main", 1, {"a": 3, "b": 4}),
                    ("r/oracle", 1, {"b": 4}),
                ]
        finally:
            stored.close()

    def test_secrets(self, tmp_path: Path) -> None:
        stored, _ = open_ledger(tmp_path, LedgerConfig())
        fill(stored)
        main, oracle = stored.noise_secret("main"), stored.noise_secret("r/oracle")
        assert len(main) == len(oracle) == 32 and main != oracle
        commit(stored, "main")
        stored.drop("r/oracle")
        stored.close()
        again, _ = open_ledger(tmp_path, LedgerConfig())  # the sweep takes what serves nothing, and no more
        assert again.noise_secret("main") == main
        assert [path.read_bytes() for path in (tmp_path / "keys" / "noise").iterdir()] == [main]
        again.keys.destroy(f"noise/{again.number('main')}")
        with pytest.raises(IntegrityError, match="is missing"):
            again.noise_secret("main")
        again.close()


def test_np_arrays_are_not_shared() -> None:
    """A budget is a value: spending from one leaves it as it was."""
    first = budget("sample").after({"a": 9})
    before = np.copy(first.spent["a"])
    first.after({"a": 9})
    np.testing.assert_array_equal(first.spent["a"], before)


def test_every_oracle_pays_for_the_rounds_that_its_own_seed_selects() -> None:
    """Where some are asked, another seed asks others; an oracle beyond the budget is refused before it runs."""
    samples = {f"client-{n}": 8 for n in range(6)}
    values = {"privacy.unit": "client", "federation.rounds": 6, "federation.clients-per-round": 2}
    values |= {"evaluate.oracle-seeds": 2, "seed": 1}
    config = load_config(None, values)
    rounds = [expected_rounds("client", samples, {}, 2, seed, 1, 6) for seed in oracle_seeds(config).values()]
    assert rounds[0] != rounds[1]
    made = budget_of(config)
    assert made is not None
    right = made.after(*rounds[0], *rounds[1]).epsilon
    for bound, fits in ((right + 1e-6, True), (right - 1e-6, False)):
        bounded = load_config(None, {**values, "privacy.max-epsilon": bound})
        refused = (
            contextlib.nullcontext() if fits else pytest.raises(PlanRefusedError, match="the oracle-2 does not fit")
        )
        with refused:
            check_removals(budget_of(bounded), bounded, samples, list(oracle_seeds(bounded)), [])
