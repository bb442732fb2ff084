"""Every rule in a plain Flower app: a real simulation, compared with the rule applied by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_flower_app import CLIENTS, PARAMETERS, RATE, visit

from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.rules.control import ControlRule
from oblivion.types import ClientUpdate, GlobalState, RoundInfo

TESTS = Path(__file__).parents[1]


def by_hand(name: str) -> list[float]:
    rule: Any = aggregators.get(name)(**PARAMETERS.get(name, {}))
    state = GlobalState(adapter={"w": torch.tensor([1.0, -2.0])})
    rule_state, clients = rule.init(state), [f"client-{k}" for k in range(CLIENTS)]
    for number in (1, 2):
        info = RoundInfo(branch="main", round=number, rounds=number, population=tuple(clients), seed=0)
        given: Any = rule.corrections(rule_state, clients, info, RATE) if isinstance(rule, ControlRule) else {}
        x, updates = state.adapter["w"].numpy(), []
        for k, client in enumerate(clients):
            correction = given.get(client, {}).get("w")
            w, steps = visit(k, x, 0.0 if correction is None else correction.numpy(), rule.proximal_mu)
            delta = {"w": torch.from_numpy(w) - state.adapter["w"]}
            updates.append(ClientUpdate(client_id=client, round=number, delta=delta, num_examples=k + 1, steps=steps))
        state, rule_state = rule.step(updates, state, rule_state, info)
    return list(state.adapter["w"].tolist())


def test_every_rule_in_a_flower_simulation(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, str(TESTS / "plain_flower_app.py")],
        env={**os.environ, "PLAIN_FLOWER_OUT": str(out), "FLWR_HOME": str(tmp_path / "flwr"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert out.is_file(), done.stdout[-2000:] + done.stderr[-4000:]
    results = json.loads(out.read_text())
    assert sorted(results) == sorted(aggregators.names())
    for name, found in results.items():
        np.testing.assert_allclose(found, by_hand(name), atol=1e-5, err_msg=name)
