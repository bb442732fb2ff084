"""Flower's strategies as rules: what they make there is what they make here, and a round can be computed again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity
from rule_rounds import check_purity, info, one, random_round, start, update

from oblivion.aggregation.rules.fedavgm import FedAvgM
from oblivion.aggregation.sums import ordered
from oblivion.errors import FederationError
from oblivion.types import GlobalState
from strategies.flower_rule import WRAPPED, FlowerRule

OPTIONS: dict[str, dict[str, Any]] = {
    "Bulyan": {"num_malicious_nodes": 1},
    "FedAdagrad": {"eta": 0.05},
    "FedAdam": {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99},
    "FedAvgM": {"server_learning_rate": 0.5, "server_momentum": 0.9},
    "FedTrimmedAvg": {"beta": 0.2},
    "FedYogi": {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
}


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message can only be made inside a run; this is Flower's own way of naming one."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Grid:
    """As much of a grid as sampling needs."""

    def get_node_ids(self) -> list[int]:
        return [1, 2]


def record(adapter: Any) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in adapter.items()})


def reply(model: Any, examples: int) -> Message:
    asked = Message(RecordDict(), dst_node_id=1, message_type="train")
    asked.metadata._message_id = "q"
    content = RecordDict({"arrays": record(model), "metrics": MetricRecord({"num-examples": examples})})
    return Message(content, reply_to=asked)


def made(name: str) -> FlowerRule:
    return FlowerRule(strategy=name, options=OPTIONS.get(name, {}))


@pytest.mark.usefixtures("identity")
@pytest.mark.parametrize("name", WRAPPED)
def test_three_rounds_are_those_of_the_strategy_itself(name: str) -> None:
    generator = np.random.default_rng(3)
    state = start(generator)
    state = GlobalState(adapter=dict(sorted(state.adapter.items())))
    theirs, rule = getattr(flower, name)(**OPTIONS.get(name, {})), made(name)
    current, rule_state = dict(state.adapter), rule.init(state)
    for number in (1, 2, 3):
        updates = random_round(generator, number)
        list(theirs.configure_train(number, record(current), ConfigRecord(), Grid()))
        models = [{n: current[n] + u.delta[n] for n in current} for u in ordered(updates)]
        pairs = zip(models, ordered(updates), strict=True)
        arrays, _ = theirs.aggregate_train(number, [reply(model, u.num_examples) for model, u in pairs])
        current = {n: torch.from_numpy(arrays[n].numpy().astype(np.float32)) for n in sorted(arrays)}
        state, rule_state = rule.step(updates[::-1], state, rule_state, info(number))
        for key, tensor in current.items():
            torch.testing.assert_close(state.adapter[key], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", WRAPPED)
def test_it_needs_no_run_and_changes_nothing_that_comes_in(name: str) -> None:
    generator = np.random.default_rng(4)
    check_purity(made(name), random_round(generator), start(generator), info())


def test_what_it_remembers_is_in_the_rule_state_alone() -> None:
    """Two rounds with a new rule object in between, by hand: momentum 0.5, updates of 1: steps 1 and 1.5."""
    options = {"server_momentum": 0.5}
    state, rule_state = GlobalState(adapter=one(0.0)), {}
    for expected in (1.0, 2.5):
        rule = FlowerRule(strategy="FedAvgM", options=options)
        state, rule_state = rule.step([update(0, one(1.0))], state, rule_state, info())
        assert float(state.adapter["w"]) == expected
    assert list(rule_state) == ["momentum_vector/#000000"]
    ours, mine = GlobalState(adapter=one(0.0)), FedAvgM(momentum=0.5).init(GlobalState(adapter=one(0.0)))
    for _ in range(2):
        ours, mine = FedAvgM(momentum=0.5).step([update(0, one(1.0))], ours, mine, info())
    assert torch.equal(ours.adapter["w"], state.adapter["w"])


def test_what_cannot_be_wrapped_is_refused() -> None:
    for name in ("QFedAvg", "DifferentialPrivacyServerSideFixedClipping", "FedAvgg"):
        with pytest.raises(ValueError, match=f"'{name}' cannot be wrapped"):
            FlowerRule(strategy=name)
    with pytest.raises(TypeError, match="betta"):
        FlowerRule(strategy="FedTrimmedAvg", options={"betta": 1})


def test_what_the_strategy_says_is_passed_on() -> None:
    rule = FlowerRule(strategy="Bulyan", options={"num_malicious_nodes": 3})
    generator = np.random.default_rng(5)
    with pytest.raises(FederationError, match="Flower's Bulyan says that 2 updates are too few, and made no model"):
        rule.step(random_round(generator)[:2], start(generator), {}, info(2))
