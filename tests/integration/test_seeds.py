"""The demonstration over seeds: how the rate is chosen, what the table says, and that what is done is not run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from metric_rows import TOFU

from oblivion.errors import ConfigError, InputError
from oblivion.run.records import CostRecord, Measure, ModelRecord, RequestRecord
from oblivion.run.scenarios import scenario_path
from simulations import rehearsal
from simulations import seeds as module
from simulations.rehearsal import choose, exit_code
from simulations.seeds import SEEDS, main, share, table

SMALL = {
    "data.parameters.rows_per_client": 6,
    "train.local-epochs": 1,
    "federation.rounds": 4,
    "evaluate.limit": 4,
    "evaluate.max-new-tokens": 2,
}


def model(probability: float, steps: float | None, tokens: float | None) -> ModelRecord:
    return ModelRecord(
        central={"forget_Q_A_Prob": Measure(value=probability)},
        clients={"a": {"probability": Measure(value=probability / 2)}, "b": {"probability": Measure(value=0.5)}},
        cost=CostRecord(fraction=steps, token_fraction=tokens),
    )


def request(probability: float) -> RequestRecord:
    models = {
        "oracle": model(0.25, 1, 1),
        "original": model(probability, None, None),
        "local": model(0.125, 0.2, 0.3),
    }
    return RequestRecord(id="req-1", client="b", models=models)


def test_the_rate_nearest_to_an_auc_of_one_half_is_taken_and_of_two_the_smaller() -> None:
    assert choose({1e-4: 0.9, 3e-4: 0.55, 1e-3: 0.1}) == 3e-4
    assert choose({1e-3: 0.375, 1e-4: 0.625}) == 1e-4  # over-forgetting is as far off as not forgetting


def test_an_error_of_the_command_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["nosuch", "--client", "client-2", "--values", "1e-4", "--out", str(tmp_path / "run")]
    assert exit_code(lambda: rehearsal.main(asked)) == ConfigError.exit_code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: unknown scenario 'nosuch'") and err.count("\n") == 1


def test_the_table_has_means_and_ranges_worked_out_by_hand() -> None:
    lines = table({1: request(0.5), 2: request(0.75)}, {1: {"rows": 9, "rank": 1, "of": 8}}, TOFU).splitlines()
    assert lines[0] == "| | original | oracle | `local` |"
    assert lines[2].endswith("| 0.62 (0.50 to 0.75) | 0.25 | 0.12 |")
    assert lines[3].endswith("|  |  |  |")  # extraction strength was not measured
    others = next(line for line in lines if line.startswith("| the other clients' probability"))
    assert others.endswith("| 0.31 (0.25 to 0.38) | 0.12 | 0.06 |")
    steps, tokens = (next(line for line in lines if f"cost in {unit}" in line) for unit in ("client-steps", "tokens"))
    assert steps.endswith("|  | 1.00 | 0.20 |")
    assert tokens.endswith("|  | 1.00 | 0.30 |")
    assert lines[-1] == "| 1 | 9 | 1 of 8 (the most) |"


def test_the_demonstration_is_one_of_the_five_seeds_and_its_client_has_neither_the_most_rows_nor_the_fewest() -> None:
    path = scenario_path("demo")
    ranks = {seed: share(path, seed, {}) for seed in SEEDS}
    shown = module.load_config(path).seed
    middling = [seed for seed, own in ranks.items() if 1 < own["rank"] < own["of"]]
    assert shown == middling[0]
    assert ranks[shown] == {"rows": 29, "rank": 2, "of": 8}  # as demo.toml says


def committed(folder: Path) -> int:
    return sum(path.read_text().count("round_committed") for path in folder.rglob("events.jsonl"))


@pytest.mark.slow
def test_one_command_makes_the_table_and_does_not_repeat_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "SEEDS", (1, 2))
    monkeypatch.setattr(module, "RATES", (1e-4, 1e-3))
    assert main(["--out", str(tmp_path), "--workers", "1"], SMALL) == 0
    found = json.loads((tmp_path / "seeds.json").read_text())
    assert set(found["rehearsal"]["auc"]) == {"0.0001", "0.001"} and set(found["seeds"]) == {"1", "2"}
    assert all(set(one["models"]) > {"original", "oracle", "rollback", "local"} for one in found["seeds"].values())
    for one in found["seeds"].values():
        exact = one["models"]["rollback"]["central"]["forget_Q_A_Prob"]["value"]
        assert exact == one["models"]["oracle"]["central"]["forget_Q_A_Prob"]["value"]
    rates = [
        module.load_config(tmp_path / f"seed-{seed}" / "config.toml").forget.methods["local"]["learning-rate"]
        for seed in (1, 2)
    ]
    assert rates == [found["rehearsal"]["taken"]] * 2
    text, rounds = (tmp_path / "seeds.md").read_text(), committed(tmp_path)
    assert main(["--out", str(tmp_path), "--workers", "1"], SMALL) == 0
    assert (tmp_path / "seeds.md").read_text() == text and committed(tmp_path) == rounds > 0
    with pytest.raises(InputError, match="rehearsal was run with other settings"):
        main(["--out", str(tmp_path)], {**SMALL, "train.local-epochs": 2})
    assert "seed 2: done" in capsys.readouterr().out
