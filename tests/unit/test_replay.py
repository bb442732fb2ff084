"""From contributions to states again: the same bits, from any checkpoint, through every fork, or an error."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from oblivion.aggregation.gate import GateState, tensor_norms
from oblivion.aggregation.round import RoundState, aggregate_round
from oblivion.config import RunConfig, load_config
from oblivion.errors import IntegrityError
from oblivion.federation.replay import Replay, replay_of
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.rounds import Absence, Branch, CohortOutcome, RoundRecord
from oblivion.seeding import torch_generator
from oblivion.types import ClientUpdate, GlobalState

CLIENTS = ("a", "b", "c")
SHAPES = {"x.lora_A": (2, 3), "x.lora_B": (3, 2)}


def config(**changes: Any) -> RunConfig:
    settings = {"federation.aggregator": "fedadam", "federation.joins": {"c": 3}}
    return load_config(None, {**settings, **{key.replace("__", "."): value for key, value in changes.items()}})


def update(client: str, round: int, branch: str = "main") -> ClientUpdate:
    generator = torch_generator(0, branch, round, client)
    delta = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    made = ClientUpdate(client_id=client, round=round, delta=delta, num_examples=2 + ord(client) % 3, steps=1)
    return dataclasses.replace(made, norms=tensor_norms(delta))


def begin(replay: Replay) -> RoundState:
    state = GlobalState(adapter={name: torch.zeros(shape) for name, shape in SHAPES.items()})
    return RoundState(round=0, state=state, rule_state=replay.aggregation.rule.init(state), gate_state=GateState())


def run(replay: Replay, ledger: MemoryLedger, name: str, last: int, head: RoundState, every: int) -> list[RoundState]:
    """Rounds as a federation runs them; every state of the branch, from the one before its first round."""
    branch = ledger.branch(name)
    gate = head.gate_state
    for client in CLIENTS:
        gate = gate.without(client) if branch.leaves(client) else gate
    states = [dataclasses.replace(head, gate_state=gate)]
    for round in range(branch.fork + 1, last + 1):
        info = replay.info(name, round)
        updates = tuple(update(client, round, name) for client in info.population)
        ledger.append(CohortOutcome(branch=name, round=round, cohort=0, updates=updates))
        after = aggregate_round(states[-1], updates, info, replay.aggregation)
        record = RoundRecord(branch=name, round=round, selected=info.population, accepted=info.population)
        ledger.commit(record, after, keep=round % every == 0)
        states.append(after)
    return states


def learned(every: int = 2, rounds: int = 5, **changes: Any) -> tuple[Replay, MemoryLedger, list[RoundState]]:
    ledger = MemoryLedger()
    replay = replay_of(config(**changes), ledger, CLIENTS)
    start = begin(replay)
    ledger.open_branch(Branch(name="main", seed=0, rounds=rounds), start)
    return replay, ledger, run(replay, ledger, "main", rounds, start, every)


def bits(state: RoundState) -> tuple[Any, ...]:
    tensors = {**state.state.adapter, **state.state.residual, **state.rule_state}
    return state.round, state.gate_state, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_step_by_hand() -> None:
    replay, _, _ = learned(federation__aggregator="fedavg", federation__joins={}, rounds=0)
    one = update("a", 1)
    ones = dataclasses.replace(one, delta={name: torch.ones(shape) for name, shape in SHAPES.items()}, num_examples=3)
    twos = dataclasses.replace(ones, client_id="b", delta={n: 5 * t for n, t in ones.delta.items()}, num_examples=1)
    after = aggregate_round(begin(replay), (ones, twos), replay.info("main", 1), replay.aggregation)
    # 3 of 4 ones and 1 of 4 fives
    assert all(torch.equal(t, torch.full_like(t, 2.0)) for t in after.state.adapter.values())
    assert after.round == 1 and [[c for c, _ in row] for row in after.gate_state.norms] == [["a", "b"]]


def test_who_takes_part_follows_from_the_branch_and_the_config() -> None:
    replay, ledger, _ = learned()
    assert replay.info("main", 2).population == ("a", "b") and replay.info("main", 3).population == CLIENTS
    gone = (Absence(client="b"), Absence(client="a", samples=("s",)))
    ledger.open_branch(Branch(name="r/x", seed=9, rounds=7, parent="main", fork=2, absent=gone))
    info = replay.info("r/x", 3)
    assert (info.branch, info.round, info.rounds, info.seed, info.population) == ("r/x", 3, 7, 9, ("a", "c"))


@pytest.mark.parametrize("every", [1, 2, 3, 99])
@pytest.mark.parametrize("aggregator", ["fedavg", "fedadam"])
def test_every_state_can_be_had_again(every: int, aggregator: str) -> None:
    replay, _, states = learned(every, federation__aggregator=aggregator)
    assert [bits(replay.state("main", round)) for round in range(6)] == [bits(state) for state in states]
    assert bits(replay.state("main", 5, start=states[1])) == bits(states[5]), "from an earlier one that is known"


@pytest.mark.parametrize("every", [1, 2, 99])
@pytest.mark.parametrize("forks", [(2, 3), (3, 3), (3, 1), (5, 0)])
def test_states_are_had_again_through_forks(every: int, forks: tuple[int, int]) -> None:
    """The second fork may lie before the first: a client that was there earlier leaves later."""
    replay, ledger, main = learned(every)
    first, second = forks
    absent: tuple[Absence, ...] = (Absence(client="b"),)
    ledger.open_branch(Branch(name="r/one", seed=1, rounds=5, parent="main", fork=first, absent=absent))
    one = run(replay, ledger, "r/one", 5, main[first], every)
    absent += (Absence(client="a"),)
    ledger.open_branch(Branch(name="r/two", seed=2, rounds=5, parent="r/one", fork=second, absent=absent))
    base = one[second - first] if second > first else main[second]
    two = run(replay, ledger, "r/two", 5, base, every)
    assert [bits(replay.state("r/one", r)) for r in range(first, 6)] == [bits(state) for state in one]
    assert [bits(replay.state("r/two", r)) for r in range(second, 6)] == [bits(state) for state in two]
    assert not {c for row in two[-1].gate_state.norms for c, _ in row} & {"a", "b"}
    assert [bits(replay.state("main", r)) for r in range(6)] == [bits(state) for state in main], "main is as it was"
    for name, own in (("main", 5), ("r/one", 5 - first), ("r/two", 5 - second)):
        assert replay.check(name) == own


def test_what_cannot_be_aggregated_again_is_refused() -> None:
    replay, ledger, states = learned(every=99, rounds=2)
    visit = RoundRecord(branch="main", round=3, selected=("a",), accepted=("a",), unlearned=True)
    ledger.commit(visit, dataclasses.replace(states[2], round=3), keep=False)
    words = "the state after round 3 of 'main' cannot be aggregated again: its contributions are not all kept"
    with pytest.raises(IntegrityError, match=words):
        replay.state("main", 3)
    other, ledger, _ = learned(every=99, rounds=2)
    ledger.commit(RoundRecord(branch="main", round=3, selected=("a",), accepted=("a",)), states[2], keep=False)
    with pytest.raises(IntegrityError, match=words):  # accepted, it says, and there is none
        other.state("main", 3)
    assert bits(other.state("main", 2)) == bits(states[2])


def nudged(tensors: Any) -> dict[str, torch.Tensor]:
    """The same but for the last bit of one number."""
    name = sorted(tensors)[0]
    moved = tensors[name].clone()
    flat = moved.view(-1)
    flat[0] = torch.nextafter(flat[0], torch.tensor(torch.inf))
    return {**tensors, name: moved}


@pytest.mark.parametrize("part", ["adapter", "residual", "rule", "gate"])
def test_a_state_that_is_not_what_contributions_make_is_found(part: str) -> None:
    replay, ledger, states = learned()
    kept = states[4]
    changes = {
        "adapter": {"state": dataclasses.replace(kept.state, adapter=nudged(kept.state.adapter))},
        "residual": {"state": dataclasses.replace(kept.state, residual={"r": torch.zeros(1)})},
        "rule": {"rule_state": nudged(kept.rule_state)},
        "gate": {"gate_state": kept.gate_state.without("a")},
    }[part]
    assert replay.check("main") == 5
    ledger._states["main", 4] = dataclasses.replace(kept, **changes)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="the state after round 4 of 'main' is not what its contributions make"):
        replay.check("main")


def test_a_contribution_that_was_changed_is_found_at_the_next_checkpoint() -> None:
    replay, ledger, _ = learned(every=3)
    outcome = ledger._outcomes["main", 2][0]
    first, *others = outcome.updates
    changed = dataclasses.replace(first, delta={name: 1.01 * tensor for name, tensor in first.delta.items()})
    ledger._outcomes["main", 2][0] = dataclasses.replace(outcome, updates=(changed, *others))
    with pytest.raises(IntegrityError, match="the state after round 3 of 'main'"):
        replay.check("main")


def test_rounds_that_cannot_be_checked_are_not_counted() -> None:
    """An unlearning visit has no contribution; what follows it is checked from the state that it left."""
    replay, ledger, states = learned(every=99, rounds=2)
    visit = RoundRecord(branch="main", round=3, selected=("a",), accepted=("a",), unlearned=True)
    after = dataclasses.replace(states[2], round=3)
    ledger.commit(visit, after, keep=True)
    info = dataclasses.replace(replay.info("main", 4))
    updates = tuple(update(client, 4) for client in info.population)
    ledger.append(CohortOutcome(branch="main", round=4, cohort=0, updates=updates))
    end = aggregate_round(after, updates, info, replay.aggregation)
    ledger.commit(
        RoundRecord(branch="main", round=4, selected=info.population, accepted=info.population), end, keep=True
    )
    assert replay.check("main") == 3 and bits(replay.state("main", 4)) == bits(end)
