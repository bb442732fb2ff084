"""Server rules beside Flower's own strategies: three rounds, seven clients of unequal size.

Where the two differ, the difference is shown to be the one that the rule's file names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity
from rule_rounds import arrays, flat, info, one, random_round, start, update, value

from oblivion.aggregation.rules.bulyan import Bulyan
from oblivion.aggregation.rules.fedadagrad import FedAdagrad
from oblivion.aggregation.rules.fedadam import FedAdam
from oblivion.aggregation.rules.fedavgm import FedAvgM
from oblivion.aggregation.rules.fedyogi import FedYogi
from oblivion.aggregation.rules.krum import Krum
from oblivion.aggregation.rules.median import Median
from oblivion.aggregation.rules.multi_krum import MultiKrum
from oblivion.aggregation.rules.trimmed_mean import TrimmedMean
from oblivion.types import ClientUpdate, GlobalState


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message can only be made inside a run; this is Flower's own way of naming one."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Grid:
    """As much of a grid as sampling needs."""

    def get_node_ids(self) -> list[int]:
        return [1, 2]


def record(values: Sequence[np.ndarray]) -> ArrayRecord:
    return ArrayRecord({f"{k}": Array(np.asarray(value)) for k, value in enumerate(values)})


def reply(model: Sequence[np.ndarray], examples: int) -> Message:
    asked = Message(RecordDict(), dst_node_id=1, message_type="train")
    asked.metadata._message_id = "q"
    content = RecordDict({"arrays": record(model), "metrics": MetricRecord({"num-examples": examples})})
    return Message(content, reply_to=asked)


def flower_round(
    theirs: Any, round: int, current: Sequence[np.ndarray], updates: Sequence[ClientUpdate]
) -> list[np.ndarray]:
    """One round of a Flower strategy, in fp64. Its clients send models, made here from its own global model."""
    list(theirs.configure_train(round, record(current), ConfigRecord(), Grid()))
    models = [[x + d for x, d in zip(current, arrays(u.delta), strict=True)] for u in updates]
    result, _ = theirs.aggregate_train(round, [reply(m, u.num_examples) for m, u in zip(models, updates, strict=True)])
    assert result is not None
    return result.to_numpy_ndarrays()


def gap(ours: Any, theirs: Any, rule_state: Any = None, seed: int = 0) -> float:
    """The largest difference between the two models after three rounds."""
    generator = np.random.default_rng(seed)
    state = start(generator)
    rule_state = ours.init(state) if rule_state is None else rule_state
    current = arrays(state.adapter)
    for round in (1, 2, 3):
        updates = random_round(generator, round)
        current = flower_round(theirs, round, current, updates)
        state, rule_state = ours.step(updates, state, rule_state, info(round))
    return float(np.abs(flat(state.adapter) - np.concatenate([value.ravel() for value in current])).max())


SAME = 1e-6  # fp32 is stored between our rounds, fp64 between theirs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Median(), flower.FedMedian()),
        (TrimmedMean(trim=2), flower.FedTrimmedAvg(beta=0.3)),  # int(0.3 * 7) = 2
        (TrimmedMean(trim=0), flower.FedTrimmedAvg(beta=0.1)),
        (Krum(byzantine=2), flower.Krum(num_malicious_nodes=2)),
        (MultiKrum(byzantine=2, selected=1), flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=1)),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_robust_rules_that_are_the_same(ours: Any, theirs: Any, seed: int) -> None:
    assert gap(ours, theirs, seed=seed) < SAME


def equal_sizes(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    return [update(k, u.delta) for k, u in enumerate(updates)]


def test_multi_krum_selects_the_same_and_does_not_weight_it_by_examples() -> None:
    # The paper's Multi-Krum outputs the average of the m vectors; weights that clients declare would let one of them
    # own the step.
    assert (
        gap(MultiKrum(byzantine=1, selected=4), flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4)) > 0.01
    )
    generator = np.random.default_rng(1)
    state, updates = start(generator), equal_sizes(random_round(generator))
    theirs = flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4)
    expected = flower_round(theirs, 1, arrays(state.adapter), updates)
    after, _ = MultiKrum(byzantine=1, selected=4).step(updates, state, {}, info())
    for mine, flowers in zip(arrays(after.adapter), expected, strict=True):
        np.testing.assert_allclose(mine, flowers, rtol=0, atol=SAME)


def test_bulyan_chooses_again_among_those_that_are_left() -> None:
    # Without hostile clients both select all.
    assert gap(Bulyan(byzantine=0), flower.Bulyan(num_malicious_nodes=0)) < SAME

    def both(*values: float) -> list[float]:
        updates = [update(k, one(v)) for k, v in enumerate(values)]
        theirs = flower_round(flower.Bulyan(num_malicious_nodes=1), 1, [np.zeros(1)], updates)
        return [*value(Bulyan(byzantine=1), updates), *theirs[0]]

    # Both select 0, 1, 3, 4 and 6, with median 3 and 3, 4, 1 nearest to it.
    assert both(0, 1, 3, 4, 6, 50, 100) == pytest.approx([8 / 3, 8 / 3])
    # The best five by one score are 2, 4, 8, 9, 11 (median 8; 8, 9, 11). The paper takes the winner out and runs the
    # rule again on the rest: 4, then 11, 9, 1, 2 (median 4; 4, 2, 1).
    assert both(1, 2, 4, 8, 9, 11, 14) == pytest.approx([7 / 3, 28 / 3])


@pytest.mark.parametrize(("learning_rate", "momentum"), [(1.0, 0.9), (0.5, 0.7), (1.0, 0.0)])
def test_fedavgm_is_the_same(learning_rate: float, momentum: float) -> None:
    ours = FedAvgM(learning_rate=learning_rate, momentum=momentum)
    theirs = flower.FedAvgM(server_learning_rate=learning_rate, server_momentum=momentum)
    assert gap(ours, theirs) < SAME


ADAPTIVE = [
    (FedAdagrad(learning_rate=0.05), flower.FedAdagrad, {"eta": 0.05}),
    (FedYogi(learning_rate=0.05), flower.FedYogi, {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99}),
    (FedAdam(learning_rate=0.05), flower.FedAdam, {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99}),
]


def from_nought(ours: Any) -> dict[str, torch.Tensor]:
    """The rule's first state, with v at 0 where the paper asks for at least tau^2."""
    state: GlobalState = start(np.random.default_rng(0))
    return {name: torch.zeros_like(tensor) for name, tensor in ours.init(state).items()}


