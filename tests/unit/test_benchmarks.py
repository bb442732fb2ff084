"""The benchmarks run: here with small numbers, and without a word on how long anything takes.

Not here, because they start processes or need seconds for imports: whole runs (`overhead`, and two cases of `scaling`)
and the loop with a `transformers.Trainer` (`rounds`).
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import aggregation, evaluation, gpu, ledger, overhead, rounds, scaling
from benchmarks.measure import side_by_side

TINY = rounds.Case("tiny", layers=1, width=32, rows=2, batch=1, clients=2)


def small(monkeypatch: pytest.MonkeyPatch, module: Any, **numbers: Any) -> None:
    for name, value in numbers.items():
        monkeypatch.setattr(module, name, value)


def test_aggregation_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, aggregation, UPDATES=2, RANK=2, LAYERS=1, LINEARS=((4, 3),))
    measured = list(aggregation.run())
    assert {result.case for result in measured} == {"2 updates of 0.0 M values"} and len(measured) == 3
    assert all(result.ours_s > 0 for result in measured)


def test_evaluation_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, evaluation, SHAPE=TINY, EVERY_BATCH=2, QUESTIONS=2, WRONG=2, NEW_TOKENS=2, PROMPTS=2)
    measured = list(evaluation.run())
    assert [result.case for result in measured] == [
        "seven metrics on 2 rows, tiny",
        "truth ratio: 2 questions with 4 answers, tiny",
        "generation of 2 x 2 tokens, tiny",
    ]
    assert all(result.ratio for result in measured)


def test_rounds_on_a_gpu_are_measured_on_a_small_model_too(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, gpu, CASES=(gpu._Case(clients=2, rows=2, batch=1, seconds=1.0),))
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    (measured,) = gpu.run()
    assert "no GPU, small model: 2 clients, 1 rows, batch 1" in measured.case and measured.ratio


def test_the_ledger_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, ledger, LAYERS=1, SHAPE=(2, 2), ENTRIES=20, BATCH=10, COMMITS=3)
    measured = list(ledger.run())
    assert [result.case.split(",")[0] for result in measured] == [
        "one contribution of 16 MiB",
        "one commit",
        "verification of 100",
    ]
    assert all(result.ours_s > 0 for result in measured)


def test_the_bare_loop_of_a_round_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, overhead, EPOCHS=1)
    assert overhead._bare_loop() > 0


def test_rounds_are_measured() -> None:
    rows = rounds._rows(TINY)
    assert min(side_by_side(rounds._ours(TINY, rows), rounds._plain(TINY, rows), repeat=1)) > 0


def test_growth_is_measured() -> None:
    measured = scaling._case("tiny", scaling._Shape(clients=2, length=8, rank=2, cohort=2))
    assert measured.case.startswith("tiny (") and measured.ours_s > 0
