"""Conversations of one question and one answer: OpenAI's ``messages`` and ShareGPT's ``conversations``."""

from __future__ import annotations

from typing import Any

from oblivion.data.rows import Row, kind_of, text_of
from oblivion.errors import InputError

CHATS = ("messages", "conversations", "conversation")
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant"}
_NAMES = (("role", "content"), ("from", "value"))


def is_chat(value: Any) -> bool:
    """Return whether a value is a list of turns."""
    return isinstance(value, list) and bool(value) and all(map(_is_turn, value))


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and any(names <= value.keys() for names in map(set, _NAMES))


def unfold(row: Row, questions: tuple[str, ...], answers: tuple[str, ...]) -> Row:
    """Return the row with its conversation's question and answer as columns; without one, the row itself.

    Parameters
    ----------
    row : Row
        The record.
    questions, answers : tuple of str
        Columns that may hold a question, and an answer; where the row has both, its conversation is not used.

    Returns
    -------
    Row
        With ``question`` and ``answer``. What the system says, in a first turn or in a column ``system``, stands on
        lines of its own above the question.

    Raises
    ------
    InputError
        If the conversation is not one question and one answer; names the row.
    """
    column = next((name for name in CHATS if row.values.get(name) is not None), "")
    if not column or all(any(row.values.get(name) for name in names) for names in (questions, answers)):
        return row
    turns = row.values[column]
    if not is_chat(turns):
        raise InputError(f"{row.where}: column '{column}' is not a list of turns with {_wanted()}")
    said = [_turn(turn, f"{row.where}: turn {number} of '{column}'") for number, turn in enumerate(turns, start=1)]
    system = [text_of(row, "system", required=False)]
    if said[0][0] == "system":
        system.append(said.pop(0)[1])
    roles = [role for role, _ in said]
    if roles != ["user", "assistant"]:
        raise InputError(
            f"{row.where}: column '{column}' has {len(turns)} turns ({', '.join(roles[:6])}); expected one of the user "
            "and one of the assistant, and at most one of the system before them"
        )
    above = [text for text in system if text.strip()]
    rest = {key: value for key, value in row.values.items() if key not in (column, *questions, *answers)}
    return Row({**rest, "question": "\n".join([*above, said[0][1]]), "answer": said[1][1]}, row.where)


def _wanted() -> str:
    return " or ".join(f"'{role}' and '{text}'" for role, text in _NAMES)


def _turn(turn: dict[str, Any], where: str) -> tuple[str, str]:
    """Return who speaks, and the text."""
    role_name, text_name = next(names for names in _NAMES if set(names) <= turn.keys())
    role, content = str(turn[role_name]), turn[text_name]
    if isinstance(content, list):  # the content has parts, one of which could be a picture
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise InputError(f"{where}: '{text_name}' is {kind_of(content)}; expected text")
    if role != "system" and role not in _ROLES:
        raise InputError(f"{where} is from somebody else; expected system, {', '.join(_ROLES)}")
    if role != "system" and not content.strip():
        raise InputError(f"{where} is empty; fill it or delete the row")
    return _ROLES.get(role, role), content


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("text"), str) or part.get("type", "text") != "text":
        raise InputError(f"{where} has a part that is not text; only text is learned")
    text: str = part["text"]
    return text
