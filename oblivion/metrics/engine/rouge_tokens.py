"""Make tokens for ROUGE in every script.

`rouge_score` keeps a to z and 0 to 9 only. Where the true answer is in the Latin script, its tokens are taken as they
are, so that values are those that others publish. Where it holds letters of another script (or nothing that
`rouge_score` keeps, such as an emoji alone), both texts are cut in this way: scripts without spaces between words
(Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) character by character, each with its marks; other scripts word
by word; an emoji is a token; words of a to z and 0 to 9 are stemmed as `rouge_score` does.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

_WITHOUT_SPACES = (
    "CJK ",
    "IDEOGRAPHIC",
    "HIRAGANA",
    "KATAKANA",
    "BOPOMOFO",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)
_KEPT = re.compile("[a-z0-9]")
_STEMMED = re.compile("[a-z0-9]{4,}")

Kind = Literal["word", "character", "mark", "nothing", "between"]


@lru_cache(maxsize=1 << 14)
def _kind(character: str) -> Kind:
    """Return what a character is for the tokens; "nothing" stands inside a word and is dropped."""
    category = unicodedata.category(character)
    if category[0] == "M":
        return "mark"
    if category == "Cf":
        return "nothing"  # these are joiners and signs of direction
    if category == "So" or (unicodedata.name(character, "").startswith(_WITHOUT_SPACES) and category[0] in "LN"):
        return "character"
    return "word" if category[0] in "LN" else "between"


@lru_cache(maxsize=1 << 14)
def _is_foreign(character: str) -> bool:
    """Return whether a character is a letter of another script than the Latin one."""
    if unicodedata.category(character) not in ("Ll", "Lm", "Lo", "Lt", "Lu"):
        return False
    # The micro sign becomes a Greek letter, and a full-width A a plain one.
    plain = unicodedata.normalize("NFKC", character)
    names = [unicodedata.name(part, "") for part in plain if part.isalpha()]
    return not all(name.startswith("LATIN") or name == "GREEK SMALL LETTER MU" for name in names)


def has_plain_tokens(text: str) -> bool:
    """Return whether `rouge_score` finds a token."""
    return _KEPT.search(text.lower()) is not None


def needs_all_scripts(target: str) -> bool:
    """Return whether the tokens of `rouge_score` cannot stand for the true answer."""
    if target.isascii():
        return False  # an ASCII text without a letter or a digit has no token in any case
    return any(map(_is_foreign, target)) or not has_plain_tokens(target)


def tokens(text: str, stem: Callable[[str], str]) -> list[str]:
    """Return the tokens of a text in any script."""
    found: list[str] = []
    last: Kind = "between"
    for character in unicodedata.normalize("NFKC", text).lower():
        kind = _kind(character)
        if kind == "nothing":
            continue
        if (kind == "word" and last == "word") or (kind == "mark" and last in ("word", "character")):
            found[-1] += character
        elif kind in ("word", "character"):
            found.append(character)
        last = last if kind == "mark" else kind
    return [stem(token) if _STEMMED.fullmatch(token) else token for token in found]
