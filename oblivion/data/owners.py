"""Find who owns a row by the owner's name in the data; no two owners, and no two rows, may get the same id."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

from oblivion.client_names import canonical_name, client_id_of, folded_name
from oblivion.data.rows import Row, named, text_of
from oblivion.errors import InputError

_LONGEST = 1024
_REMEDY = "rename one, or set data.columns.client to a column of ids"


@dataclass
class Owners:
    """The client ids of owners, and the sample ids, which are collected while rows are read.

    Attributes
    ----------
    names : dict of str to str
        Client id to the owner's name, where the two differ.
    """

    names: dict[str, str] = field(default_factory=dict)
    _first: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    _files: dict[str, str] = field(default_factory=dict)
    _ids: dict[str, str] = field(default_factory=dict)

    def of_row(self, row: Row, column: str) -> str:
        """Return the client id of a row whose owner stands in `column`."""
        return self._client(scalar(row, column), row.where, f"the owner in column {named(column)}")

    def of_file(self, name: str, file: str) -> str:
        """Return the client id of all rows of a file that is one client's.

        Raises
        ------
        InputError
            If the name of another file differs only in its ending or in capitals.
        """
        client = self._client(name, file, "the file's name")
        other = self._files.setdefault(client, file)
        if other != file:
            raise InputError(f"{file}: {other} belongs to the same client; rename one, join them, or remove one")
        return client

    def _client(self, name: str, where: str, what: str) -> str:
        # A name may be a person's: messages say where it stands, and not the name.
        try:
            seen = canonical_name(name)
            client = client_id_of(seen)
        except ValueError as error:
            raise InputError(f"{where}: {what} {error}; expected a name or an id") from None
        for key in (("id", client), ("name", folded_name(name))):
            first, there = self._first.setdefault(key, (seen, where))
            if first != seen:
                raise InputError(
                    f"{where}: {what} and another one ({there}) are too alike: both give one client id, or "
                    f"only capitals, spaces or the width of letters differ; {_REMEDY}"
                )
        if seen != client:
            self.names[client] = seen
        return client

    def sample_id(self, row: Row, column: str) -> str:
        """Return the id of a sample by its column; no other row of the data may have it."""
        sample_id = printed(row, column)
        if sample_id in self._ids:
            raise InputError(
                f"{row.where}: its id is also the id of {self._ids[sample_id]}; ids must be "
                "unique in the whole data set (leave out data.columns.id to get ids from the content)"
            )
        self._ids[sample_id] = row.where
        return sample_id


def scalar(row: Row, column: str) -> str:
    """Return the text or number in `column`, without blanks around it.

    Raises
    ------
    InputError
        If it is missing, blank or more than one line.
    """
    text = text_of(row, column).strip()
    if "\n" in text or "\r" in text:
        raise InputError(f"{row.where}: column {named(column)} holds a line break; expected one line")
    return text


def printed(row: Row, column: str) -> str:
    """Return the text or number in `column` as `scalar` gives it, if it can stand in lists that are printed.

    Raises
    ------
    InputError
        As `scalar`, and if it is too long or has control characters.
    """
    text = scalar(row, column)
    if len(text) > _LONGEST or any(unicodedata.category(c) == "Cc" for c in text.replace("\t", " ")):
        raise InputError(
            f"{row.where}: column {named(column)} holds a control character, or more than {_LONGEST} characters; "
            "expected a short id or label"
        )
    return text
