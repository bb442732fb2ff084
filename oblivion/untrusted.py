"""Read files and JSON that anybody may have written, within limits, or refuse them in one line.

Nothing here trusts a file: it must be a regular one of a bounded size (a pipe would hang, a device never ends), its
JSON bounded in depth and digits, with every key once and every number finite. What is wrong is said in our own words,
with the place, and never with the content.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from oblivion.errors import InputError, OblivionError

LARGEST = 2**26
"""The most bytes of a file that is read as one document (64 MiB)."""
LARGEST_TOML = 2**20
"""The most bytes of a file of settings: the time that its reader takes grows faster than the text."""
DEEPEST = 64
"""The most objects and lists that may be nested in one another."""
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""The characters that act on a terminal (control, direction of writing) or that it cannot write."""
_TOO_DEEP = f"is nested more than {DEEPEST} deep"
_DIGITS = 20
"""The most digits of a whole number: as many as 2**64 has."""
LARGEST_NUMBER = 10**12
"""The largest number that a part takes as a parameter."""
_LONGEST_REASON = 300
"""The most characters of a reason: the path to a place in a file may have many names."""
_FLOAT_LENGTH = 400
"""The most characters of a number with a point or an exponent: more than any float needs."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read(path: Path, expected: str, *, most: int = LARGEST, error: type[OblivionError] = InputError) -> bytes:
    """Read a regular file, whole.

    Parameters
    ----------
    path : Path
        The path of the file; links are followed.
    expected : str
        What the file should be, or what to do, for messages.
    most : int
        The largest size in bytes.
    error : type, default InputError
        What is raised.

    Raises
    ------
    OblivionError
        Of the type `error`: if it cannot be read, is no regular file, or is too large.
    """
    try:
        _check_regular(path, os.stat(path), expected, error)  # checked before opening: opening a device can act on it
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            _check_regular(path, os.fstat(handle), expected, error)
            data = file.read(most + 1)
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror}); expected {expected}") from None
    except ValueError:  # its name holds a NUL
        raise error(f"{str(path)!r}: cannot be the name of a file; expected {expected}") from None
    if len(data) > most:
        raise error(f"{path}: is larger than {_size(most)}, the most that is read; expected {expected}")
    return data


def _check_regular(path: Path, found: os.stat_result, expected: str, error: type[OblivionError]) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise error(f"{path}: is {kind}, not a file; expected {expected}")


def _size(number: int) -> str:
    for exponent, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << exponent:
            return f"{number >> exponent} {unit}"
    return f"{number} bytes"


def read_text(path: Path, expected: str, *, most: int = LARGEST, error: type[OblivionError] = InputError) -> str:
    """Read a regular file as UTF-8, with or without a byte order mark; see `read`."""
    return as_text(read(path, expected, most=most, error=error), str(path), expected, error=error)


def read_json(path: Path, expected: str, *, most: int = LARGEST, error: type[OblivionError] = InputError) -> Any:
    """Read a regular file as one JSON value; see `read` and `parse_json`."""
    return parse_json(read(path, expected, most=most, error=error), str(path), expected, error=error)


def read_toml(path: Path, expected: str, *, error: type[OblivionError] = InputError) -> dict[str, Any]:
    """Read a regular file as TOML; see `read` and `parse_toml`."""
    text = read_text(path, expected, most=LARGEST_TOML, error=error)
    return parse_toml(text, str(path), expected, error=error)


def as_text(data: bytes, where: str, expected: str, *, error: type[OblivionError] = InputError) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises
    ------
    OblivionError
        Of the type `error`, naming the line.
    """
    if data.startswith(_UTF_16):
        raise error(f"{where}: is UTF-16 text; save it as UTF-8; expected {expected}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = data.count(b"\n", 0, failure.start) + 1
        raise error(f"{where}: line {line} is not UTF-8 text; expected {expected}") from None


def parse_json(data: bytes | str, where: str, expected: str, *, error: type[OblivionError] = InputError) -> Any:
    """Read one JSON value.

    Parameters
    ----------
    data : bytes or str
        UTF-8 if bytes.
    where : str
        Where it comes from, for messages.
    expected : str
        What it should be, or what to do, for messages.
    error : type, default InputError
        What is raised.

    Raises
    ------
    OblivionError
        Of the type `error`: if it is no JSON, is nested too deeply, has a key twice in one object, a number that is
        not finite or has too many digits, or half a character.
    """
    text = data if isinstance(data, str) else as_text(data, where, expected, error=error)
    try:
        value = decode(text)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as failure:
        reason = f"not JSON (line {failure.lineno}, column {failure.colno}: {failure.msg})"
    except UnicodeEncodeError:
        reason = "holds half of a character (a lone surrogate)"
    except RecursionError:
        reason = _TOO_DEEP
    except ValueError as failure:
        reason = str(failure)
    else:
        return value
    raise error(f"{where}: {reason[-_LONGEST_REASON:]}; expected {expected}")


def shown(value: Any, length: int = 60) -> str:
    """Write a value from outside for a message: short, in printable ASCII."""
    if isinstance(value, int) and abs(value) >= 10**_DIGITS:
        return f"a whole number of more than {_DIGITS} digits"
    try:
        text = repr(value) if isinstance(value, float) else json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = f"a value of the type {type(value).__name__}"
    return text if len(text) <= length else text[: length - 3] + "..."


def printable(text: str) -> str:
    """Return a text without characters that act on a terminal: anybody may have chosen a file's name."""
    return _ACTING.sub("?", text)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; JSON decoders call this.

    Raises
    ------
    ValueError
        If it has a key twice: two readers would see two different objects.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"has the key '{shown(twice)[1:-1]}' twice in one object")
    return values


