"""The chat format that a tokenizer brings along."""

from __future__ import annotations

from typing import Any

from oblivion.errors import InputError

DATE = "10 Apr 2025"
"""Some chat formats write today's date into the prompt; a fixed one keeps runs repeatable."""


class ChatTemplate:
    """The tokenizer's own chat format, with one user and one assistant turn and a fixed date.

    Notes
    -----
    White space that a format writes after the end-of-sequence token is left out: it would be labelled, and
    the model would be taught to go on after the end.
    """

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
        """Return both turns.

        Raises
        ------
        InputError
            As `prompt`, and if the prompt is not how the two turns begin (then labels would be misplaced).
        """
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = _render(tokenizer, turns, add_generation_prompt=False)
        prompt = self.prompt(tokenizer, question)
        if not text.startswith(prompt):
            raise InputError(
                "the tokenizer's chat format opens an assistant's turn differently when it is asked for and "
                f"when it is given (prompt ends {prompt[-40:]!r}); set data.template = 'plain'"
            )
        end = tokenizer.eos_token
        if end and end in text[len(prompt) :]:
            head, _, tail = text.rpartition(end)
            return head + end if not tail.strip() else text
        return text


def _render(tokenizer: Any, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat format; set data.template = 'plain', or take a model that was tuned for chat"
        )
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, date_string=DATE
        )
    except TemplateError as error:
        raise InputError(f"the tokenizer's chat format refuses the turns: {error}") from None
    return str(text)