@pytest.mark.parametrize(("ours", "theirs", "options"), ADAPTIVE[:2], ids=["fedadagrad", "fedyogi"])
def test_adaptive_rules_differ_in_where_v_starts_and_in_nothing_else(ours: Any, theirs: Any, options: dict) -> None:
    assert gap(ours, theirs(tau=1e-3, **options), from_nought(ours)) < SAME
    # Algorithm 2 takes v_{-1} of at least tau^2; from 0 the first step is larger.
    assert gap(ours, theirs(tau=1e-3, **options)) > 1e-5


def test_fedadam_differs_in_a_bias_correction_too() -> None:
    # The paper's Algorithm 2 has none.
    ours, theirs, options = ADAPTIVE[2]
    assert gap(ours, theirs(tau=1e-3, **options), from_nought(ours)) > 1e-3

    class Corrected:
        """Our rule with the learning rate of each round multiplied by Flower's correction."""

        def step(self, updates: Any, state: Any, memory: Any, told: Any) -> Any:
            t = told.round + 1
            rate = 0.05 * (1 - 0.99**t) ** 0.5 / (1 - 0.9**t)
            return FedAdam(learning_rate=rate).step(updates, state, memory, told)

    assert gap(Corrected(), theirs(tau=1e-3, **options), from_nought(ours)) < SAME
