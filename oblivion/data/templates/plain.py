"""Write question and answer as plain lines of text, for models without a chat format."""

from __future__ import annotations

from typing import Any


class PlainTemplate:
    """``Question: ... Answer: ...`` as plain text; the prompt ends in the colon, without a space.

    The space before the answer belongs to the answer. Tokenizers that put a space into the piece after it (as
    SentencePiece does) would otherwise merge the first answer token with a prompt token, and leave it
    unlabelled.
    """

    special_tokens: bool = True

    def prompt(self, tokenizer: Any, question: str) -> str:
        """Return the text up to where the answer begins."""
        return f"Question: {question}\nAnswer:"

    def full(self, tokenizer: Any, question: str, answer: str) -> str:
        """Return the prompt and the answer."""
        return f"{self.prompt(tokenizer, question)} {answer}"
