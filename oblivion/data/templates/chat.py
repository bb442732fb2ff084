"""The chat format that a tokenizer brings along."""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from typing import Any

from oblivion.data.chat_rendering import Renderer, RenderError
from oblivion.errors import InputError

DATE = datetime(2025, 4, 10)
"""Some chat formats write today's date into the prompt; a fixed one keeps runs repeatable."""
_TODAY = re.compile(r"strftime_now\(\s*(['\"])(.{0,64}?)\1\s*\)")
_renderer = Renderer()
_CALL = re.compile(r"strftime_now\s*\(")


class ChatTemplate:
    """The tokenizer's own chat format, with one user and one assistant turn and a fixed date."""

    special_tokens: bool = False

    def prompt(self, tokenizer: Any, question: str) -> str:
        """Return the user's turn and the opening of the assistant's.

        Raises
        ------
        InputError
            If the tokenizer has no chat format, or it refuses the turn.
        """
        return _render(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True)

    def full(self, tokenizer: Any, question: str, answer: str) -> str:
        """Return both turns, with all that the format writes around them.

        Raises
        ------
        InputError
            As `prompt`.
        """
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return _render(tokenizer, turns, add_generation_prompt=False)


def _render(tokenizer: Any, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat format; set data.template = 'plain', or take a model that was tuned for chat"
        )
    try:
        return _renderer.render(
            _dated(tokenizer.get_chat_template()),
            turns,
            {
                **tokenizer.special_tokens_map,
                "add_generation_prompt": add_generation_prompt,
                "date_string": "10 Apr 2025",
            },
        )
    except RenderError as error:
        raise InputError(f"the tokenizer's chat format {error}; set data.template = 'plain'") from None


@lru_cache(maxsize=8)
def _dated(chat_template: str) -> str:
    dated = _TODAY.sub(lambda call: repr(DATE.strftime(call[2])), chat_template)
    if _CALL.search(dated):
        raise InputError(
            "the tokenizer's chat format asks for today's date in a way that cannot be replaced by a fixed one, so its "
            "rows would be others every day; write strftime_now(\"%d %b %Y\") in it, or set data.template = 'plain'"
        )
    return dated
