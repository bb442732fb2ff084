"""Make a client id from the name of an owner, in any script; the same name always gives the same id."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from oblivion.errors import ConfigError
from oblivion.types import CLIENT_ID

_LONGEST = 64
_DIGITS = 10
_JOINERS = "\u200c\u200d"
"""Zero-width characters that words of some scripts need, and emojis."""
_UNSEEN = re.compile("[\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]")
"""Other invisible characters: marks of direction, of line breaking, of how an emoji is drawn."""


def canonical_name(name: str) -> str:
    """Return the name as a reader sees it: composed (NFC), every blank a space, and nothing invisible.

    Blanks around the name are dropped. Two names that differ in nothing else are one owner.

    Parameters
    ----------
    name : str
        The name as it stands in the data.

    Raises
    ------
    ValueError
        If nothing is left, or it holds a control character or half of a surrogate pair.
    """
    spaced = "".join(" " if c.isspace() and not c.isascii() else c for c in _UNSEEN.sub("", name))
    seen = unicodedata.normalize("NFC", spaced).strip()
    if not seen.strip(_JOINERS):
        raise ValueError("is empty")
    if any(unicodedata.category(c) in ("Cc", "Cs") and c != "\t" for c in seen):
        raise ValueError("holds a control character")
    return seen


def folded_name(name: str) -> str:
    """Return the name without capitals, wide letters and repeated spaces: owners rarely differ in these alone."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", canonical_name(name)).casefold())
    return " ".join(re.sub(f"[{_JOINERS}]", "", folded).split())


def client_id_of(name: str) -> str:
    """Return the client id of an owner.

    It depends on nobody else, so it stays when another owner goes.

    Parameters
    ----------
    name : str
        The name, in any script; an id stands for itself.

    Returns
    -------
    str
        An ASCII name in small letters, with ``-`` for what an id may not have ("Bob Ltd." is ``bob-ltd-``). Where that
        gives no id or the name is not ASCII: what is left of it without accents, and ten digits of its SHA-256
        ("Zürich" is ``zurich-`` and the digits, a name without a Latin letter ``client-`` and the digits).

    Raises
    ------
    ValueError
        As `canonical_name`.
    """
    seen = canonical_name(name)
    slug = re.sub(r"[^a-z0-9_-]", "-", seen.lower()).lstrip("-_")
    if seen.isascii() and CLIENT_ID.fullmatch(slug):
        return slug
    digest = hashlib.sha256(seen.encode()).hexdigest()[:_DIGITS]
    bare = "".join(c for c in unicodedata.normalize("NFKD", seen.casefold()) if not unicodedata.combining(c))
    words = re.sub(r"[^a-z0-9_]+", "-", bare).strip("-_")[: _LONGEST - _DIGITS - 1].strip("-_")
    return f"{words or 'client'}-{digest}"


def client_named(name: str) -> str:
    """Return the id of a client that a command names by its id, or by its name in the data.

    Raises
    ------
    ConfigError
        If it can be neither.
    """
    try:
        return client_id_of(name)
    except ValueError as error:
        raise ConfigError(f"--client: the name {error}; expected a client's id, or its name in the data") from None
