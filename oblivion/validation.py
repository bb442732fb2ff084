"""Say in this project's own words what pydantic found wrong: the key, the value, and what is accepted there."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from oblivion.untrusted import shown

_BARE = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "nothing"}


def faults(model: type[BaseModel], error: ValidationError) -> Iterator[tuple[str, str, str, str]]:
    """Say what is wrong, once for each key.

    Yields
    ------
    tuple of str
        The kind of fault as pydantic calls it, the dotted key (empty for the whole), the value (short, in ASCII), and
        what is wrong with it.
    """
    told: set[tuple[str, ...]] = set()
    for item in error.errors(include_url=False):
        kind = item["type"]
        place, annotation = _find(model, item["loc"])
        if place in told:  # each member of a union complains
            continue
        told.add(place)
        if kind in ("extra_forbidden", "missing"):
            place, said = tuple(map(str, item["loc"])), "is missing" if kind == "missing" else "is unknown"
        elif kind == "value_error":
            said = item["msg"].removeprefix("Value error, ")
        else:
            said = f"expected {accepted(annotation)}"
        yield kind, ".".join(place), shown(item["input"]), said


def _find(model: type[BaseModel], path: tuple[int | str, ...]) -> tuple[tuple[str, ...], Any]:
    """Return the place of a fault, without the names of a union's members, and the type expected there."""
    annotation: Any = model
    place: list[str] = []
    for part in path:
        plain = _plain(annotation)
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            fields = {name: info for key, info in plain.model_fields.items() for name in (key, info.alias or key)}
            if part not in fields:
                break
            annotation = Annotated[fields[str(part)].annotation, fields[str(part)]]
        elif get_origin(plain) in (dict, tuple, list):
            inner = get_args(plain)
            annotation = inner[1] if get_origin(plain) is dict else inner[0]
        else:
            break
        place.append(str(part))
    return tuple(place), annotation


def _plain(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def bounds(annotation: Any) -> dict[str, float]:
    """Return a number's limits: ``ge`` (at least), ``gt`` (above), ``le`` (at most) and ``lt`` (below)."""
    found: dict[str, float] = {}
    while get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        for extra in metadata:
            for one in extra.metadata if isinstance(extra, FieldInfo) else [extra]:
                found.update({name: getattr(one, name) for name in ("ge", "gt", "le", "lt") if hasattr(one, name)})
    return found


def accepted(annotation: Any) -> str:
    """Say what a type accepts: ``a whole number from 1 to 512, or 'auto'``."""
    plain = _plain(annotation)
    if get_origin(plain) in (Union, types.UnionType):
        members = get_args(plain)
        if float in map(_plain, members):  # a whole number is a number, too
            members = tuple(member for member in members if _plain(member) is not int)
        return ", or ".join(map(accepted, members))
    if get_origin(plain) is Literal:
        return " or ".join(repr(value) for value in get_args(plain))
    if get_origin(plain) in (tuple, list):
        return f"a list, each {accepted(get_args(plain)[0])}"
    if plain in (int, float):
        limits = bounds(annotation)
        words = {"gt": "above", "ge": "from" if "le" in limits else "of at least", "lt": "below", "le": "to"}
        parts = [f"{words[name]} {_number(limits[name])}" for name in words if name in limits]
        joined = " and ".join(parts) if {"gt", "lt"} & limits.keys() else " ".join(parts)
        return f"{_BARE[plain]} {joined.replace('and to', 'and up to')}".strip()
    return _BARE.get(plain, "a table of names and values")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
