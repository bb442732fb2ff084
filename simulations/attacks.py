"""Measure what robust rules are worth, with the gate off: ``python -m simulations.attacks --out DIR``.

Four of twenty clients attack. Every rule is measured beside `fedavg`, without attack and under each one, with real
local training on the built-in model. Four of the clients send, in place of the update that they trained:

- ``sign flip``: minus it;
- ``scaling``: ten times it;
- ``noise``: Gaussian noise of a hundred times its L2 norm;
- ``little is enough`` (Baruch et al., 2019): the mean of all honest updates less z of their standard deviations, in
  every coordinate, with z from the numbers of clients, so that they hide among the honest ones.

What counts is the loss per token on rows of authors that nobody trained on, after the last round, beside the same
rule's without attack. Every cell is written when it is done; started again, the study goes on with those that are
missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from oblivion.aggregation.gate import update_norm
from oblivion.config import RunConfig, load_config
from oblivion.files import write_atomically
from oblivion.seeding import torch_generator
from oblivion.types import ClientUpdate, HostReply, HostRequest
from oblivion.untrusted import parse_json, read_text

CLIENTS, HOSTILE, ROUNDS = 20, 4, 6
ATTACKS = ("none", "sign flip", "scaling", "noise", "little is enough")
PARTITIONS = ("iid", "natural")
SEEDS = (0, 1, 2)
RULES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "median": {},
    "trimmed_mean": {"trim": HOSTILE},
    "krum": {"byzantine": HOSTILE},
    "multi_krum": {"byzantine": HOSTILE},
    "bulyan": {"byzantine": HOSTILE},
    "geometric_median": {"weighted": False},
    "clipped_mean": {"bound": 0.5},
}
Cell: TypeAlias = tuple[str, str, str, int]
"""The partition, the rule, the attack and the seed."""


def scenario(partition: str, rule: str, seed: int) -> RunConfig:
    """Make the federation of a cell, with the gate off."""
    return load_config(
        None,
        {
            "seed": seed,
            "engine": "inline",
            "lora.alpha": 512,
            "data.partition": partition,
            "data.parameters.rows_per_client": 8,
            "federation.clients": CLIENTS,
            "federation.clients-per-round": CLIENTS,
            "federation.rounds": ROUNDS,
            "federation.aggregator": rule,
            "federation.parameters": RULES[rule],
            "federation.max-update-norm": 1e12,
            "federation.norm-factor": 0.0,
            "federation.max-influence": 0.0,
            "federation.quarantine-after": 0,
            "train.learning-rate": 1e-3,
            "train.local-epochs": 3,
        },
    )


def hostile(seed: int) -> tuple[str, ...]:
    """Return the clients that attack, which are others for every seed."""
    return tuple(f"client-{(seed * HOSTILE + k) % CLIENTS}" for k in range(HOSTILE))


def little_is_enough_z(clients: int = CLIENTS, attackers: int = HOSTILE) -> float:
    """Return z (Baruch et al., 2019, section 3): so many deviations that enough honest clients lie farther out."""
    supporters = clients // 2 + 1 - attackers
    return statistics.NormalDist().inv_cdf((clients - attackers - supporters) / (clients - attackers))


def attacked(updates: Sequence[ClientUpdate], attack: str, attackers: Sequence[str], seed: int) -> list[ClientUpdate]:
    """Return a round's updates, with those of the attackers replaced.

    Parameters
    ----------
    updates : sequence of ClientUpdate
        As all clients trained them.
    attack : str
        One of `ATTACKS`.
    attackers : sequence of str
        Who attacks.
    seed : int
        The seed of the noise.
    """
    import torch

    if attack == "none":
        return list(updates)
    honest = [update.delta for update in updates if update.client_id not in attackers]

    def changed(update: ClientUpdate) -> Mapping[str, torch.Tensor]:
        if attack == "sign flip":
            return {name: -t for name, t in update.delta.items()}
        if attack == "scaling":
            return {name: 10 * t for name, t in update.delta.items()}
        if attack == "noise":
            generator = torch_generator(seed, "attack", update.round, update.client_id)
            drawn = {name: torch.randn(t.shape, generator=generator) for name, t in update.delta.items()}
            factor = 100 * update_norm(update.delta) / update_norm(drawn)
            return {name: factor * t for name, t in drawn.items()}
        z = little_is_enough_z()
        stacked = {name: torch.stack([delta[name] for delta in honest]) for name in update.delta}
        return {name: t.mean(0) - z * t.std(0) for name, t in stacked.items()}

    return [dataclasses.replace(u, delta=changed(u)) if u.client_id in attackers else u for u in updates]


def run_cell(cell: Cell) -> float:
    """Return the loss on rows of authors that nobody trained on, after the last round, in nats per token."""
    from oblivion.federation.rounds import Federation
    from oblivion.learners import learner_of
    from oblivion.ledger.memory import MemoryLedger
    from oblivion.ledger.rounds import Branch
    from oblivion.metrics.engine.one_pass import evaluate_client
    from oblivion.metrics.suites import suite_of
    from oblivion.run.events import Observer
    from server.prepare import prepare
    from simulations.engines.inline import InlineHosts

    partition, rule, attack, seed = cell
    config, data = prepare(scenario(partition, rule, seed))

    class Hosts(InlineHosts):
        def ask(self, requests: Sequence[HostRequest]) -> Iterator[HostReply]:
            for reply in super().ask(requests):
                bad = attacked(reply.updates, attack, hostile(seed), seed) if reply.updates else []
                yield dataclasses.replace(reply, updates=tuple(bad))

    resident = learner_of(config)
    initial = resident.initial_adapter(config.seed)
    federation = Federation(config, Hosts(1), MemoryLedger(), initial, Observer())  # a single host sees a whole round
    federation.describe()
    federation.begin(Branch(name="main", seed=config.seed, rounds=ROUNDS), initial)
    for _ in range(ROUNDS):
        federation.run_round("main")
    resident.write(federation.head("main").state.adapter)
    with resident.merged() as model:
        measured = evaluate_client(
            model,
            resident.task,
            data.groups["holdout"],
            suite=suite_of(config.evaluate),
            max_new_tokens=config.evaluate.max_new_tokens,
            batch_size=config.evaluate.batch_size,
        )
    total, weight = measured["loss"]
    return total / weight


def table(losses: Mapping[Cell, float]) -> str:
    """Make a table per partition: each rule's mean clean loss, and how far each attack raises it, over seeds."""
    lines = []
    for partition in PARTITIONS:
        lines += [
            f"**{partition}**",
            "",
            "| rule | clean loss | " + " | ".join(ATTACKS[1:]) + " |",
            "|---|---|" + "---|" * len(ATTACKS[1:]),
        ]
        for rule in RULES:
            clean = [losses[partition, rule, "none", seed] for seed in SEEDS]
            texts = [f"{statistics.fmean(clean):.3f}"]
            for attack in ATTACKS[1:]:
                raised = [
                    losses[partition, rule, attack, seed] / losses[partition, rule, "none", seed] - 1 for seed in SEEDS
                ]
                texts.append(
                    f"{_percent(statistics.fmean(raised))} ({_percent(min(raised))} to {_percent(max(raised))})"
                )
            lines.append(f"| `{rule}` | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %" if math.isfinite(share) and share < 10 else "over +1000 %"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, and write ``attacks.md`` when nothing is."""
    parser = argparse.ArgumentParser(prog="python -m simulations.attacks", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2, help="the number of cells that run at a time, one core each")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "attacks.jsonl"
    losses: dict[Cell, float] = {}
    if log.is_file():
        for line in read_text(log, "what an earlier call wrote").splitlines():
            said = parse_json(line, str(log), "what an earlier call wrote")
            losses[said["partition"], said["rule"], said["attack"], said["seed"]] = said["loss"]
    cells = [(p, r, a, s) for p in PARTITIONS for s in SEEDS for r in RULES for a in ATTACKS]
    missing = [cell for cell in cells if cell not in losses]
    with ProcessPoolExecutor(options.workers) as pool, log.open("a", encoding="utf-8") as file:
        for cell, loss in zip(missing, pool.map(run_cell, missing), strict=True):
            losses[cell] = loss
            said = dict(zip(("partition", "rule", "attack", "seed"), cell, strict=True))
            file.write(json.dumps({**said, "loss": loss}) + "\n")
            file.flush()
    write_atomically(options.out / "attacks.md", table(losses).encode())
    sys.stdout.write(f"table: {options.out / 'attacks.md'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
