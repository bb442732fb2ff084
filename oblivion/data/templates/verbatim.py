"""Texts as they are: the answer follows the prompt without a word between them."""

from __future__ import annotations

from typing import Any


class VerbatimTemplate:
    """The question and then the answer, exactly as they are written, for texts that are continued.

    A text without a question begins with the tokenizer's own beginning; where it writes none, the end token of the text
    before stands there, as it does in pretraining.
    """

    special_tokens: bool = True

    def prompt(self, tokenizer: Any, question: str) -> str:
        """Return the question."""
        return question or _beginning(tokenizer)

    def full(self, tokenizer: Any, question: str, answer: str) -> str:
        """Return the question and the answer."""
        return self.prompt(tokenizer, question) + answer


def _beginning(tokenizer: Any) -> str:
    """Return what has to be written so that a text's first token is predicted from something."""
    first = tokenizer("a")["input_ids"][0]
    return "" if first in tokenizer.all_special_ids else str(tokenizer.bos_token or tokenizer.eos_token)
