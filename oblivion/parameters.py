"""Make a registered part from its name and the parameters that a scenario gives it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from oblivion.errors import ConfigError, InputError, nearest
from oblivion.registry import Registry


def build(registry: Registry, name: str, parameters: Mapping[str, Any], key: str) -> Any:
    """Call the class registered as `name` with `parameters` as keyword arguments.

    Parameters
    ----------
    registry : Registry
        Where the name is looked up.
    name : str
        The part.
    parameters : mapping
        Keyword arguments; kebab-case keys are taken as their snake_case names.
    key : str
        The config key the parameters come from, for messages.

    Raises
    ------
    ConfigError
        If the name or a parameter is unknown, or a value is refused.
    InputError
        If the part comes from another package and cannot be loaded, or lacks what such a part has.
    """
    part = registry.get(name)
    try:
        known = list(inspect.signature(part).parameters)
    except ValueError:  # written in C: it will say itself what it takes
        known = list(parameters)
    arguments = {parameter.replace("-", "_"): value for parameter, value in parameters.items()}
    for parameter in arguments:
        if parameter not in known:
            raise ConfigError(f"{key}: '{name}' has no parameter '{parameter}'; {nearest(parameter, known)}")
    try:
        made = part(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: '{name}' with {dict(parameters)}: {error}") from None
    lacks = [attribute for attribute in registry.needs if not hasattr(made, attribute)]
    if lacks:
        raise InputError(f"{registry.kind} '{name}' is not one: it has no {', no '.join(lacks)}")
    return made
