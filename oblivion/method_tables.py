"""The setting ``forget.methods``: tables of settings by name, for which a list of names is short."""

from __future__ import annotations

import re
from typing import Any

from oblivion.untrusted import shown

METHODS = "forget.methods"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_OTHER_MODEL = re.compile(r"original|learned|oracle(-.*)?")


def method_tables(value: Any) -> Any:
    """Return tables of settings by name; a list of names, on the command line also ``a,b``, is short for empty ones.

    Raises
    ------
    ValueError
        If a name is there twice.
    """
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, dict):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError("expected a list of names, or a table of settings for each name")
    for name in value:
        if value.count(name) > 1:
            raise ValueError(f"'{name}' is named twice; leave one out")
    return {name: {} for name in value}


def check_method_names(methods: dict[str, Any]) -> dict[str, Any]:
    """Return tables whose names can be those of trials: a folder, and the row of a model in tables.

    Raises
    ------
    ValueError
        Naming the first one that cannot.
    """
    for name in methods:
        if not _NAME.fullmatch(name):
            raise ValueError(f"the name {shown(name)} is no name of up to 64 letters, digits, '_', '-' and '.'")
        if _OTHER_MODEL.fullmatch(name):
            raise ValueError(f"the name '{name}' is that of another model; choose another one")
    return methods


def set_over(under: Any, value: Any) -> Any:
    """Return what the setting becomes: a list chooses names, with their settings where they have some.

    A table adds to what is there. What is wrong with either is left to the validation, which knows the key.
    """
    try:
        under, chosen = method_tables(under), method_tables(value)
    except ValueError:
        return value
    if not isinstance(under, dict) or not isinstance(chosen, dict):
        return value
    return {**under, **value} if isinstance(value, dict) else {name: under.get(name, {}) for name in chosen}
