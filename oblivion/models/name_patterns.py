r"""Match patterns of layer names that come with an adapter, in a time that only grows with the name's length.

PEFT hands what stands in ``adapter_config.json`` to `re`, where a short pattern can take for ever. Here a pattern is
read by its own small grammar and matched by following all its states at once (Thompson, 1968,
https://doi.org/10.1145/363347.363387). The grammar is what adapters have: plain characters, ``.``, ``\.`` and other
escaped signs, ``\d``, ``(a|b)``, ``(?:a|b)``, ``*``, ``+``, ``?`` (also lazy, which changes no whole match), ``^``
before all and ``$`` behind all.
"""

from __future__ import annotations

import re
from collections.abc import Callable

LONGEST = 1000
"""The most characters of a pattern."""
_NESTED = 50
"""The most groups that may be nested in one another."""
_SIGNS = "()|*+?[]{}^$\\"
_ANY = "any character"

_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,200}")


def is_plain(text: str) -> bool:
    """Return whether a text is a name, or its end, and no pattern: letters, digits, ``_``, ``-`` and dots."""
    return _PLAIN.fullmatch(text) is not None


def matcher(pattern: str) -> Callable[[str], bool]:
    """Read a pattern; the result says whether a whole name is of it.

    Raises
    ------
    ValueError
        If it is too long, or holds what the grammar does not have.
    """
    if len(pattern) > LONGEST:
        raise ValueError(f"is a pattern of more than {LONGEST} characters")
    states = _States()
    body = pattern.removeprefix("^")
    body = body[:-1] if body.endswith("$") and not body.endswith("\\$") else body
    reader = _Reader(body, states)
    start, end = reader.alternatives(0)
    if reader.position < len(body):
        raise ValueError(_outside(body, reader.position))

    def matches(name: str) -> bool:
        here = states.reached({start})
        for character in name:
            here = states.reached({to for state in here for sign, to in states.steps[state] if _takes(sign, character)})
            if not here:
                return False
        return end in here

    return matches


def _takes(sign: str, character: str) -> bool:
    return sign in (_ANY, character) or (sign == r"\d" and character.isdecimal())


def _outside(text: str, position: int) -> str:
    if position >= len(text):
        return "is a pattern that ends too early"
    return f"is a pattern with a part that is not supported (at character {position + 1})"


class _States:
    """The states of a pattern: characters lead from one to the next, and some ways need no character."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[str, int]]] = []
        self.free: list[list[int]] = []

    def new(self) -> int:
        self.steps.append([])
        self.free.append([])
        return len(self.steps) - 1

    def reached(self, states: set[int]) -> set[int]:
        """Return these states and all that can be reached from them without a character."""
        found, waiting = set(states), list(states)
        while waiting:
            for state in self.free[waiting.pop()]:
                if state not in found:
                    found.add(state)
                    waiting.append(state)
        return found


class _Reader:
    """Makes the states of a pattern: every part has one first and one last state."""

    def __init__(self, text: str, states: _States) -> None:
        self.text, self.states, self.position = text, states, 0

    def _next(self) -> str:
        return self.text[self.position : self.position + 1]

    def alternatives(self, depth: int) -> tuple[int, int]:
        """Read sequences with ``|`` between them."""
        start, end = self.states.new(), self.states.new()
        while True:
            first, last = self._sequence(depth)
            self.states.free[start].append(first)
            self.states.free[last].append(end)
            if self._next() != "|":
                return start, end
            self.position += 1

    def _sequence(self, depth: int) -> tuple[int, int]:
        start = end = self.states.new()
        while self._next() not in ("", "|", ")"):
            first, last = self._repeated(depth)
            self.states.free[end].append(first)
            end = last
        return start, end

    def _repeated(self, depth: int) -> tuple[int, int]:
        first, last = self._one(depth)
        sign = self._next()
        if sign not in ("*", "+", "?"):
            return first, last
        self.position += 2 if self.text[self.position + 1 : self.position + 2] == "?" else 1
        start, end = self.states.new(), self.states.new()
        self.states.free[start].append(first)
        self.states.free[last].append(end)
        if sign != "+":
            self.states.free[start].append(end)
        if sign != "?":
            self.states.free[last].append(first)
        return start, end

    def _one(self, depth: int) -> tuple[int, int]:
        """Read a character, or a group."""
        sign = self._next()
        if sign == "(" and depth < _NESTED:
            self.position += 3 if self.text.startswith("(?:", self.position) else 1
            found = self.alternatives(depth + 1)
            if self._next() != ")":
                raise ValueError(_outside(self.text, self.position))
            self.position += 1
            return found
        if sign == "\\":
            self.position += 1
            sign = self._next()
            if not sign or (sign.isalnum() and sign != "d"):
                raise ValueError(_outside(self.text, self.position))
            sign = r"\d" if sign == "d" else sign
        elif sign in _SIGNS:
            raise ValueError(_outside(self.text, self.position))
        elif sign == ".":
            sign = _ANY
        self.position += 1
        start, end = self.states.new(), self.states.new()
        self.states.steps[start].append((sign, end))
        return start, end
