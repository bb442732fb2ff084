"""From a question and an answer to token ids, of which the answer's are labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from oblivion.errors import InputError


class Template(Protocol):
    """How a question and an answer become text."""

    special_tokens: bool
    """Whether the tokenizer adds its special tokens (False where the template writes them itself)."""

    def prompt(self, tokenizer: Any, question: str) -> str:
        """The text up to where the answer begins."""
        ...

    def full(self, tokenizer: Any, question: str, answer: str) -> str:
        """The prompt and the answer."""
        ...


@dataclass(frozen=True)
class TokenRow:
    """One prompt with one answer as ids: the ids from `prompt_length` on are the labels, EOS included."""

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def labels(self) -> tuple[int, ...]:
        """The answer's token ids."""
        return self.ids[self.prompt_length :]


def encode_prompt(tokenizer: Any, template: Template, question: str) -> tuple[int, ...]:
    """Token ids of the prompt alone, as generation starts from it."""
    return _ids(tokenizer, template.prompt(tokenizer, question), template)


def _ids(tokenizer: Any, text: str, template: Template) -> tuple[int, ...]:
    """Token ids of a text.

    Raises
    ------
    InputError
        If one of them has no row in the model; a GPU would end the process over it.
    """
    ids = tuple(tokenizer(text, add_special_tokens=template.special_tokens)["input_ids"])
    rows = getattr(tokenizer, "model_rows", None)  # set where tokenizer and model are loaded together
    highest = max(ids, default=0)
    if rows is not None and highest >= rows:
        raise InputError(
            f"a text has the token {tokenizer.convert_ids_to_tokens(highest)!r} with id {highest}, and the model has "
            f"rows 0 to {rows - 1} only; resize the model's embeddings, or take the tokenizer that belongs to it"
        )
    return ids


def encode(tokenizer: Any, template: Template, question: str, answer: str, max_length: int) -> TokenRow | None:
    """Encode one row; prompt and full text are tokenised separately and EOS is appended if it is missing.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        With an EOS token.
    template : Template
        How the text is made.
    question, answer : str
        Plain text.
    max_length : int
        The most ids that the model can take.

    Returns
    -------
    TokenRow or None
        None if the row is longer than `max_length` (it is never cut) or if the answer has no token of its own.
    """
    prompt = encode_prompt(tokenizer, template, question)
    ids = _ids(tokenizer, template.full(tokenizer, question, answer), template)
    if ids[-1] != tokenizer.eos_token_id:
        ids += (tokenizer.eos_token_id,)
    if len(ids) > max_length or len(prompt) >= len(ids):
        return None
    return TokenRow(ids, len(prompt))
