"""Take times: process CPU time to compare work, wall time where a disk is waited for, best or median of several."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """One line of a benchmark: `ratio` is how many times faster than the other; None where there is no other."""

    benchmark: str
    case: str
    ours_s: float
    other: str | None = None
    other_s: float | None = None
    bound_s: float | None = None
    bound_ratio: float | None = None

    @property
    def ratio(self) -> float | None:
        """Return ``other_s / ours_s``."""
        return self.other_s / self.ours_s if self.other_s is not None else None

    @property
    def kept(self) -> bool:
        """Whether the bounds, if there are any, are kept."""
        fast = self.bound_s is None or self.ours_s <= self.bound_s
        return fast and (self.bound_ratio is None or self.ratio is None or self.ratio >= self.bound_ratio)

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the ratio as plain JSON values."""
        return {**asdict(self), "ratio": self.ratio}


def cpu_seconds(work: Callable[[], Any], repeat: int = 3) -> float:
    """Return the smallest process CPU time (user and system, all threads) of several runs."""
    return side_by_side(work, repeat=repeat)[0]


def side_by_side(*works: Callable[[], Any], repeat: int = 3) -> list[float]:
    """Return the `cpu_seconds` of each work. They take turns: a shared machine is not always equally fast."""

    def once(work: Callable[[], Any]) -> float:
        since = time.process_time()
        work()
        return time.process_time() - since

    rounds = [[once(work) for work in works] for _ in range(repeat)]
    return [min(times) for times in zip(*rounds, strict=True)]


def wall_median(work: Callable[[], Any], repeat: int) -> float:
    """Return the median wall time of several runs."""

    def once() -> float:
        since = time.perf_counter()
        work()
        return time.perf_counter() - since

    return statistics.median(once() for _ in range(repeat))
