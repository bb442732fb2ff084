"""Make a removal with its parameters from a table of settings in a scenario, ``[forget.methods.NAME]``.

A table holds the removal's own keyword arguments and, if it names an objective, those of the objective. The key
``method`` says which removal it is; without it, that is the table's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from oblivion.errors import ConfigError, nearest
from oblivion.objectives import objectives
from oblivion.objectives.terms import objective_from
from oblivion.parameters import build
from oblivion.removal import removals
from oblivion.removal.plan import Removal

_KEY = "forget.methods"
_METHOD, _OBJECTIVE, _PARAMETERS = "method", "objective", "parameters"


def method_of(name: str, settings: Mapping[str, Any]) -> str:
    """Return the registered removal that a table of settings is for.

    Raises
    ------
    ConfigError
        If neither ``method`` nor the table's name says it.
    """
    key, known = f"{_KEY}.{name}", removals.names()
    if _METHOD not in settings:
        if name not in known:
            raise ConfigError(
                f"{key}: no removal has this name; {nearest(name, known)}. A name of your own needs the key 'method'"
            )
        return name
    method = settings[_METHOD]
    if method not in known:
        raise ConfigError(f"{key}.method = {method!r:.60}: unknown removal; {nearest(str(method)[:60], known)}")
    if name in known and method != name:
        raise ConfigError(f"{key}.method = '{method}': '{name}' is another removal; choose another name for the table")
    return str(method)


def removal_from(name: str, settings: Mapping[str, Any]) -> Removal:
    """Make the removal that a table of settings describes.

    Parameters
    ----------
    name : str
        The table's name.
    settings : mapping
        The table.

    Raises
    ------
    ConfigError
        If the removal or a parameter is unknown, is given twice, or has a value that is refused.
    """
    key, method = f"{_KEY}.{name}", method_of(name, settings)
    given: dict[str, Any] = {}
    for setting, value in settings.items():
        parameter = setting.replace("-", "_")
        if parameter in given:
            raise ConfigError(f"{key}: '{setting}' is set twice; leave one out")
        given[parameter] = value
    given.pop(_METHOD, None)
    own = inspect.signature(removals.get(method)).parameters
    if not {_OBJECTIVE, _PARAMETERS} <= own.keys():
        _check_known(key, f"'{method}'", given, own, f"'{method}' trains with no objective")
        plain: Removal = build(removals, method, given, key)
        return plain
    objective = given.get(_OBJECTIVE, own[_OBJECTIVE].default)
    if not isinstance(objective, str) or objective not in objectives.names():
        raise ConfigError(
            f"{key}.objective = {objective!r:.60}: unknown objective; "
            f"{nearest(str(objective)[:60], objectives.names())}"
        )
    names = [one for one in own if one != _PARAMETERS]
    its = inspect.signature(objectives.get(objective)).parameters
    _check_known(key, f"'{method}' with '{objective}'", given, [*names, *its], f"'{objective}' does not")
    parameters = {parameter: value for parameter, value in given.items() if parameter not in names}
    objective_from(objective, parameters, key)
    arguments = {parameter: value for parameter, value in given.items() if parameter in names}
    removal: Removal = build(removals, method, {**arguments, _PARAMETERS: parameters}, key)
    return removal


def check_methods(methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Check every table of settings, and that no two of them have one meaning.

    Raises
    ------
    ConfigError
        Naming the table or tables.
    """
    made: dict[str, tuple[str, Removal]] = {}
    for name, settings in methods.items():
        this = (method_of(name, settings), removal_from(name, settings))
        for other, known in made.items():
            if known == this:
                raise ConfigError(f"{_KEY}.{other} and {_KEY}.{name} have one meaning; leave one out")
        made[name] = this


def _check_known(key: str, what: str, given: Collection[str], known: Collection[str], why: str) -> None:
    """Refuse a parameter that is none of `known`; of an objective's, the message says why it has no place here."""
    for parameter in given:
        if parameter in known:
            continue
        of = [name for name in objectives.names() if parameter in inspect.signature(objectives.get(name)).parameters]
        if of:
            raise ConfigError(
                f"{key}: {what} has no parameter '{parameter}': the objective '{of[0]}' has it, and {why}"
            )
        raise ConfigError(f"{key}: {what} has no parameter '{parameter}'; {nearest(parameter, known)}")
