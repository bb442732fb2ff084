"""The outputs that an objective needs: their kinds, for the rows of a role, from the model or from a teacher.

A need is written ``<role>.<kind>`` for the model that is being trained, ``<role>.reference.<kind>`` for the adapter
before the visit, and ``<role>.base.<kind>`` for the base model without any adapter: ``"forget.logits"``,
``"retain.reference.hidden:3"``. A role alone, ``"retain"``, says that there must be rows in that role.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Role: TypeAlias = Literal["forget", "retain", "alternate"]
"""Rows to forget, rows to keep, and for each row to forget the same question with another answer, in the same order."""
Source: TypeAlias = Literal["own", "reference", "base"]
"""The model that is being trained, and its two teachers, which are constant."""

ROLES: tuple[Role, ...] = get_args(Role)
TEACHERS: tuple[Source, ...] = ("reference", "base")


@dataclass(frozen=True)
class Need:
    """One kind of output; the module's docstring says how it is written."""

    role: Role
    source: Source
    kind: str

    @property
    def key(self) -> str:
        """What the output is called among the outputs of its role, such as ``"reference.logits"``."""
        return self.kind if self.source == "own" else f"{self.source}.{self.kind}"


def parse_needs(needs: Iterable[str]) -> tuple[Need, ...]:
    """Return the outputs among some needs, sorted; roles that stand alone are not outputs.

    Raises
    ------
    ValueError
        If a need does not have the form that this module describes.
    """
    found = []
    for need in sorted(needs):
        role, dot, rest = need.partition(".")
        teacher = next((name for name in TEACHERS if rest.startswith(f"{name}.")), None)
        kind = rest.removeprefix(f"{teacher}.") if teacher else rest
        known = next((name for name in ROLES if name == role), None)
        if known is None or (dot and not kind):
            raise ValueError(
                f"needs {need!r} is not a need; it must be '<role>.<kind>', '<role>.reference.<kind>' or "
                f"'<role>.base.<kind>' with a role of {', '.join(ROLES)}"
            )
        if dot:
            found.append(Need(known, teacher or "own", kind))
    return tuple(found)


def by_source(needs: Iterable[str]) -> Mapping[Source, Mapping[Role, tuple[str, ...]]]:
    """Return the kinds of outputs by source and role; sources and roles of which nothing is needed are left out."""
    kinds: dict[Source, dict[Role, tuple[str, ...]]] = {}
    for need in parse_needs(needs):
        roles = kinds.setdefault(need.source, {})
        roles[need.role] = (*roles.get(need.role, ()), need.kind)
    return kinds
