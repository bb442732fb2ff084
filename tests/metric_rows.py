"""Rows of an evaluation, for tests of metrics."""

from __future__ import annotations

from typing import Any

from oblivion.metrics.engine.context import ScoredRow
from oblivion.metrics.suites import make_suite

TOFU = make_suite("tofu")


def scored_row(index: int, target: str = "", **outputs: Any) -> ScoredRow:
    """A row with outputs by kind."""
    return ScoredRow(index=index, target=target, outputs=outputs)
