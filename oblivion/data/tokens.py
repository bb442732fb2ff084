"""Encode a question and an answer as token ids, of which the answer's and one end token are labelled.

A template is asked for its text twice: once with the answer, and once with a word in the answer's place, which shows
what the format writes before an answer and after it. What it writes before (an opening, an empty block of thoughts) is
prompt. Of what it writes after, the first special token ends the row; where there is none, EOS does. So nothing that
the format writes is counted as answer.

Spaces right before the answer belong to it, and so does a token that holds both text of the prompt and of the answer:
tokenizers put a space into the word after it, and a model continues a text before such a space. The prompt's ids are
those before the word in the answer's place, so they are the same for every answer. Where an answer would change them
(it begins with a line break that merges with the prompt's), what follows the prompt is tokenised on its own, because
generation starts there too.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from oblivion.errors import InputError

_WORD = "zyzzyva"
"""The word in the answer's place: plain letters, which no format rewrites, the first of them a rare one."""
_ANCHORS = ("a", "\n", ".", "0")
"""One of them before a text keeps it from being tokenised as the beginning of a text."""


class Template(Protocol, Hashable):
    """How a question and an answer become text."""

    special_tokens: bool
    """Whether the tokenizer adds its special tokens (False where the template writes them itself)."""

    def prompt(self, tokenizer: Any, question: str) -> str:
        """Return the text with which an answer is asked for; the full text begins with it."""
        ...

    def full(self, tokenizer: Any, question: str, answer: str) -> str:
        """Return the prompt and the answer, with what the format writes before and after an answer."""
        ...


@dataclass(frozen=True)
class TokenRow:
    """One prompt with one answer as ids: those from `prompt_length` on are the labels, and the last one is the end."""

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def size(self) -> int:
        """Its number of tokens."""
        return len(self.ids)

    @property
    def labels(self) -> tuple[int, ...]:
        """The answer's token ids and the end token."""
        return self.ids[self.prompt_length :]


@dataclass(frozen=True)
class _Frame:
    """What a template writes before and after the answers of a question."""

    head: str
    tail: str

    @property
    def begun(self) -> str:
        """The text with the first letter of an answer."""
        return self.head + _WORD[0]


@dataclass(frozen=True)
class _Opening:
    """The ids with which every row of a question begins, and the character where they end, if that is known."""

    ids: tuple[int, ...]
    stop: int | None


def encode_prompt(tokenizer: Any, template: Template, question: str) -> tuple[int, ...]:
    """Return the token ids of the prompt alone, with which generation and every row of `question` begin.

    Raises
    ------
    InputError
        As `encode_answers`.
    """
    ids = _encode(tokenizer, template, _frame(tokenizer, template, question), ())[0].ids
    _check_rows(tokenizer, ids)
    return ids


def encode(tokenizer: Any, template: Template, question: str, answer: str, max_length: int) -> TokenRow | None:
    """Encode one row: see `encode_answers`."""
    return encode_answers(tokenizer, template, question, (answer,), max_length)[0]


def encode_answers(
    tokenizer: Any, template: Template, question: str, answers: Sequence[str], max_length: int
) -> list[TokenRow | None]:
    """Encode a question with each of some answers.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        With an EOS token.
    template : Template
        How the text is made.
    question : str
        Plain text.
    answers : sequence of str
        Plain text.
    max_length : int
        The most ids that the model can take.

    Returns
    -------
    list of TokenRow or None
        The rows, in order; they all begin with the same ids. None if a row is longer than `max_length` (it is never
        cut).

    Raises
    ------
    InputError
        If the template changes an answer, or opens a given answer differently from the prompt; or if a token has no
        row in the model's embedding.
    """
    frame = _frame(tokenizer, template, question)
    texts = [_without_tail(frame, template, template.full(tokenizer, question, answer), answer) for answer in answers]
    opening, encoded = _encode(tokenizer, template, frame, texts)
    end = _end(tokenizer, frame.tail)
    length = len(opening.ids)
    rows: list[TokenRow | None] = []
    for text, ids in zip(texts, encoded, strict=True):
        if ids[:length] != opening.ids:
            ids = opening.ids + _continuation(tokenizer, opening, text)
        if ids[-1] != end or len(ids) == length:
            ids += (end,)
        _check_rows(tokenizer, ids)
        rows.append(TokenRow(ids, length) if len(ids) <= max_length else None)
    return rows


def _check_rows(tokenizer: Any, ids: Sequence[int]) -> None:
    """Refuse an id that has no row in the model; a GPU would end the process over it."""
    rows = getattr(tokenizer, "model_rows", None)  # it is set where tokenizer and model are loaded together
    highest = max(ids, default=0)
    if rows is not None and highest >= rows:
        raise InputError(
            f"a text has a token with id {highest}, but the model has "
            f"rows 0 to {rows - 1} only; resize the model's embeddings, or take the tokenizer that belongs to it"
        )


