"""Checks of a rule's parameters; what they raise becomes a message that names the config key."""

from __future__ import annotations

import math


def check_positive(name: str, value: float) -> None:
    """Refuse what is not a finite number above 0.

    Raises
    ------
    ValueError
        Naming the parameter and its value.
    """
    if isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name} = {value!r} is not allowed; it must be above 0 and finite")


def check_at_least_zero(name: str, value: float) -> None:
    """Refuse what is not a finite number of at least 0.

    Raises
    ------
    ValueError
        Naming the parameter and its value.
    """
    if isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{name} = {value!r} is not allowed; it must be at least 0 and finite")


def check_decay(name: str, value: float) -> None:
    """Refuse what is not a number from 0 up to, and without, 1.

    Raises
    ------
    ValueError
        Naming the parameter and its value.
    """
    if isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{name} = {value!r} is not allowed; it must be at least 0 and below 1")


def check_count(name: str, value: int, least: int) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises
    ------
    ValueError
        Naming the parameter and its value.
    """
    # `type(...) is int` because True is an int to isinstance.
    if type(value) is not int or value < least:
        raise ValueError(f"{name} = {value!r} is not allowed; it must be a whole number of at least {least}")
