"""The study of hostile clients: what each attack sends, and that it runs and goes on where it stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from oblivion.aggregation.gate import update_norm
from oblivion.aggregation.rules import aggregators
from oblivion.types import ClientUpdate
from simulations import attacks
from simulations.attacks import ATTACKS, CLIENTS, HOSTILE, RULES, attacked, hostile, little_is_enough_z, main, scenario

VALUES = (1.0, 2.0, 3.0, 6.0)


def updates() -> list[ClientUpdate]:
    return [
        ClientUpdate(client_id=f"client-{k}", round=1, delta={"w": torch.tensor([v, -v])}, num_examples=1, steps=1)
        for k, v in enumerate(VALUES)
    ]


def sent(attack: str) -> list[float]:
    return [float(u.delta["w"][0]) for u in attacked(updates(), attack, ("client-3",), 0)]


def test_what_each_attack_sends_by_hand() -> None:
    assert sent("none") == list(VALUES)
    assert sent("sign flip") == [1, 2, 3, -6] and sent("scaling") == [1, 2, 3, 60]
    # honest 1, 2, 3: mean 2, standard deviation 1; z of 20 clients and 4 attackers: the 9/16 quantile
    assert sent("little is enough") == [1, 2, 3, pytest.approx(2 - little_is_enough_z())]
    assert little_is_enough_z() == pytest.approx(0.1573, abs=1e-4)
    noisy = attacked(updates(), "noise", ("client-3",), 0)
    assert update_norm(noisy[3].delta) == pytest.approx(100 * 6 * math.sqrt(2), rel=1e-5)
    assert all(torch.equal(a.delta["w"], b.delta["w"]) for a, b in zip(noisy[:3], updates()[:3], strict=True))


def test_every_seed_has_its_own_attackers_and_every_rule_bears_as_many() -> None:
    assert len({client for seed in attacks.SEEDS for client in hostile(seed)}) == len(attacks.SEEDS) * HOSTILE
    for rule, parameters in RULES.items():
        made: Any = aggregators.get(rule)(**parameters)
        assert made.needed() <= CLIENTS
        bears = made.needed(HOSTILE) <= CLIENTS
        assert bears == (rule not in ("fedavg", "clipped_mean")), "one bounds what hostile clients can do, one nothing"
        assert scenario("iid", rule, 0).federation.aggregator == rule


def test_the_study_runs_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One real cell; then a study of which all but it is done runs nothing else."""
    monkeypatch.setattr(attacks, "ROUNDS", 1)
    loss = attacks.run_cell(("iid", "median", "sign flip", 0))
    assert 0 < loss < 20
    cells = [
        {"partition": p, "rule": r, "attack": a, "seed": s, "loss": 1.0 + ATTACKS.index(a) / 10}
        for p in attacks.PARTITIONS
        for r in RULES
        for a in ATTACKS
        for s in attacks.SEEDS
    ]
    (tmp_path / "attacks.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    assert main(["--out", str(tmp_path), "--workers", "1"]) == 0
    page = (tmp_path / "attacks.md").read_text()
    assert "| `krum` | 1.000 | +10.0 % (+10.0 % to +10.0 %) |" in page and page.count("\n| `") == 2 * len(RULES)
