"""Whoever changes log, records or blobs without keys/ is found out, and where; what cannot be seen from within (the end
cut off, everything put back) is found against a checkpoint that was kept elsewhere."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import oblivion
from small_ledger import CLIENTS, SETTINGS, Clock, World, ask, build, learned, run_round, update

from oblivion.errors import IntegrityError
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.reading import canonical, digest
from oblivion.ledger.rounds import CohortOutcome, Selection
from oblivion.ledger.verify import Finding, verify_ledger

FOUND = 4
FEW, ALL = 150, 1000
COLUMNS = ("kind", "key", "branch", "round", "client", "content", "salt", "blob")
TEXTS = ("kind", "key", "client", "content", "blob")
HOSTILE = (b"../../x", b"a\x00b", b"x" * 4096, "\u202eevil".encode(), b"\xff\xfe", b"\xed\xa0\x80", b"", b"\x1b[2J")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("tampering") / "run")


class Desk:
    """Where somebody without keys/ works: a copy of the run, put back after each tampering."""

    def __init__(self, world: World, root: Path) -> None:
        self.world = world
        self.root, self.ledger, self.blobs = root, root / "ledger", root / "ledger" / "blobs"
        shutil.copytree(world.root, root)
        paths = sorted(self.ledger.rglob("*"))
        self.files = {p.relative_to(self.ledger): p.read_bytes() if p.is_file() else None for p in paths}
        self.log = {seq: (entry, mac) for seq, entry, mac in self.sql("SELECT seq, entry, mac FROM log")}
        rows = self.sql(f"SELECT seq, {', '.join(COLUMNS)} FROM records")
        self.records = {row[0]: dict(zip(COLUMNS, row[1:], strict=True)) for row in rows}
        self.sealed = {row["blob"]: seq for seq, row in self.records.items() if row["blob"]}
        self.untouched = self.content()

    def sql(self, *statements: str | tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Run statements, each with its parameters, as anybody can who has the file; return the last one's rows."""
        connection, rows = sqlite3.connect(self.ledger / "ledger.db", isolation_level=None), []
        try:
            connection.execute("PRAGMA synchronous=OFF")
            for statement in statements:
                text, *parameters = (statement,) if isinstance(statement, str) else statement
                rows = connection.execute(text, parameters).fetchall()
        finally:
            connection.close()
        return rows

    def content(self) -> list[Any]:
        """All that a ledger says: the codes, the other columns with their types, the other files."""
        codes, rows = self.sql("SELECT seq, typeof(mac), CAST(mac AS BLOB) FROM log ORDER BY seq"), []
        for table, columns in (("log", ("entry",)), ("records", COLUMNS)):
            parts = ", ".join(f"typeof({column}), CAST({column} AS BLOB)" for column in columns)
            rows += self.sql(f"SELECT '{table}', seq, {parts} FROM {table} ORDER BY seq")
        own = ("ledger.db", "ledger.db-wal", "ledger.db-shm", "lock")
        paths = [path for path in sorted(self.ledger.rglob("*")) if path.name not in own]
        return [codes, rows, [(str(path), path.is_file() and path.read_bytes()) for path in paths]]

    def path(self, blob: str) -> Path:
        return self.blobs / blob[:2] / blob

    def put_back(self) -> None:
        """Make the ledger what it was, touching only what is not."""
        for path in sorted(self.ledger.rglob("*"), reverse=True):
            if path.relative_to(self.ledger) not in self.files:
                path.rmdir() if path.is_dir() else path.unlink()
        for name, data in self.files.items():
            path = self.ledger / name
            if data is None:
                path.mkdir(exist_ok=True)
            elif path.is_dir() or not path.exists() or path.read_bytes() != data:
                if path.is_dir():
                    path.rmdir()
                path.write_bytes(data)

    def set(self, table: str, seq: int, **values: Any) -> None:
        """Change columns of a row; bytes go into a column of text as they are."""
        for column, value in values.items():
            cast = "CAST(? AS TEXT)" if column not in ("mac", "salt") and isinstance(value, bytes) else "?"
            self.sql((f"UPDATE {table} SET {column} = {cast} WHERE seq = ?", value, seq))

    def add(self, seq: int, row: dict[str, Any]) -> None:
        marks = ", ".join("?" for _ in COLUMNS)
        self.sql((f"INSERT INTO records (seq, {', '.join(COLUMNS)}) VALUES (?, {marks})", seq, *row.values()))

    def forge(self, seq: int, row: dict[str, Any]) -> str:
        """The log's entry as it would be if the record said what `row` says."""
        said = (
            json.loads(self.log[seq][0]) if seq in self.log else {"kind": row["kind"], "time": "2026-03-01T12:00:00Z"}
        )
        said |= {"digest": digest(row["salt"], *(row[c] for c in COLUMNS if c != "salt"))}
        return canonical(said | {"seq": seq, "kind": row["kind"], "branch": row["branch"], "round": row["round"]})


