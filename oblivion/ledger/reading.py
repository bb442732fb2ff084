"""The two tables of a ledger, read as if somebody without the keys had written them.

Whatever stands in them, reading ends with rows, and comparing ends with what is wrong, never with another error.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection

_RECORD = {
    "seq": int,
    "kind": str,
    "key": str,
    "branch": int,
    "round": int,
    "client": str,
    "content": str,
    "salt": bytes,
    "blob": str | None,
}


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(salt: bytes, kind: str, key: str, branch: int, round: int, client: str, content: str, blob: Any) -> str:
    """Salted SHA-256 of everything that a record says."""
    return hashlib.sha256(salt + canonical([kind, key, branch, round, client, content, blob]).encode()).hexdigest()


def authenticate(key: bytes, seq: int, root: bytes) -> bytes:
    """HMAC-SHA-256 of the log's root after its entry `seq`."""
    return hmac.digest(key, seq.to_bytes(8, "big") + root, "sha256")


def log_rows(connection: Connection) -> Iterator[tuple[int, bytes, bytes]]:
    """Every row of the log: its number, its entry and its code; empty ones for values of another kind."""
    for seq, entry, mac in connection.exec_driver_sql("SELECT seq, entry, mac FROM log ORDER BY seq"):
        text = entry.encode("utf-8", "surrogateescape") if isinstance(entry, str) else b""
        yield seq, text, mac if isinstance(mac, bytes) else b""


def record_rows(connection: Connection) -> Iterator[Mapping[str, Any]]:
    """Every row of the records, as it stands there."""
    for row in connection.exec_driver_sql(f"SELECT {', '.join(_RECORD)} FROM records ORDER BY seq"):
        yield dict(zip(_RECORD, row, strict=True))


def parse(text: str | bytes) -> dict[str, Any]:
    """A JSON object; nothing in it where the text is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def erased(entries: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """The numbers of the records that the log says were erased."""
    gone: set[int] = set()
    for entry in entries.values():
        pairs = entry.get("seqs") if entry.get("kind") == "erased" else None
        for pair in pairs if isinstance(pairs, list) else []:
            if isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair):
                gone.update(range(pair[0], min(pair[1], pair[0] + len(entries)) + 1))
    return gone


def fault(row: Mapping[str, Any], entries: Mapping[int, Mapping[str, Any]], gone: set[int]) -> str | None:
    """What is wrong with a record; None where it is what the log says."""
    if not all(isinstance(row[column], kind) for column, kind in _RECORD.items()):
        return "holds a value of a kind that no ledger writes: it was changed"
    parts = (row[column] for column in ("kind", "key", "branch", "round", "client", "content", "blob"))
    if entries.get(row["seq"], {}).get("digest") != digest(row["salt"], *parts):
        return "is not what the log says: it was changed, or stands in another's place"
    return "was erased, and is back" if row["seq"] in gone else None


def missing(entries: Mapping[int, Mapping[str, Any]], there: set[int], gone: set[int]) -> Iterator[str]:
    """The names of the records that the log knows and nobody erased, and that are not there."""
    for seq, entry in entries.items():
        if "digest" in entry and seq not in there and seq not in gone:
            yield f"record {seq} ({shown(entry.get('kind'))})"


def name(row: Mapping[str, Any]) -> str:
    """What a record is called in messages."""
    return f"record {row['seq']} ({shown(row['kind'])} {shown(row['key'])})"


def shown(value: Any, length: int = 80) -> str:
    """A value that anybody may have written, short and in printable ASCII."""
    return ascii(value)[1:-1][:length] if isinstance(value, str) else ascii(value)[:length]