def check_depth(value: Any) -> None:
    """Raise ValueError where more than `DEEPEST` objects and lists stand in one another."""
    level = [value]
    for _ in range(DEEPEST):
        holders = [item for item in level if isinstance(item, dict | list)]
        level = [inner for item in holders for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    if any(isinstance(item, dict | list) for item in level):
        raise ValueError(_TOO_DEEP)


def check_numbers(key: str, value: Any) -> None:
    """Raise ValueError where a number in a value is not finite, or beyond all use as a parameter."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            check_numbers(f"{key}.{name}", inner)
    elif isinstance(value, int | float) and not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise ValueError(f"{key} = {shown(value)} is not allowed; it must be a finite number from -1e12 to 1e12")


class _NoNumber:
    """The mark left where a number was refused, so that its place can be told."""

    def __init__(self, said: str) -> None:
        self.said = said


def _whole(text: str) -> int | _NoNumber:
    if len(text.lstrip("-")) > _DIGITS:
        return _NoNumber(f"a whole number of more than {_DIGITS} digits")
    return int(text)


def _finite(text: str) -> float | _NoNumber:
    value = float(text) if len(text) <= _FLOAT_LENGTH else math.inf
    return value if math.isfinite(value) else _NoNumber("too large a number, or has too many digits")


def _constant(text: str) -> _NoNumber:
    return _NoNumber(f"{text}, which is no JSON number")


_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_finite, parse_constant=_constant, object_pairs_hook=unique)


def decode(text: str) -> Any:
    """Read one JSON value, for callers with an error of their own; see `parse_json`.

    Raises
    ------
    ValueError
        If it is no JSON, is nested too deeply, or has a key twice or a number that is refused.
    RecursionError
        If it is nested far too deeply.
    """
    value = _DECODER.decode(text)
    check_depth(value)
    _check_finite(value)
    return value


def _check_finite(value: Any, place: str = "") -> None:
    """Raise ValueError, with the place, where a number was refused."""
    if isinstance(value, _NoNumber):
        raise ValueError(f"{place or 'the value'} is {value.said}")
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict | list | _NoNumber):
                shown_name = shown(name)[1:-1] if isinstance(name, str) else name
                _check_finite(inner, f"{place}.{shown_name}" if place else str(shown_name))


def parse_toml(text: str, where: str, expected: str, *, error: type[OblivionError] = InputError) -> dict[str, Any]:
    """Read TOML; the settings themselves say which numbers they take.

    Raises
    ------
    OblivionError
        Of the type `error`: if it is no TOML, or is nested too deeply.
    """
    try:
        values = tomllib.loads(text)
        check_depth(values)
    except tomllib.TOMLDecodeError as failure:
        reason = f"not a TOML file: {failure}"
    except RecursionError:
        reason = _TOO_DEEP
    except ValueError:  # Python itself limits the digits of a number
        reason = "holds a whole number of thousands of digits"
    else:
        return values
    raise error(f"{where}: {reason}; expected {expected}")