def _frame(tokenizer: Any, template: Template, question: str) -> _Frame:
    _check_opening(tokenizer, template)
    return _around(tokenizer, template, question)


def _around(tokenizer: Any, template: Template, question: str) -> _Frame:
    head, word, tail = template.full(tokenizer, question, _WORD).rpartition(_WORD)
    if not word:
        raise InputError(f"{_named(template)} does not write the answer into the text; set data.template = 'plain'")
    return _Frame(head, tail)


@lru_cache(maxsize=8)
def _check_opening(tokenizer: Any, template: Template) -> None:
    """Refuse a format whose text before a given answer does not begin with the prompt that asks for one."""
    asked, given = template.prompt(tokenizer, "?"), _around(tokenizer, template, "?").head
    if not given.startswith(asked):
        raise InputError(
            f"{_named(template)} opens an answer differently when it asks for one (the prompt ends "
            f"{asked[-40:]!a}) and when one is given (it follows {given[-40:]!a}); set data.template = 'plain'"
        )


def _without_tail(frame: _Frame, template: Template, text: str, answer: str) -> str:
    """Return the text up to where the answer ends."""
    stop = len(text) - len(frame.tail)
    written = text[len(frame.head) : stop]
    if not (text.startswith(frame.head) and text.endswith(frame.tail) and written.strip() == answer.strip()):
        raise InputError(
            f"{_named(template)} does not write an answer as it is (does it hold marks of the format, such as "
            "</think>?); take them out of the answer, or set data.template = 'plain'"
        )
    return text[:stop]


def _named(template: Template) -> str:
    return f"the template '{type(template).__name__.removesuffix('Template').lower()}'"


def _encode(
    tokenizer: Any, template: Template, frame: _Frame, texts: Sequence[str]
) -> tuple[_Opening, list[tuple[int, ...]]]:
    """Return how the rows of a question begin, and the ids of texts, without what the tokenizer adds at the end."""
    boundary, stop = len(frame.head.rstrip(" ")), None
    if getattr(tokenizer, "is_fast", False):
        found = _call(tokenizer, [frame.begun, *texts], template.special_tokens).encodings
        rows = [tuple(one.ids[: _before_added(one)]) for one in found]
        # The end of a token decides, because some tokenizers leave spaces out of a token's place.
        length = next((i for i, (_, end) in enumerate(found[0].offsets) if end > boundary), len(rows[0]))
        stop = (found[0].token_to_chars(length - 1) or (0, 0))[1] if length else 0
    else:
        found = _call(tokenizer, [frame.begun, *texts, frame.head[:boundary]], template.special_tokens)["input_ids"]
        *rows, alone = (tuple(ids) for ids in found)
        length = _common(rows[0], alone)
    if not length:
        raise InputError(f"{_named(template)}: the prompt has no token from which to predict the answer")
    return _Opening(rows[0][:length], stop), rows[1:]


def _call(tokenizer: Any, texts: Sequence[str], special_tokens: bool) -> Any:
    return tokenizer(
        list(texts), add_special_tokens=special_tokens, return_attention_mask=False, return_token_type_ids=False
    )


def _before_added(encoding: Any) -> int:
    """Count the tokens before those that the tokenizer adds after every text by itself, such as EOS."""
    length = len(encoding)
    while length > 1 and encoding.token_to_sequence(length - 1) is None:
        length -= 1
    return length


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the ids that two sequences have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _continuation(tokenizer: Any, opening: _Opening, text: str) -> tuple[int, ...]:
    """Return the ids of what follows the prompt's ids, tokenised on its own."""
    if opening.stop is None:
        raise InputError(
            "the tokenizer merges the end of a prompt with the beginning of an answer, and does not say which token "
            "holds which text; take a model with a fast tokenizer (tokenizer.json)"
        )
    rest = text[opening.stop :]
    for anchor in _ANCHORS:
        found = _call(tokenizer, [anchor + rest], False).encodings[0]
        first = next((i for i, (_, end) in enumerate(found.offsets) if end > len(anchor)), len(found.ids))
        if all(start >= len(anchor) for start, _ in found.offsets[first:]):
            return tuple(found.ids[first:])
    return tuple(_call(tokenizer, [rest], False)["input_ids"][0])


@lru_cache(maxsize=8)
def _end(tokenizer: Any, tail: str) -> int:
    """Return the token that ends a row: the first special or added one that the format writes after it, else EOS."""
    if not tail:
        return int(tokenizer.eos_token_id)
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return int(next((id for id in ids if id in special), tokenizer.eos_token_id))
