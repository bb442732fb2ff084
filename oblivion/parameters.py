"""Parameters of registered parts: how a scenario's values reach a part, and the checks of their ranges.

Every kind of part takes its parameters as keyword arguments of its class or function. `build` makes an object of a
class, `call` calls a function that is the part (a data set's loader, a partition); both check names, kinds and ranges
in one way, before anything else of the part runs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

from oblivion.errors import ConfigError, InputError, nearest
from oblivion.registry import Registry
from oblivion.untrusted import check_numbers

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
}
"""What a parameter with this annotation takes."""


class ParameterError(ValueError):
    """A parameter's value that is out of range; `build` and `call` add the setting that it comes from."""


def build(registry: Registry, name: str, parameters: Mapping[str, Any], key: str) -> Any:
    """Call the class registered as `name` with `parameters` as keyword arguments.

    Parameters
    ----------
    registry : Registry
        The table in which the name is looked up.
    name : str
        The part.
    parameters : mapping
        Keyword arguments; kebab-case keys are taken as their snake_case names.
    key : str
        The setting that the parameters come from, for messages.

    Raises
    ------
    ConfigError
        If the name or a parameter is unknown, or a value is refused.
    InputError
        If the part comes from another package and cannot be loaded, or lacks what such a part has.
    """
    part = registry.get(name)
    arguments = _arguments(registry, name, parameters, key)
    if lacks := sorted(getattr(part, "__abstractmethods__", ())):
        raise InputError(f"{registry.kind} '{name}' is not valid: it has no {', no '.join(lacks)}")
    try:
        made = part(**arguments)
    except ParameterError as error:
        raise ConfigError(f"{key}: '{name}' with {error}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: '{name}' with {dict(parameters)}: {error}") from None
    registry.check_has(name, made, registry.needs)
    return made


def call(registry: Registry, name: str, parameters: Mapping[str, Any], key: str, subject: Any, **given: Any) -> Any:
    """Call the function registered as `name` on `subject`, with what is given and `parameters` as keyword arguments.

    Parameters
    ----------
    registry, name, parameters, key
        See `build`.
    subject : object
        The first argument of the function.
    **given
        Keyword arguments that every part of this kind has and no scenario can set.

    Raises
    ------
    ConfigError
        If the name or a parameter is unknown, or a value is refused.
    InputError
        If the part comes from another package and cannot be loaded, or does not take what such a part is given.
    """
    part = registry.get(name)
    arguments = _arguments(registry, name, parameters, key, given)
    try:
        return part(subject, **given, **arguments)
    except ParameterError as error:
        raise ConfigError(f"{key}: '{name}' with {error}") from None


def _arguments(
    registry: Registry, name: str, parameters: Mapping[str, Any], key: str, given: Collection[str] | None = None
) -> dict[str, Any]:
    """Return keyword arguments for a part, if it has parameters of these names that take values of these kinds.

    `given` are the names that every part of a function's kind has after its first parameter, and no scenario can set.
    """
    arguments: dict[str, Any] = {}
    for parameter, value in parameters.items():
        spelled = parameter.replace("-", "_")
        if spelled in arguments:
            raise ConfigError(f"{key}: '{parameter}' is set twice; leave one out")
        arguments[spelled] = value
    try:
        own = list(inspect.signature(registry.get(name)).parameters.values())[0 if given is None else 1 :]
        kinds = {one.name: _text(one.annotation) for one in own}
    except ValueError:  # it is written in C, and will say itself what it takes
        kinds = dict.fromkeys((*arguments, *(given or ())), "")
    lacks = [parameter for parameter in given or () if parameter not in kinds]
    if lacks:
        raise InputError(f"{registry.kind} '{name}' is not valid: it takes no {', no '.join(lacks)}")
    kinds = {parameter: kind for parameter, kind in kinds.items() if parameter not in (given or ())}
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
    return arguments


def _text(annotation: Any) -> str:
    """Return an annotation as text, which it is already in a module that begins with ``from __future__``."""
    return annotation if isinstance(annotation, str) else str(getattr(annotation, "__name__", ""))


def check_finite(name: str, value: float) -> None:
    """Refuse a value that is not a finite number.

    Raises
    ------
    ParameterError
        The message names the parameter and its value.
    """
    if not _is_number(value) or not -math.inf < value < math.inf:
        raise ParameterError(f"{name} = {value!r} is not allowed; it must be a finite number")


def check_positive(name: str, value: float, most: float = math.inf) -> None:
    """Refuse a value that is not a finite number above 0 and at most `most`.

    Raises
    ------
    ParameterError
        The message names the parameter and its value.
    """
    if not _is_number(value) or not 0 < value < math.inf or value > most:
        limit = f"at most {most:g}" if most < math.inf else "finite"
        raise ParameterError(f"{name} = {value!r} is not allowed; it must be above 0 and {limit}")


def check_at_least_zero(name: str, value: float) -> None:
    """Refuse a value that is not a finite number of at least 0.

    Raises
    ------
    ParameterError
        The message names the parameter and its value.
    """
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ParameterError(f"{name} = {value!r} is not allowed; it must be at least 0 and finite")


def check_decay(name: str, value: float) -> None:
    """Refuse a value that is not a number of at least 0 and below 1.

    Raises
    ------
    ParameterError
        The message names the parameter and its value.
    """
    if not _is_number(value) or not 0 <= value < 1:
        raise ParameterError(f"{name} = {value!r} is not allowed; it must be at least 0 and below 1")


def check_count(name: str, value: int, least: int, most: int | None = None) -> None:
    """Refuse a value that is not a whole number from `least` to `most`.

    Raises
    ------
    ParameterError
        The message names the parameter and its value.
    """
    # `type(...) is int` because True is an int to isinstance.
    if type(value) is not int or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ParameterError(f"{name} = {value!r} is not allowed; it must be a whole number {limits}")


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Refuse a value that is not one of some names.

    Raises
    ------
    ParameterError
        The message names the parameter, its value and the names that are allowed.
    """
    if value not in allowed:
        raise ParameterError(f"{name} = {value!r} is not allowed; it must be one of {', '.join(sorted(allowed))}")


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