Place = str
Tampering = Callable[[random.Random, Desk], "list[Place]"]
"""Does something and says which places may be named for it."""


def entry(*seqs: int) -> list[Place]:
    return [f"log entry {seq}" for seq in seqs]


def record(*seqs: int) -> list[Place]:
    return [f"record {seq}" for seq in seqs]


def names(findings: list[Finding], place: Place) -> bool:
    """Whether one of the findings is about a place; one that names a whole log does not count."""
    for finding in findings:
        if re.match(rf"{re.escape(place)}(?!\d)", finding.where):
            return True
        if f"log {finding.what}" == f"log missing: {place.removeprefix('log ')} follows":
            return True
        cut = re.fullmatch(r"log entries (\d+) to (\d+)", finding.where)
        number = re.fullmatch(r"log entry (-?\d+)", place)
        if cut and number and 1 < int(cut[1]) <= int(number[1]) <= int(cut[2]):
            return True
    return False


def flip(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def hexadecimal(rng: random.Random, length: int = 64) -> str:
    return rng.randbytes(length // 2).hex()


def two(rng: random.Random, among: Any) -> list[Any]:
    return sorted(rng.sample(sorted(among), 2))


# The log


def flip_a_bit_of_an_entry(rng: random.Random, desk: Desk) -> list[Place]:
    seq = rng.choice(list(desk.log))
    desk.set("log", seq, entry=flip(rng, desk.log[seq][0].encode()))
    return entry(seq)


def flip_a_bit_of_a_code(rng: random.Random, desk: Desk) -> list[Place]:
    seq = rng.choice(list(desk.log))
    desk.set("log", seq, mac=flip(rng, desk.log[seq][1]))
    return entry(seq)


def edit_an_entry_plausibly(rng: random.Random, desk: Desk) -> list[Place]:
    seq = rng.choice(list(desk.log))
    said = json.loads(desk.log[seq][0])
    field = rng.choice(sorted(said))
    other: dict[str, Any] = {
        "time": "2026-03-01T11:59:59Z",
        "kind": rng.choice(["erased", "removal", "note"]),
        "seq": rng.choice([seq + 1, 0, -seq, str(seq), None, 10**30]),
        "branch": said.get("branch", 0) + 1,
        "round": said.get("round", 0) + 1,
        "digest": hexadecimal(rng),
        "why": "retention",
        "seqs": rng.choice([[[1, 9]], [[1, 10**12]], [], [[2]], 7, [["a", "b"]], [[1, 2, 3]], None]),
        "guarantee": "approximate",
        "request": "req-000000000000",
        "before": {},
        "after": {"adapter_model.safetensors": hexadecimal(rng)},
    }
    if rng.random() < 0.2:
        said.pop(field)
    else:
        said[field] = other[field]
    desk.set("log", seq, entry=canonical(said))
    return entry(seq)


def write_something_else_in_the_log(rng: random.Random, desk: Desk) -> list[Place]:
    seq = rng.choice(list(desk.log))
    said, mac = desk.log[seq]
    kind = rng.randrange(6)
    if kind == 0:  # the same bytes as another type
        desk.sql(("UPDATE log SET entry = CAST(? AS BLOB) WHERE seq = ?", said, seq))
    elif kind == 1:
        desk.sql(("UPDATE log SET mac = CAST(? AS TEXT) WHERE seq = ?", mac.hex(), seq))
    elif kind == 2:
        desk.set("log", seq, mac=rng.choice([b"", mac[:-1], mac + b"\0", bytes(32)]))
    elif kind == 3:
        desk.set("log", seq, entry=rng.choice(HOSTILE))
    elif kind == 4:
        desk.set("log", seq, entry=rng.choice(["[" * 100_000, "[]", "null", "1e999", said + " ", f"{said}\n"]))
    else:
        desk.sql(("UPDATE log SET entry = ?, mac = ? WHERE seq = ?", rng.randrange(10**6), rng.random(), seq))
    return entry(seq)


def delete_an_entry(rng: random.Random, desk: Desk) -> list[Place]:
    seq = rng.choice(list(desk.log))
    desk.sql(("DELETE FROM log WHERE seq = ?", seq))
    return entry(seq)


def delete_entries_with_their_records(rng: random.Random, desk: Desk) -> list[Place]:
    first, last = two(rng, desk.log)
    for table in ("log", "records"):
        desk.sql((f"DELETE FROM {table} WHERE seq BETWEEN ? AND ?", first, last))
    return entry(first)


def close_the_gap_behind_a_deleted_entry(rng: random.Random, desk: Desk) -> list[Place]:
    seq, renumbered = rng.choice(list(desk.log)[:-1]), rng.random() < 0.5
    desk.sql(("DELETE FROM log WHERE seq = ?", seq))
    desk.sql(("DELETE FROM records WHERE seq = ?", seq))
    for number in range(seq + 1, len(desk.log) + 1):
        desk.sql(("UPDATE log SET seq = ? WHERE seq = ?", number - 1, number))
        desk.sql(("UPDATE records SET seq = ? WHERE seq = ?", number - 1, number))
        if renumbered:
            said = json.loads(desk.log[number][0]) | {"seq": number - 1}
            desk.set("log", number - 1, entry=canonical(said))
    return entry(seq)


def insert_an_entry(rng: random.Random, desk: Desk) -> list[Place]:
    seq = rng.choice([0, -1, -(2**62), len(desk.log) + 1, len(desk.log) + 7, 2**62])
    said, mac = desk.log[rng.choice(list(desk.log))]
    said = canonical(json.loads(said) | {"seq": seq}) if rng.random() < 0.8 else said
    desk.sql(("INSERT INTO log VALUES (?, ?, ?)", seq, said, mac))
    return entry(seq)


def insert_an_entry_in_between(rng: random.Random, desk: Desk) -> list[Place]:
    place = rng.choice(list(desk.log))
    for number in range(len(desk.log), place - 1, -1):
        desk.sql(("UPDATE log SET seq = ? WHERE seq = ?", number + 1, number))
    said = canonical({"kind": "note", "seq": place, "time": "2026-03-01T12:00:00Z"})
    desk.sql(("INSERT INTO log VALUES (?, ?, ?)", place, said, rng.randbytes(32)))
    return entry(place)


def renumber_an_entry(rng: random.Random, desk: Desk) -> list[Place]:
    seq, other = rng.choice(list(desk.log)), rng.choice([0, -4, len(desk.log) + 1, 10**9])
    desk.sql(("UPDATE log SET seq = ? WHERE seq = ?", other, seq))
    return entry(seq, other)


def swap_two_entries(rng: random.Random, desk: Desk) -> list[Place]:
    one, other = two(rng, desk.log)
    renumbered, codes = rng.random() < 0.5, rng.random() < 0.5
    for place, source in ((one, other), (other, one)):
        said, mac = desk.log[source]
        desk.set("log", place, entry=canonical(json.loads(said) | {"seq": place}) if renumbered else said)
        if codes:
            desk.set("log", place, mac=mac)
    return entry(one, other)


# Records


def flip_a_bit_of_a_record(rng: random.Random, desk: Desk) -> list[Place]:
    seq = rng.choice(list(desk.records))
    column = rng.choice([c for c in (*TEXTS, "salt") if desk.records[seq][c]])
    value = desk.records[seq][column]
    desk.set("records", seq, **{column: flip(rng, value if isinstance(value, bytes) else value.encode())})
    return record(seq)


def edit_a_record_plausibly(rng: random.Random, desk: Desk) -> list[Place]:
    seq = rng.choice(list(desk.records))
    desk.set("records", seq, **plausible(rng, desk, seq))
    return record(seq)


def plausible(rng: random.Random, desk: Desk, seq: int) -> dict[str, Any]:
    """Another value for one column that looks as if the ledger had written it."""
    row = desk.records[seq]
    content, column = json.loads(row["content"]), rng.choice(COLUMNS)
    if column == "content" or rng.random() < 0.4:
        lies: list[tuple[str, Any]] = [
            ("num_examples", 10**6), ("steps", 0), ("norms", {"layer.lora_A": 0.0}), ("metrics", {"loss": 0.1}),
            ("fingerprint", "0" * 16), ("selected", ["ana"]), ("accepted", ["ana", "eve"]), ("loss", 0.001),
            ("refused", {"ben": "too large"}), ("failed", {"cem": "no reply"}), ("guarantee", "exact, really"),
            ("from_round", 1), ("replayed", 99), ("state", "refused"), ("ground", "none of our business"),
            ("public_key", hexadecimal(rng)), ("client", "ben"), ("samples", ["rows/9"]),
            ("due_at", "2036-01-01T00:00:00Z"), ("expires", "2036-01-01T00:00:00Z"),
            ("signature", hexadecimal(rng, 128)), ("gate", []), ("seed", 2), ("absent", []), ("rounds", 9),
            ("parent", None), ("fork", 0), ("history", False), ("unlearned", True), ("branch", "main"),
            ("request", "req-000000000000"), ("seconds", 0.5),
        ]  # fmt: skip
        fitting = [(key, value) for key, value in lies if key in content and content[key] != value]
        key, value = rng.choice(fitting or [("more", 1)])
        return {"content": canonical(content | {key: value})}
    others: dict[str, Any] = {
        "kind": rng.choice(["round", "state", "exclusion", "contributions"]),
        "key": f"{row['key']}{rng.randrange(10)}",
        "branch": row["branch"] + rng.choice([1, -1, 70]),
        "round": row["round"] + rng.choice([1, -1]),
        "client": rng.choice([client for client in (*CLIENTS, "") if client != row["client"]]),
        "salt": rng.randbytes(16),
        "blob": rng.choice([name for name in desk.sealed if name != row["blob"]]),
    }
    return {column: others[column]}


def write_something_else_in_a_record(rng: random.Random, desk: Desk) -> list[Place]:
    seq, column = rng.choice(list(desk.records)), rng.choice(COLUMNS)
    row = desk.records[seq]
    if column in ("branch", "round"):
        desk.set("records", seq, **{column: rng.choice([f"{row[column]}x", 0.5, b"7", 2**62, -(2**62)])})
    elif column == "salt":
        desk.sql(("UPDATE records SET salt = CAST(? AS TEXT) WHERE seq = ?", row["salt"].hex(), seq))
    elif rng.random() < 0.4 and row[column] is not None:  # the same bytes as another type
        desk.sql((f"UPDATE records SET {column} = CAST(? AS BLOB) WHERE seq = ?", row[column], seq))
    else:
        desk.set(
            "records", seq, **{column: rng.choice([value for value in HOSTILE if value.decode("latin") != row[column]])}
        )
    return record(seq)


def delete_a_record(rng: random.Random, desk: Desk) -> list[Place]:
    seq = rng.choice(list(desk.records))
    desk.sql(("DELETE FROM records WHERE seq = ?", seq))
    return record(seq)


def insert_a_record(rng: random.Random, desk: Desk) -> list[Place]:
    free = [seq for seq in desk.log if seq not in desk.records]
    seq = rng.choice([*rng.sample(free, 3), 0, -3, len(desk.log) + 1, 2**62])
    row = desk.records[rng.choice(list(desk.records))]
    desk.add(seq, row | {"key": f"{row['key']}+"})
    return record(seq)


def renumber_a_record(rng: random.Random, desk: Desk) -> list[Place]:
    seq = rng.choice(list(desk.records))
    other = rng.choice([seq for seq in [*desk.log, 0, -2, 10**9] if seq not in desk.records])
    desk.sql(("UPDATE records SET seq = ? WHERE seq = ?", other, seq))
    return record(seq, other)


def swap_columns_of_two_records(rng: random.Random, desk: Desk) -> list[Place]:
    which = rng.choice([COLUMNS, ("content",), ("blob",), ("salt",), ("client",), ("content", "salt"), ("round",)])
    pairs = [two(rng, desk.records) for _ in range(50)]
    differing = [(a, b) for a, b in pairs if any(desk.records[a][c] != desk.records[b][c] for c in which)]
    one, other = differing[0]
    rows = {seq: desk.records[seq] for seq in (one, other)}
    desk.sql(("DELETE FROM records WHERE seq IN (?, ?)", one, other))
    desk.add(one, rows[one] | {column: rows[other][column] for column in which})
    desk.add(other, rows[other] | {column: rows[one][column] for column in which})
    return record(one, other)


def put_an_erased_record_back(rng: random.Random, desk: Desk) -> list[Place]:
    old, salt = rng.choice(desk.world.erased)
    row = {c: canonical(old.content) if c == "content" else salt if c == "salt" else getattr(old, c) for c in COLUMNS}
    desk.add(old.seq, row)
    if old.blob and rng.random() < 0.5:
        desk.path(old.blob).parent.mkdir(exist_ok=True)
        desk.path(old.blob).write_bytes(desk.world.erased_blobs[old.blob])
    return record(old.seq)


# Records together with what can be computed without a key


def forge_a_record_and_its_digest(rng: random.Random, desk: Desk) -> list[Place]:
    seq = rng.choice(list(desk.records))
    row = desk.records[seq] | plausible(rng, desk, seq) | {"salt": rng.randbytes(16)}
    desk.set("records", seq, **row)
    desk.set("log", seq, entry=desk.forge(seq, row))
    return entry(seq)


def forge_a_record_of_nonsense(rng: random.Random, desk: Desk) -> list[Place]:
    """What a verification looks into must not be believed because its digest fits."""
    seq = rng.choice(list(desk.records))
    row = desk.records[seq] | {
        "kind": rng.choice(["removal", "exclusion", "request", "branch", "contribution", "round"])
    }
    row["key"] = f"forged/{seq}"
    row["client"] = rng.choice(["", "../../keys/log", "x" * 4096, "a\x00b"])
    row["content"] = rng.choice(
        ["", "null", "{}", "[]", '{"client":3}', '{"request":[]}', '{"selected":7}', "[" * 100_000]
    )
    row["blob"] = rng.choice([None, "", "../../../keys/log.key", "0" * 64, hexadecimal(rng)])
    desk.set("records", seq, **row)
    desk.set("log", seq, entry=desk.forge(seq, row))
    return entry(seq)


def forge_a_blob_and_everything_over_it(rng: random.Random, desk: Desk) -> list[Place]:
    blob, seq = rng.choice(list(desk.sealed.items()))
    data = flip(rng, desk.path(blob).read_bytes())
    name = hashlib.sha256(data).hexdigest()
    desk.path(name).parent.mkdir(exist_ok=True)
    desk.path(name).write_bytes(data)
    desk.path(blob).unlink()
    row = desk.records[seq] | {"blob": name}
    desk.set("records", seq, blob=name)
    if rng.random() < 0.5:
        return record(seq)
    desk.set("log", seq, entry=desk.forge(seq, row))
    return entry(seq)


def append_a_forged_record(rng: random.Random, desk: Desk) -> list[Place]:
    seq, row = len(desk.log) + 1, desk.records[rng.choice(list(desk.records))]
    row = row | {"key": f"{row['key']}+", "salt": rng.randbytes(16)}
    mac = rng.choice([desk.log[len(desk.log)][1], rng.randbytes(32)])
    desk.sql(("INSERT INTO log VALUES (?, ?, ?)", seq, desk.forge(seq, row), mac))
    desk.add(seq, row)
    return entry(seq)


def erase_a_record_in_the_log_too(rng: random.Random, desk: Desk) -> list[Place]:
    seq, last = rng.choice(list(desk.records)), len(desk.log) + 1
    blob = desk.records[seq]["blob"]
    desk.sql(("DELETE FROM records WHERE seq = ?", seq))
    if blob:
        desk.path(blob).unlink()
    if rng.random() < 0.5:
        note = canonical(
            {"kind": "erased", "seq": last, "seqs": [[seq, seq]], "time": "2026-03-02T12:00:00Z", "why": "-"}
        )
        desk.sql(("INSERT INTO log VALUES (?, ?, ?)", last, note, desk.log[last - 1][1]))
        return entry(last)
    place = rng.choice([number for number, (said, _) in desk.log.items() if '"kind":"erased"' in said])
    said = json.loads(desk.log[place][0])
    desk.set("log", place, entry=canonical(said | {"seqs": [*said["seqs"], [seq, seq]]}))
    return entry(place)


# Blobs and other files


def some_blob(rng: random.Random, desk: Desk) -> tuple[Path, int]:
    blob, seq = rng.choice(list(desk.sealed.items()))
    return desk.path(blob), seq


def flip_a_bit_of_a_blob(rng: random.Random, desk: Desk) -> list[Place]:
    path, seq = some_blob(rng, desk)
    path.write_bytes(flip(rng, path.read_bytes()))
    return record(seq)


def cut_or_lengthen_a_blob(rng: random.Random, desk: Desk) -> list[Place]:
    path, seq = some_blob(rng, desk)
    data = path.read_bytes()
    path.write_bytes(rng.choice([b"", data[: rng.randrange(1, len(data))], data + b"\0", data * 2, data[12:]]))
    return record(seq)


def delete_a_blob(rng: random.Random, desk: Desk) -> list[Place]:
    path, seq = some_blob(rng, desk)
    path.unlink()
    if rng.random() < 0.3:
        path.mkdir()
    return record(seq)


def swap_two_blobs(rng: random.Random, desk: Desk) -> list[Place]:
    one, other = two(rng, desk.sealed)
    contents = desk.path(one).read_bytes(), desk.path(other).read_bytes()
    desk.path(one).write_bytes(contents[1])
    desk.path(other).write_bytes(contents[0])
    return record(desk.sealed[one], desk.sealed[other])


def move_a_blob(rng: random.Random, desk: Desk) -> list[Place]:
    path, seq = some_blob(rng, desk)
    place = rng.choice([desk.blobs / path.name, desk.blobs / "zz" / path.name, path.with_name(hexadecimal(rng))])
    place.parent.mkdir(exist_ok=True)
    path.rename(place)
    return record(seq)


def add_a_file(rng: random.Random, desk: Desk) -> list[Place]:
    erased, data = rng.choice(list(desk.world.erased_blobs.items())), rng.randbytes(200)
    own, _ = some_blob(rng, desk)
    name, content = rng.choice(
        [
            (f"blobs/{erased[0][:2]}/{erased[0]}", erased[1]),  # a backup of what was erased comes back
            (f"blobs/{hashlib.sha256(data).hexdigest()[:2]}/{hashlib.sha256(data).hexdigest()}", data),
            (f"blobs/{own.name}", own.read_bytes()),
            (f"blobs/zz/{own.name}", own.read_bytes()),
            ("blobs/ab/notes.txt", b"x"),
            ("blobs/ab/.x.0123456789abcdef.oblivion-partial", b"x"),
            ("blobs/.hidden/\u202ex", b"x"),
            ("ledger.db.bak", b"x"),
            ("deep/er/ledger.db", b"x"),
        ]
    )
    (desk.ledger / name).parent.mkdir(parents=True, exist_ok=True)
    (desk.ledger / name).write_bytes(content)
    return [ascii(f"ledger/{name}")[1:-1]]


def use_another_record_s_blob(rng: random.Random, desk: Desk) -> list[Place]:
    """Under the right name, and with all that can be computed without a key: the seal is another's."""
    one, other = two(rng, desk.sealed)
    seq = desk.sealed[one]
    row = desk.records[seq] | {"blob": other}
    desk.set("records", seq, blob=other)
    if rng.random() < 0.5:
        return record(seq)
    desk.set("log", seq, entry=desk.forge(seq, row))
    return entry(seq)


TAMPERINGS: list[Tampering] = [
    flip_a_bit_of_an_entry, flip_a_bit_of_a_code, edit_an_entry_plausibly, write_something_else_in_the_log,
    delete_an_entry, delete_entries_with_their_records, close_the_gap_behind_a_deleted_entry, insert_an_entry,
    insert_an_entry_in_between, renumber_an_entry, swap_two_entries,
    flip_a_bit_of_a_record, edit_a_record_plausibly, write_something_else_in_a_record, delete_a_record,
    insert_a_record, renumber_a_record, swap_columns_of_two_records, put_an_erased_record_back,
    forge_a_record_and_its_digest, forge_a_record_of_nonsense, forge_a_blob_and_everything_over_it,
    append_a_forged_record, erase_a_record_in_the_log_too,
    flip_a_bit_of_a_blob, cut_or_lengthen_a_blob, delete_a_blob, swap_two_blobs, move_a_blob, add_a_file,
    use_another_record_s_blob,
]  # fmt: skip


@pytest.fixture(scope="module")
def desk(world: World, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(world, tmp_path_factory.mktemp("desk") / "run")


def tamper(desk: Desk, numbers: range) -> Counter[str]:
    """Tamper, verify, open, put back; every number is another tampering, the same one at every run."""
    done: Counter[str] = Counter()
    missed = []
    for number in numbers:
        act = TAMPERINGS[number % len(TAMPERINGS)]
        try:
            places = act(random.Random(f"tampering {number}"), desk)
            codes, rows, files = (now != before for now, before in zip(desk.content(), desk.untouched, strict=True))
            assert codes or rows or files, (number, act.__name__, "changed nothing")
            findings = verify_ledger(desk.root).findings
            if not any(names(findings, place) for place in places):
                missed.append((number, act.__name__, places, findings[:5]))
            if rows and opens(desk.root):  # nothing may be decided by records that somebody else wrote
                missed.append((number, act.__name__, places, "was opened"))
        finally:
            desk.put_back()
        done[act.__name__] += 1
    assert not missed, (len(missed), missed[:5])
    return done


def opens(root: Path) -> bool:
    try:
        open_ledger(root, SETTINGS)[0].close()
    except IntegrityError:
        return False
    return True


def test_an_untouched_ledger_has_no_finding(world: World, desk: Desk) -> None:
    done = verify_ledger(world.root)
    assert done.findings == [] and (done.entries, done.records) == (len(desk.log), len(desk.records))
    assert done.blobs == len(desk.sealed) > 20 and len(world.erased) > 20
    kinds = {row["kind"] for row in desk.records.values()}
    assert kinds >= {
        "branch",
        "selection",
        "cohort",
        "contribution",
        "round",
        "state",
        "request",
        "exclusion",
        "removal",
    }
    assert opens(desk.root)


def test_tamperings_are_found_and_located(desk: Desk) -> None:
    assert len(tamper(desk, range(FEW))) == len(TAMPERINGS), "each kind is tried"


@pytest.mark.slow
def test_a_thousand_tamperings_are_found_and_located(desk: Desk) -> None:
    assert sum(tamper(desk, range(FEW, ALL)).values()) == ALL - FEW


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("CREATE TRIGGER keep AFTER DELETE ON records BEGIN SELECT 1; END", "has the trigger 'keep'"),
        ("CREATE TABLE copy AS SELECT * FROM records", "has the table 'copy'"),
        ("DROP INDEX records_by_place", "lacks the index 'records_by_place'"),
        ("DROP TABLE records", "records"),
        ("DROP TABLE log", "log"),
    ],
)
def test_what_is_no_table_of_a_ledger_is_refused(desk: Desk, change: str, words: str) -> None:
    """A trigger could keep what is erased."""
    desk.sql(change)
    try:
        for act in (verify_ledger, lambda root: open_ledger(root, SETTINGS)):
            with pytest.raises(IntegrityError, match=words):
                act(desk.root)
    finally:
        desk.put_back()


def test_nobody_takes_the_place_of_a_client(world: World, desk: Desk) -> None:
    """A request key that was put into the database is not believed."""
    (seq,) = (seq for seq, row in desk.records.items() if (row["kind"], row["client"]) == ("client", "ana"))
    desk.set("records", seq, content=canonical({"public_key": "0" * 64}))
    try:
        with pytest.raises(IntegrityError, match=rf"record {seq} \(client ana\) is not what the log says"):
            open_ledger(desk.root, SETTINGS)
    finally:
        desk.put_back()


# What only a checkpoint that was kept elsewhere can tell


def verified(root: Path, checkpoint: Path | None = None) -> tuple[int, list[dict[str, str]]]:
    more = ["--checkpoint", checkpoint] if checkpoint else []
    code, out, err = oblivion("ledger", "verify", root, "--json", *more)
    assert code in (0, FOUND) and err == ""
    findings: list[dict[str, str]] = json.loads(out)["findings"]
    assert bool(findings) == (code == FOUND)
    return code, findings


def exported(root: Path, path: Path) -> Path:
    code, out, _ = oblivion("ledger", "export", root, "--checkpoint", path)
    assert code == 0 and json.loads(out) == json.loads(path.read_text())
    return path


def cut(root: Path, size: int) -> None:
    """Take the end of the log away with all that belongs to it, as somebody who knows the format would."""
    connection = sqlite3.connect(root / "ledger" / "ledger.db", isolation_level=None)
    blobs = connection.execute("SELECT blob FROM records WHERE seq > ? AND blob IS NOT NULL", (size,)).fetchall()
    connection.execute("DELETE FROM records WHERE seq > ?", (size,))
    connection.execute("DELETE FROM log WHERE seq > ?", (size,))
    connection.close()
    for (name,) in blobs:
        (root / "ledger" / "blobs" / name[:2] / name).unlink()


def unanchored(root: Path) -> tuple[int, dict[str, Any]]:
    """Begin a round and store a cohort, which keys/ are not told of; return their size of the log, and a checkpoint."""
    ledger, register = open_ledger(root, SETTINGS, now=Clock())
    main = register.head()
    seen = ledger.book.checkpoint().size
    number = ledger.records(main)[-1].round + 1
    ledger.begin(Selection(branch=main, round=number, selected=("ana", "ben"), cohorts=(("ana", "ben"),)))
    updates = tuple(update(client, number, main) for client in ("ana", "ben"))
    ledger.append(CohortOutcome(branch=main, round=number, cohort=0, updates=updates))
    checkpoint = ledger.book.checkpoint().to_json()
    ledger.close()
    return seen, checkpoint


def test_a_log_whose_end_was_cut_off(world: World, tmp_path: Path) -> None:
    root, kept = tmp_path / "run", tmp_path / "checkpoint.json"
    shutil.copytree(world.root, root)
    seen, checkpoint = unanchored(root)
    kept.write_text(json.dumps(checkpoint))
    assert verified(root, kept) == (0, [])
    for size in (checkpoint["size"] - 1, seen):
        cut(root, size)
        assert verified(root) == (0, []), "keys/ know nothing of what came after"
        code, findings = verified(root, kept)
        assert code == FOUND
        assert findings[0]["where"] == f"log entries {size + 1} to {checkpoint['size']}"
        assert "the given checkpoint are missing" in findings[0]["what"]


def test_a_log_that_is_shorter_than_keys_have_seen_needs_no_checkpoint(world: World, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(world.root, root)
    size = verify_ledger(root).entries
    cut(root, size - 1)
    code, findings = verified(root)
    assert code == FOUND and findings[0]["where"] == f"log entries {size} to {size}"
    assert not opens(root)


def test_everything_put_back_to_an_earlier_day(tmp_path: Path) -> None:
    root, earlier, kept = tmp_path / "run", tmp_path / "earlier", tmp_path / "checkpoint.json"
    ledger, register = learned(root)
    asked = ask(register, "eve")
    ledger.close()
    shutil.copytree(root, earlier)
    ledger, register = open_ledger(root, SETTINGS, now=Clock())
    register.move(asked.request.id, "refused", "we would rather not have done this")
    ledger.close()
    exported(root, kept)
    assert verified(root, kept) == (0, [])
    shutil.rmtree(root)
    shutil.copytree(earlier, root)  # keys/ too
    assert verified(root) == (0, [])
    code, findings = verified(root, kept)
    assert code == FOUND and "are missing: an older copy?" in findings[0]["what"]


def test_the_ledger_alone_put_back_is_seen_by_the_keys(world: World, tmp_path: Path) -> None:
    root, ledger = tmp_path / "run", tmp_path / "ledger"
    shutil.copytree(world.root, root)
    shutil.copytree(root / "ledger", ledger)
    opened, register = open_ledger(root, SETTINGS, now=Clock())
    ask(register, "cem")
    opened.close()
    shutil.rmtree(root / "ledger")
    shutil.copytree(ledger, root / "ledger")
    assert verified(root)[0] == FOUND
    with pytest.raises(IntegrityError, match="is an older copy"):
        open_ledger(root, SETTINGS)


def test_a_forked_history(tmp_path: Path) -> None:
    """Two continuations of one run, with the same keys, equally long: one is not the other, nor its beginning."""
    roots = tmp_path / "one", tmp_path / "other"
    ledger, _ = learned(roots[0])
    ledger.close()
    before = exported(roots[0], tmp_path / "before.json")
    shutil.copytree(*roots)
    for root, client in zip(roots, ("ana", "ben"), strict=True):
        ledger, register = open_ledger(root, SETTINGS, now=Clock())
        ask(register, client)
        ledger.close()
    checkpoints = [exported(root, tmp_path / f"{root.name}.json") for root in roots]
    one, other = (json.loads(path.read_text()) for path in checkpoints)
    assert one["size"] == other["size"] and one["root"] != other["root"]
    for longer in (False, True):
        for root, own, foreign in ((roots[0], *checkpoints), (roots[1], *checkpoints[::-1])):
            assert verified(root, own) == verified(root, before) == (0, [])
            code, findings = verified(root, foreign)
            assert code == FOUND
            assert findings == [
                {"where": f"log entries 1 to {one['size']}", "what": "are not those of the given checkpoint"}
            ]
            if not longer:
                ledger, register = open_ledger(root, SETTINGS, now=Clock())
                run_round(ledger, "main", 5, CLIENTS)
                ledger.close()


def test_a_checkpoint_of_another_run_is_refused(world: World, tmp_path: Path) -> None:
    ledger, _ = learned(tmp_path / "other")
    ledger.close()
    kept = exported(tmp_path / "other", tmp_path / "checkpoint.json")
    code, findings = verified(world.root, kept)
    assert code == FOUND
    assert {"where": "the given checkpoint", "what": "is not signed by this run's key"} in findings
    assert verified(world.root) == (0, [])


@pytest.mark.parametrize("field", ["size", "root", "signature"])
def test_an_altered_checkpoint_is_refused(world: World, tmp_path: Path, field: str) -> None:
    kept = exported(world.root, tmp_path / "checkpoint.json")
    said = json.loads(kept.read_text())
    said[field] = said[field] - 1 if field == "size" else said[field][::-1]
    kept.write_text(json.dumps(said))
    code, findings = verified(world.root, kept)
    assert code == FOUND and findings[-1]["where"] == "the given checkpoint"


def test_an_exported_log_is_the_tree_of_its_checkpoint(world: World, tmp_path: Path) -> None:
    """Whoever keeps the export can hold it to the checkpoint without Oblivion: RFC 6962, 2.1, written out here."""
    log, kept = tmp_path / "log.jsonl", tmp_path / "checkpoint.json"
    assert oblivion("ledger", "export", world.root, "--out", log, "--checkpoint", kept)[0] == 0
    level = [hashlib.sha256(b"\0" + line.encode()).digest() for line in log.read_text().splitlines()]
    assert len(level) == json.loads(kept.read_text())["size"]

    def root(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        half = 1 << (len(leaves) - 1).bit_length() - 1
        return hashlib.sha256(b"\1" + root(leaves[:half]) + root(leaves[half:])).digest()

    assert root(level).hex() == json.loads(kept.read_text())["root"]
