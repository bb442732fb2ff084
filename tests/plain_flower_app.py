"""A plain Flower app with Oblivion's rules: seven clients with quadratic losses, two rounds of every rule, as JSON.

Run by ``tests/integration/test_plain_flower.py`` in a process of its own.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from oblivion.aggregation.rules import aggregators
from strategies.rule_strategy import RuleStrategy

CLIENTS = 7
RATE = 0.1
PARAMETERS: dict[str, dict[str, Any]] = {"flower": {"strategy": "FedMedian"}, "feddyn": {"alpha": 0.5}}

client_app, server_app = ClientApp(), ServerApp()


def visit(client: int, x: np.ndarray, correction: np.ndarray | float, mu: float) -> tuple[np.ndarray, int]:
    """Some SGD steps on ``(1 + client) / 8 * ||w - client||^2 / 2``."""
    w, steps = x.copy(), 1 + client % 3
    for _ in range(steps):
        w = w - np.float32(RATE) * ((1 + client) / 8 * (w - client) + correction + mu * (w - x)).astype(np.float32)
    return w, steps


@client_app.train()
def train(message: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    content = message.content
    given = content["correction"]["w"].numpy() if len(content.get("correction", {})) else 0.0
    w, steps = visit(client, content["arrays"]["w"].numpy(), given, float(content["config"].get("proximal-mu", 0.0)))
    metrics = MetricRecord({"num-examples": client + 1, "client": client, "steps": steps})
    return Message(RecordDict({"arrays": ArrayRecord({"w": Array(w)}), "metrics": metrics}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    results = {}
    for name in aggregators.names():
        rule = aggregators.get(name)(**PARAMETERS.get(name, {}))
        strategy = RuleStrategy(rule, client_learning_rate=RATE, fraction_evaluate=0.0)
        start = ArrayRecord({"w": Array(np.array([1.0, -2.0], dtype=np.float32))})
        result = strategy.start(grid=grid, initial_arrays=start, num_rounds=2)
        results[name] = result.arrays["w"].numpy().tolist()
    with open(os.environ["PLAIN_FLOWER_OUT"], "w", encoding="utf-8") as file:
        json.dump(results, file)


if __name__ == "__main__":
    resources = {"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, num_supernodes=CLIENTS, backend_config=resources)
