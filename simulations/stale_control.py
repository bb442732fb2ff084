"""Does a federation forget a client while its control variate stays? ``python -m simulations.stale_control [--json]``.

A client leaves, and the others go on training. With SCAFFOLD and FedDyn the mean c of the variates (h of the gradients)
holds the client too. *Corrected*, as the rules here do it, its variate is dropped and the mean is over who is left.
*Stale*, the variate stays as it is. Both are measured after the same number of further rounds, as the distance to the
federation that never had the client, 1 being the distance when it left: on clients with quadratic losses, where the
optimum is known, and on the built-in language model, where the reference is trained for as many rounds.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oblivion.aggregation.rule import RuleState
from oblivion.aggregation.rules.control import ControlRule
from oblivion.aggregation.rules.feddyn import FedDyn
from oblivion.aggregation.rules.scaffold import Scaffold
from oblivion.config import load_config
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.rounds import Absence, Branch
from oblivion.seeding import numpy_generator
from oblivion.types import Adapter, ClientTask, ClientUpdate, GlobalState, RoundInfo

if TYPE_CHECKING:
    import numpy as np

LEAVES = "client-5"
RATE, DIMENSION, CLIENTS = 0.1, 12, 8
LEARNED, FURTHER = 400, (20, 300)
SCENARIO: dict[str, Any] = {
    "seed": 6,
    "engine": "inline",
    "lora.alpha": 512,
    "data.parameters.rows_per_client": 8,
    "federation.rounds": 12,
    "train.optimizer": "sgd",
    "train.learning-rate": 0.05,
    "train.local-epochs": 6,
}
ROUNDS_AFTER = 12
RULES: dict[str, dict[str, Any]] = {"scaffold": {}, "feddyn": {"alpha": 0.1}}


@dataclass(frozen=True)
class Stale(ControlRule):
    """A control rule that keeps counting clients that have left, as a server does that knows nothing of forgetting."""

    rule: ControlRule

    @property
    def proximal_mu(self) -> float:
        """The weight of the rule's proximal term."""
        return self.rule.proximal_mu

    def corrections(
        self, rule_state: RuleState, clients: Sequence[str], info: RoundInfo, learning_rate: float
    ) -> Mapping[str, Adapter]:
        """Return the rule's corrections, over everyone that was ever seen."""
        return self.rule.corrections(rule_state, clients, _everyone(rule_state, info), learning_rate)

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Take the rule's step, over everyone that was ever seen."""
        return self.rule.aggregate(updates, state, rule_state, _everyone(rule_state, info))

    def without(self, rule_state: RuleState, client_id: str) -> RuleState:
        """Keep the variate."""
        return rule_state


def _everyone(rule_state: RuleState, info: RoundInfo) -> RoundInfo:
    seen = {key.split("/")[1] for key in rule_state}
    return dataclasses.replace(info, population=tuple(sorted({*info.population, *seen})))


# Quadratic losses


def _losses() -> list[tuple[np.ndarray, np.ndarray]]:
    generator = numpy_generator(0, "quadratic", 0, "all")
    return [(generator.uniform(0.5, 1.5, DIMENSION), generator.normal(size=DIMENSION)) for _ in range(CLIENTS)]


def _rounds(rule: Any, state: GlobalState, kept: RuleState, clients: Sequence[int], count: int) -> Iterator[Any]:
    """Run rounds on ``D (w - b)``, in which client k takes k + 1 steps; yields state and rule state after each."""
    import torch

    losses, names = _losses(), [f"client-{k}" for k in clients]
    for number in range(1, count + 1):
        info = RoundInfo(branch="main", round=number, rounds=count, population=tuple(names), seed=0)
        corrections = rule.corrections(kept, names, info, RATE)
        x, updates = state.adapter["w"].double().numpy(), []
        for k, name in zip(clients, names, strict=True):
            curvature, optimum = losses[k]
            extra = corrections[name]["w"].double().numpy() if corrections[name] else 0.0
            w = x.copy()
            for _ in range(k + 1):
                w -= RATE * (curvature * (w - optimum) + extra + rule.proximal_mu * (w - x))
            delta = {"w": torch.from_numpy(w - x).float()}
            updates.append(ClientUpdate(client_id=name, round=number, delta=delta, num_examples=1, steps=k + 1))
        state, kept = rule.step(updates, state, kept, info)
        yield state, kept


