"""Which column of a file means what: the scenario's column map, with defaults for the usual layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oblivion.data.json_rows import Row
from oblivion.errors import ConfigError, nearest

KEYS = ("question", "answer", "client", "id", "context", "paraphrase", "wrong-answers", "label")
QUESTIONS = ("question", "prompt", "instruction", "query")
ANSWERS = ("answer", "response", "completion", "output")
INSTRUCTION_CONTEXTS = ("context", "input")


@dataclass(frozen=True)
class Columns:
    """Column names by meaning; "" where there is none."""

    question: str
    answer: str
    client: str = ""
    id: str = ""
    context: str = ""
    paraphrase: str = ""
    wrong_answers: str = ""
    label: str = ""


def find_columns(columns: Mapping[str, str], row: Row) -> Columns:
    """Complete the scenario's column map from what the first row of the data has.

    Parameters
    ----------
    columns : mapping of str to str
        ``data.columns``: meaning to column name.
    row : Row
        The first row.

    Returns
    -------
    Columns
        Question and answer are `columns`' or the first usual name that the row has. Where the question is an
        ``instruction``, a ``context`` or ``input`` column joins it.

    Raises
    ------
    ConfigError
        If a meaning is unknown, a named column is not there, or no usual name fits; lists the columns found.
    """
    found = f"{row.where} has the columns: {', '.join(sorted(row.values))}"
    named: dict[str, str] = {}
    for key, column in columns.items():
        meaning = key.replace("_", "-")
        if meaning not in KEYS:
            raise ConfigError(f"data.columns: unknown meaning '{key}'; {nearest(meaning, KEYS)}")
        if column and column not in row.values:
            raise ConfigError(f"data.columns.{meaning} = '{column}': there is no such column; {found}")
        named[meaning.replace("-", "_")] = column
    for meaning, usual in (("question", QUESTIONS), ("answer", ANSWERS)):
        if not named.get(meaning):
            named[meaning] = next((name for name in usual if name in row.values), "")
        if not named[meaning]:
            raise ConfigError(
                f"no column for the {meaning}: set data.columns.{meaning}, or name it {' or '.join(usual)}; {found}"
            )
    if "context" not in named and named["question"] == "instruction":
        named["context"] = next((name for name in INSTRUCTION_CONTEXTS if name in row.values), "")
    return Columns(**named)
