"""Make a registered part from its name and the parameters that a scenario gives it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from oblivion.errors import ConfigError, InputError, nearest
from oblivion.outside import check_numbers
from oblivion.registry import Registry

_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
}
"""What a parameter that is annotated so takes; the annotations of this project are text."""


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
        kinds = {parameter.name: parameter.annotation for parameter in inspect.signature(part).parameters.values()}
    except ValueError:  # written in C: it will say itself what it takes
        kinds = dict.fromkeys(parameter.replace("-", "_") for parameter in parameters)
    arguments = {parameter.replace("-", "_"): value for parameter, value in parameters.items()}
    for parameter, value in arguments.items():
        if parameter not in kinds:
            raise ConfigError(f"{key}: '{name}' has no parameter '{parameter}'; {nearest(parameter, kinds)}")
        try:
            check_numbers(parameter, value)
        except ValueError as error:
            raise ConfigError(f"{key}: '{name}' with {error}") from None
        types, what = _KINDS.get(kinds[parameter], ((), ""))
        if types and type(value) not in types:  # true is no 1
            raise ConfigError(f"{key}: '{name}' with {parameter} = {value!r:.60} is not allowed; it must be {what}")
    try:
        made = part(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: '{name}' with {dict(parameters)}: {error}") from None
    lacks = [attribute for attribute in registry.needs if not hasattr(made, attribute)]
    if lacks:
        raise InputError(f"{registry.kind} '{name}' is not one: it has no {', no '.join(lacks)}")
    return made
