"""A rule of another package can do what a built-in one can, as far as its class attributes allow it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from outside import Install
from outside import install as install
from rule_rounds import update

from oblivion.aggregation import rule_of, scheme_of
from oblivion.aggregation.compatibility import check_scheme, check_training
from oblivion.aggregation.gate import GateState
from oblivion.aggregation.round import RoundState, aggregate_round
from oblivion.aggregation.rules import aggregators
from oblivion.config import load_config
from oblivion.errors import ConfigError, InputError
from oblivion.federation.replay import replay_of
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.rounds import Branch
from oblivion.privacy.settings import check_privacy
from oblivion.types import GlobalState

RULES = '''
"""Rules of another package."""
from dataclasses import dataclass
from oblivion.aggregation.rule import Rule, WeightedRule
from oblivion.aggregation.sums import mean_update, moved


@dataclass(frozen=True, kw_only=True)
class HalfMean(Rule):
    """Move by a share of the mean."""
    share: float = 0.5
    of_mean = True

    def aggregate(self, updates, state, rule_state, info):
        return moved(state, mean_update(updates), self.share), rule_state


class First(WeightedRule):
    """Take the first update."""

    def weights(self, updates, info):
        return [1.0] + [0.0] * (len(updates) - 1)


class Nameless(Rule):
    """Keep a state whose parts have no names."""
    state_by_tensor = False
    plain_sgd = True

    def aggregate(self, updates, state, rule_state, info):
        return state, rule_state


class Unfinished(WeightedRule):
    """Say nothing about weights."""
'''
NAMES = {"half_mean": "HalfMean", "first": "First", "nameless": "Nameless", "unfinished": "Unfinished"}


@pytest.fixture(autouse=True)
def outside_rules(install: Install) -> None:
    table = {"aggregators": {name: f"my_fed.rules:{cls}" for name, cls in NAMES.items()}}
    install("my-fed", "0.1", table, {"my_fed/__init__.py": "", "my_fed/rules.py": RULES})


def check(rule: str, **settings: Any) -> None:
    config = load_config(
        None, {"federation.aggregator": rule, **{k.replace("__", "."): v for k, v in settings.items()}}
    )
    made = rule_of(config)
    check_training(made, config)
    check_scheme(made, scheme_of(config), config)
    check_privacy(config)


def test_client_privacy_takes_a_rule_that_is_of_the_mean_and_no_other() -> None:
    check("half_mean", privacy__unit="client", federation__parameters={"share": 0.25})
    with pytest.raises(ConfigError, match=r"'first' is not a function of the mean alone; choose one of .*half_mean"):
        check("first", privacy__unit="client")


def test_a_round_with_client_privacy_and_a_rule_from_outside_by_hand() -> None:
    # Clipped to a norm of 1: (1, -0.5); without noise their mean over m = 2 is 0.25, and the rule takes 0.5 of it.
    values = {"privacy.unit": "client", "privacy.noise-multiplier": 0, "privacy.clip-norm": 1.0}
    config = load_config(None, {**values, "federation.aggregator": "half_mean", "federation.clients-per-round": 2})
    ledger = MemoryLedger()
    adapter = {"x.lora_A": torch.zeros(1), "x.lora_B": torch.zeros(1)}
    before = RoundState(round=0, state=GlobalState(adapter=adapter), rule_state={}, gate_state=GateState())
    ledger.open_branch(Branch(name="main", seed=0, rounds=1), before)
    replay = replay_of(config, ledger, ["client-0", "client-1"])
    updates = [update(k, {**adapter, "x.lora_A": torch.tensor([value])}, 9 - k) for k, value in enumerate((3.0, -0.5))]
    after = aggregate_round(before, updates, replay.info("main", 1), replay.aggregation)
    assert float(after.state.adapter["x.lora_A"]) == pytest.approx(0.125)


@pytest.mark.parametrize("scheme", ["fedex", "flexlora", "flora"])
def test_a_scheme_of_products_takes_a_rule_of_weights_and_no_other(scheme: str) -> None:
    check("first", lora__scheme=scheme)
    with pytest.raises(
        ConfigError, match=rf"'half_mean' cannot be used with lora.scheme = '{scheme}'.* fedprox, first,"
    ):
        check("half_mean", lora__scheme=scheme)


def test_a_state_without_names_and_a_formula_for_plain_sgd_are_refused_where_they_do_not_hold() -> None:
    with pytest.raises(ConfigError, match=r"assumes that clients take plain SGD steps"):
        check("nameless")
    sgd = {"train__optimizer": "sgd", "train__weight_decay": 0.0}
    check("nameless", **sgd)
    with pytest.raises(ConfigError, match=r"'nameless' cannot be used with lora.scheme = 'rolora'.*does not name"):
        check("nameless", lora__scheme="rolora", **sgd)


def test_a_rule_that_lacks_its_formula_is_refused_with_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"aggregator 'unfinished' is not valid: it has no weights$"):
        check("unfinished")


def test_a_part_that_cannot_be_loaded_is_in_no_list_of_alternatives(install: Install) -> None:
    install("broken", "1", {"aggregators": {"broken": "not_there:X"}}, {})
    assert "broken" not in aggregators.having("of_mean")
    assert {"fedavg", "half_mean"} <= set(aggregators.having("of_mean"))
