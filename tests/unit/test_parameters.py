"""The checks of parameters: their limits, and what is no number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from oblivion.aggregation.rules import aggregators
from oblivion.errors import ConfigError
from oblivion.parameters import (
    ParameterError,
    build,
    check_at_least_zero,
    check_choice,
    check_count,
    check_decay,
    check_finite,
    check_positive,
)


@pytest.mark.parametrize(
    ("check", "good", "bad", "words"),
    [
        (lambda n, v: check_finite(n, v), (-1e300, 0, 2), (), "a finite number"),
        (lambda n, v: check_positive(n, v), (1e-300, 1, 1e300), (0, -1), "above 0 and finite"),
        (lambda n, v: check_positive(n, v, 5), (5, 0.1), (5.1, 0), "above 0 and at most 5"),
        (lambda n, v: check_at_least_zero(n, v), (0, 0.0, 7), (-1e-300,), "at least 0 and finite"),
        (lambda n, v: check_decay(n, v), (0, 0.999), (1, 1.0, -0.1), "at least 0 and below 1"),
        (lambda n, v: check_count(n, v, 2), (2, 10**9), (1, 2.0), "a whole number of at least 2"),
        (lambda n, v: check_count(n, v, 0, 3), (0, 3), (-1, 4), "a whole number from 0 to 3"),
    ],
)
def test_what_a_check_takes_and_what_it_refuses(
    check: Callable[[str, Any], None], good: tuple[Any, ...], bad: tuple[Any, ...], words: str
) -> None:
    for value in good:
        check("rate", value)
    for value in (*bad, True, "1", None, math.nan, math.inf, -math.inf):
        with pytest.raises(ParameterError, match=f"^rate = .* is not allowed; it must be {words}$"):
            check("rate", value)


def test_a_choice_names_what_is_allowed() -> None:
    check_choice("schedule", "linear", ("linear", "constant"))
    with pytest.raises(ParameterError, match=r"^schedule = 'steps' is not .*; it must be one of constant, linear$"):
        check_choice("schedule", "steps", ("linear", "constant"))


def test_one_parameter_in_both_spellings_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^federation\.parameters: 'learning-rate' is set twice; leave one out$"):
        build(aggregators, "fedadam", {"learning_rate": 0.1, "learning-rate": 0.2}, "federation.parameters")