def quadratic(rule: ControlRule) -> Iterator[dict[str, Any]]:
    """Measure on quadratic losses."""
    import numpy as np
    import torch

    everyone, leaves = list(range(CLIENTS)), int(LEAVES.rpartition("-")[2])
    left = [k for k in everyone if k != leaves]
    curvatures, optima = (np.array([_losses()[k][part] for k in left]) for part in (0, 1))
    target = (curvatures * optima).sum(0) / curvatures.sum(0)
    start = GlobalState(adapter={"w": torch.zeros(DIMENSION)})
    *_, (state, kept) = _rounds(rule, start, rule.init(start), everyone, LEARNED)

    def distance(at: GlobalState) -> float:
        return float(np.linalg.norm(at.adapter["w"].double().numpy() - target))

    before = distance(state)
    for name, used in (("corrected", rule), ("stale", Stale(rule))):
        after = list(_rounds(used, state, used.without(kept, LEAVES), left, max(FURTHER)))
        for further in FURTHER:
            yield {"variates": name, "further_rounds": further, "distance": distance(after[further - 1][0]) / before}


# The built-in language model


def language_model(name: str) -> Iterator[dict[str, Any]]:
    """Measure, on the built-in model, the products' distance and the mean answer probability on the client's rows."""
    from oblivion.federation.measure import measure_clients
    from oblivion.federation.rounds import Federation
    from oblivion.learners import learner_of
    from oblivion.metrics.suites import suite_of
    from oblivion.run.events import Observer
    from server.prepare import prepare
    from simulations.engines.inline import InlineHosts
    from simulations.matrix import product_distance

    parameters = {f"federation.parameters.{key}": value for key, value in RULES[name].items()}
    config, _ = prepare(load_config(None, {**SCENARIO, "federation.aggregator": name, **parameters}))
    resident = learner_of(config)
    ledger, initial = MemoryLedger(), resident.initial_adapter(config.seed)
    federation = Federation(config, InlineHosts(1), ledger, initial, Observer())
    federation.describe()
    learned, absent = config.federation.rounds, (Absence(client=LEAVES),)
    total = learned + ROUNDS_AFTER

    def trained(branch: Branch) -> Adapter:
        federation.begin(branch, None if branch.parent else initial)
        for _ in range(branch.fork, branch.rounds):
            federation.run_round(branch.name)
        return federation.head(branch.name).state.adapter

    own = suite_of(config.evaluate).headline.own.metric

    def known(adapter: Adapter) -> float:
        measured = measure_clients(
            GlobalState(adapter=adapter), federation, [ClientTask(client_id=LEAVES)], resident.max_length
        )
        return float(measured[LEAVES][own].value or 0.0)

    main = trained(Branch(name="main", seed=config.seed, rounds=learned))
    never = Branch(name="never", seed=config.seed, rounds=total, absent=absent)
    federation.begin(never, initial)
    for _ in range(learned):
        federation.run_round("never")
    before = product_distance(main, federation.head("never").state.adapter)
    for _ in range(ROUNDS_AFTER):
        federation.run_round("never")
    reference = federation.head("never").state.adapter
    yield {"variates": "(the model before)", "further_rounds": 0, "distance": 1.0, "known": known(main)}
    yield {"variates": "(never saw it)", "further_rounds": 0, "distance": 0.0, "known": known(reference)}
    rule = federation.rule
    assert isinstance(rule, ControlRule)
    for label, used in (("corrected", rule), ("stale", Stale(rule))):
        federation.replay.aggregation = dataclasses.replace(federation.replay.aggregation, rule=used)
        after = trained(Branch(name=label, seed=config.seed, rounds=total, parent="main", fork=learned, absent=absent))
        distance = product_distance(after, reference) / before
        found = {"distance": distance, "known": known(after)}
        yield {"variates": label, "further_rounds": ROUNDS_AFTER, **found}


def main() -> int:
    """Print one line for each case."""
    rules: dict[str, ControlRule] = {"scaffold": Scaffold(), "feddyn": FedDyn(alpha=0.5)}
    for name, rule in rules.items():
        for on, results in (("quadratic losses", quadratic(rule)), ("the built-in model", language_model(name))):
            for result in results:
                line = {"rule": name, "on": on, **result}
                if "--json" in sys.argv:
                    sys.stdout.write(json.dumps(line) + "\n")
                else:
                    sys.stdout.write(", ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in line.values()))
                    sys.stdout.write("\n")
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
