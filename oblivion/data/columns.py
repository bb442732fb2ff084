"""Find out which column of a file means what: by the scenario's column map, with defaults for the usual layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from oblivion.data.chats import CHATS
from oblivion.data.rows import Row, RowFile, named
from oblivion.errors import ConfigError, nearest

KEYS = ("question", "answer", "client", "id", "context", "paraphrase", "wrong-answers", "label", "alternate")
QUESTIONS = ("question", "prompt", "instruction", "query")
ANSWERS = ("answer", "response", "completion", "output")
INSTRUCTION_CONTEXTS = ("context", "input")
USUAL = (*QUESTIONS, *ANSWERS, *CHATS)
"""The columns that are found without a map."""
_MOST_NAMES = 20


@dataclass(frozen=True)
class Columns:
    """The column for each meaning; "" where there is none. Of the columns in `contexts` a row has one."""

    question: str
    answer: str
    client: str = ""
    id: str = ""
    contexts: tuple[str, ...] = ()
    paraphrase: str = ""
    wrong_answers: str = ""
    label: str = ""
    alternate: str = ""

    def extras(self) -> tuple[tuple[str, str], ...]:
        """Return what stands in a sample's ``extras``, with its column."""
        return ("label", self.label), ("alternate", self.alternate)


def check_columns(columns: Mapping[str, str], files: Sequence[RowFile]) -> dict[str, str]:
    """Return the scenario's column map by meaning, if every column in it is somewhere in the files.

    Parameters
    ----------
    columns : mapping of str to str
        ``data.columns``: meaning to column name.
    files : sequence of RowFile
        All files for which the map holds.

    Raises
    ------
    ConfigError
        If a meaning is unknown, or no row of any file has a named column; lists the columns found.
    """
    known = names_in(row for file in files for row in file.rows)
    named: dict[str, str] = {}
    for key, column in columns.items():
        meaning = key.replace("_", "-")
        if meaning not in KEYS:
            raise ConfigError(f"data.columns: unknown meaning '{key}'; {nearest(meaning, KEYS)}")
        if column and column not in known:
            raise ConfigError(f"data.columns.{meaning} = '{column}': there is no such column; {_found(files, known)}")
        named[meaning] = column
    return named


def find_columns(named: Mapping[str, str], file: RowFile) -> Columns:
    """Complete a column map from what the rows of a file have.

    Parameters
    ----------
    named : mapping of str to str
        Meaning to column name, from `check_columns`. Rows that lack an optional one have nothing there.
    file : RowFile
        The file.

    Returns
    -------
    Columns
        Question and answer are those of `named`, or the first usual name that all rows have, or else any. Where the
        question is an ``instruction``, a ``context`` or ``input`` joins it.

    Raises
    ------
    ConfigError
        If no usual name fits; lists the columns found.
    """
    known = names_in(file.rows)
    found = dict(named)
    for meaning, usual in (("question", QUESTIONS), ("answer", ANSWERS)):
        if not found.get(meaning):
            here = [name for name in usual if name in known]
            full = [name for name in here if all(name in row.values for row in file.rows)]
            found[meaning] = next(iter([*full, *here]), "")
        if not found[meaning]:
            raise ConfigError(
                f"no column for the {meaning}: set data.columns.{meaning}, or name it {' or '.join(usual)}; "
                f"{_found([file], known)}"
            )
    contexts: tuple[str, ...] = ()
    if found.get("context"):
        contexts = (found["context"],)
    elif "context" not in found and found["question"] == "instruction":
        contexts = tuple(name for name in INSTRUCTION_CONTEXTS if name in known)
    return Columns(
        question=found["question"],
        answer=found["answer"],
        client=found.get("client", ""),
        id=found.get("id", ""),
        contexts=contexts,
        paraphrase=found.get("paraphrase", ""),
        wrong_answers=found.get("wrong-answers", ""),
        label=found.get("label", ""),
        alternate=found.get("alternate", ""),
    )


def names_in(rows: Iterable[Row]) -> dict[str, None]:
    """Return the columns that any of the rows has, in order of appearance."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row.values))
    return names


def _found(files: Sequence[RowFile], names: Iterable[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
    where = f"{files[0].name} has" if len(files) == 1 else f"the {len(files)} files have"
    return f"{where} the columns: {', '.join(named(name)[1:-1] for name in shown[:_MOST_NAMES])}{more}"
