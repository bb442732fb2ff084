"""The benchmarks run: here with small numbers, and without a word on how long anything takes."""

from __future__ import annotations

import pytest

from benchmarks import ledger


def test_the_ledger_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LAYERS": 1, "SHAPE": (2, 2), "ENTRIES": 20, "BATCH": 10, "COMMITS": 3}.items():
        monkeypatch.setattr(ledger, name, value)
    measured = list(ledger.run())
    assert [result.case.split(",")[0] for result in measured] == [
        "one contribution of 16 MiB",
        "one commit",
        "verification of 100",
    ]
    assert all(result.ours_s > 0 for result in measured)
