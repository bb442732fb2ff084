"""The matrix of rules, schemes and removals: one small cell of each kind, and what is taken up again."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.schemes import schemes
from oblivion.errors import ConfigError, InputError
from server.prepare import check_names
from simulations import matrix as module
from simulations.matrix import cell_config, main, product_distance, read_matrix, run_cell, table

SHIPPED = Path(module.__file__).with_suffix(".toml")


def test_the_shipped_matrix_has_every_rule_and_scheme_and_only_combinations_that_run_or_say_why() -> None:
    matrix = read_matrix(SHIPPED)
    assert set(matrix["rules"]) == set(aggregators.names()) and set(matrix["schemes"]) == set(schemes.names())
    for rule in matrix["rules"]:
        for scheme in matrix["schemes"]:
            config = cell_config(matrix, rule, scheme)
            assert (config.federation.aggregator, config.lora.scheme) == (rule, scheme)
        check_names(cell_config(matrix, rule, "fedit"))


def factors(seed: int, rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x.lora_A.weight": (rank, 5), "x.lora_B.weight": (4, rank)}
    shapes |= {"y.lora_A.weight": (rank, 3), "y.lora_B.weight": (6, rank)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def dense(adapter: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    return adapter[f"{layer}.lora_B.weight"].double() @ adapter[f"{layer}.lora_A.weight"].double()


def test_the_distance_is_that_of_the_dense_products_whatever_the_ranks() -> None:
    one, other = factors(0, 2), factors(1, 3)
    expected = math.sqrt(sum(float((dense(one, x) - dense(other, x)).square().sum()) for x in ("x", "y")))
    assert product_distance(one, other) == pytest.approx(expected)
    # by hand: B A = 2 * 3 = 6 against 1 * 2 = 2
    pair = [{"x.lora_A.w": torch.tensor([[a]]), "x.lora_B.w": torch.tensor([[b]])} for a, b in ((3.0, 2.0), (2.0, 1.0))]
    assert product_distance(*pair) == pytest.approx(4.0)


def test_other_factors_of_the_same_product_are_no_distance_away() -> None:
    one = factors(2, 3)
    turned = {n: t.double() for n, t in one.items()}
    gauge = torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for name in turned:
        turned[name] = gauge.inverse() @ turned[name] if "lora_A" in name else turned[name] @ gauge
    assert product_distance(one, turned) < 1e-4


@pytest.fixture
def small(micro_scenario: Path) -> dict[str, Any]:
    scenario = tomllib.loads(micro_scenario.read_text())
    scenario["forget"]["methods"] = {"rollback": {}, "exclude": {"recovery-rounds": 1}}
    rules = {"fedadam": {}, "krum": {}, "scaffold": {}, "fednova": {"train": {"optimizer": "sgd"}}}
    return {"scenario": scenario, "schemes": {"fedit": {}}, "rules": rules}


def test_a_cell_is_run_once_and_measured_beside_the_oracle(small: dict[str, Any], tmp_path: Path) -> None:
    cell = run_cell(small, "fednova", "fedit", tmp_path)
    rollback, exclude = cell["methods"]["rollback"], cell["methods"]["exclude"]
    assert rollback["exact"] and rollback["distance"] == 0 and not rollback["not_covered"]
    assert not exclude["exact"] and exclude["distance"] > 0 and "global adapter" in exclude["not_covered"]
    assert cell["before"] > 0 and rollback["cost"] == pytest.approx(2 / 3, abs=0.1)
    events = (tmp_path / "fednova+fedit" / "events.jsonl").read_bytes()
    assert run_cell(small, "fednova", "fedit", tmp_path) == cell
    assert (tmp_path / "fednova+fedit" / "events.jsonl").read_bytes() == events, "nothing ran again"
    # interrupted before its result was written: the run is taken up, and comes to the same
    (tmp_path / "fednova+fedit" / module.CELL).unlink()
    assert run_cell(small, "fednova", "fedit", tmp_path) == cell


def test_what_is_refused_says_why_and_runs_nothing(small: dict[str, Any], tmp_path: Path) -> None:
    few = run_cell(small, "krum", "fedit", tmp_path)
    assert "'krum' needs at least 5 clients" in few["refused"]
    adamw = run_cell(small, "scaffold", "fedit", tmp_path)
    assert "train.optimizer = 'sgd'" in adamw["refused"]
    assert list(tmp_path.iterdir()) == []
    small["scenario"]["federation"]["clients"] = 5
    small["scenario"]["federation"]["clients-per-round"] = 5
    small["scenario"]["federation"]["joins"] = {}
    small["scenario"]["forget"]["methods"] = ["rollback"]
    alone = run_cell(small, "krum", "fedit", tmp_path)
    assert "without client-2 round 1 has 4" in alone["refused"]
    assert table([few], ["rollback"]).splitlines()[3:] == ["Refused before anything ran: `krum` with `fedit`."]


def test_a_removal_that_is_refused_leaves_the_others(small: dict[str, Any], tmp_path: Path) -> None:
    methods = {"exclude": {"recovery-rounds": 1}, "local": {"objective": "grad_diff"}}
    small["scenario"]["forget"] = {"methods": methods, "client": "client-2"}
    del small["scenario"]["data"]["public"]
    cell = run_cell(small, "fedadam", "fedit", tmp_path)
    assert "data.public" in cell["methods"]["local"]["refused"] and cell["methods"]["exclude"]["distance"] > 0
    assert table([cell], ["exclude", "local"]).splitlines()[2].split(" | ")[4] == "refused"


def test_the_command_writes_both_tables(small: dict[str, Any], tmp_path: Path) -> None:
    path, out = tmp_path / "matrix.toml", tmp_path / "out"
    import tomli_w

    small["rules"] = {"scaffold": {}, "fedadam": {}}
    path.write_text(tomli_w.dumps(small))
    assert main([str(path), "--out", str(out), "--workers", "1"]) == 0
    cells = json.loads((out / "matrix.json").read_text())
    assert [(c["rule"], "refused" in c) for c in cells] == [("scaffold", True), ("fedadam", False)]
    lines = (out / "matrix.md").read_text().splitlines()
    assert lines[0] == "| rule | scheme | before | `rollback` | `exclude` | not covered |"
    assert "**exact** at" in lines[2] and "`exclude`: global adapter" in lines[2] and "`scaffold` with" in lines[4]


def test_a_file_that_is_no_matrix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_matrix(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("rules = ")
    with pytest.raises(InputError, match="not a TOML file"):
        read_matrix(tmp_path / "bad.toml")
    (tmp_path / "half.toml").write_text("[scenario]\n[rules]\n")
    with pytest.raises(ConfigError, match=r"the table \[schemes\] is missing"):
        read_matrix(tmp_path / "half.toml")
