"""The errors that a user can act on, each with its exit code on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OblivionError(Exception):
    """The base of every error that this project raises on purpose.

    The message says what is wrong, where, and what to do; `exit_code` is what the command line ends with.
    """

    exit_code = 1


class ConfigError(OblivionError):
    """A wrong key, value or name in a scenario, in ``--set`` or on the command line."""

    exit_code = 2


class InputError(OblivionError):
    """A file, model or data set that is missing or malformed."""

    exit_code = 3


class IntegrityError(OblivionError):
    """Something that was stored or received is not what it claims to be."""

    exit_code = 4


class PlanRefusedError(OblivionError):
    """A removal that cannot be done as asked; the message names the requirement that is not met."""

    exit_code = 5


class FederationError(OblivionError):
    """A round that could not be completed: too few clients answered, or a host failed for good."""


def plural(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 client``, ``8 clients``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which names are known, the most similar one first.

    Parameters
    ----------
    name : str
        The name that was asked for.
    known : iterable of str
        The names that exist.

    Returns
    -------
    str
        For instance ``"did you mean 'fedavg'? Known: fedadam, fedavg"``.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names) if names else '(none)'}"
