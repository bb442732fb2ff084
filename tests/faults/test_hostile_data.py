"""Data files from strangers: no pipe or device is read, no line without end, and no error repeats a row."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from oblivion.config import DataConfig
from oblivion.data import csv_rows, parquet_rows, row_files, rows
from oblivion.data.datasets.jsonl import load
from oblivion.errors import ConfigError, InputError, OblivionError

CANARY = "SECRETCANARY"


def refused(path: Path, columns: dict[str, str] | None = None) -> str:
    with pytest.raises((InputError, ConfigError)) as error:
        load(DataConfig(name="jsonl", path=str(path), columns=columns or {}), clients=2, seed=0)
    return str(error.value)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_no_data(kind: str, inside: bool, tmp_path: Path) -> None:
    """Finding m3: a pipe hung, and /dev/zero was read into memory."""
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert f"is a {kind}, not a file" in refused(tmp_path if inside else path)


def test_a_row_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "LONGEST", 2**20)
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n" + "q,a\n" * 50 + "q," + "a" * 2**20)
    assert "rows.csv:52: a row of more than 1 million characters" in refused(path)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (f'{{"question": "q", "answer": "a", "client": "a\\n{CANARY}"}}', {"client": "client"}),
        ("\n".join(f'{{"question": "{n}", "answer": "a", "id": "{CANARY}"}}' for n in range(2)), {"id": "id"}),
        (f'{{"messages": [{{"role": "{CANARY}", "content": "{CANARY}"}}]}}', {}),
        (f'{{"{CANARY}": {{"question": "q"}}}}', {}),
        (f'{{"question": "{CANARY}", "answer": []}}', {}),
        (f'[{{"question": "{CANARY}", "answer": "a"}}', {}),
        (f'{{"question": "q", "answer": {{"{CANARY}": 1, "{CANARY}": 1}}}}', {}),
    ],
)  # fmt: skip
def test_no_error_repeats_a_row(text: str, columns: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert CANARY not in refused(path, columns)


BAD: list[Any] = [None, 7, True, [], {}, [CANARY], {CANARY: CANARY}, "", " ", 1e999]
BAD += [f"{CANARY}\n{CANARY}", f"\x1b[2J{CANARY}"]
FIELDS = ("question", "answer", "owner", "key", "paraphrased_answer", "perturbed_answer")


def rows_with(field: str, value: Any) -> list[dict[str, Any]]:
    """Three rows with the canary in every cell, the second of them with another value in one."""
    rows = [{name: f"{CANARY} {name} {number}" for name in FIELDS} for number in range(3)]
    rows[1][field] = value
    return rows


def layouts(rows: list[dict[str, Any]]) -> dict[str, str]:
    def chat(question: str, text: str) -> list[dict[str, Any]]:
        return [{question: "user", text: row["question"]} | {"extra": row} for row in rows[:1]] + [
            {question: row["key"], text: row["answer"]} for row in rows
        ]

    lines = io.StringIO()
    table = csv.DictWriter(lines, FIELDS)
    table.writeheader()
    table.writerows(rows)
    return {
        "rows.jsonl": "\n".join(json.dumps(row) for row in rows),
        "rows.json": json.dumps(rows),
        "wrapped.json": json.dumps({"data": rows}),
        "columns.json": json.dumps({name: [row[name] for row in rows] for name in FIELDS}),
        "index.json": json.dumps({name: {CANARY + str(i): row[name] for i, row in enumerate(rows)} for name in FIELDS}),
        "rows.csv": lines.getvalue(),
        "ragged.csv": lines.getvalue() + f"{CANARY},{CANARY},,,,,,{CANARY}\n",
        "open.csv": lines.getvalue() + f'"{CANARY},',
        "cut.jsonl": "\n".join(json.dumps(row) for row in rows)[:-9],
        "chat.jsonl": json.dumps({"messages": chat("role", "content")}),
        "sharegpt.jsonl": json.dumps({"conversations": chat("from", "value")}),
        "twice.jsonl": "\n".join(json.dumps(row) for row in [*rows, rows[0]]),
    }


def test_no_layout_with_a_bad_cell_is_repeated(tmp_path: Path) -> None:
    columns = {"question": "question", "answer": "answer", "client": "owner", "id": "key"}
    refusals = 0
    for field, value in itertools.product(FIELDS, BAD):
        for name, text in layouts(rows_with(field, value)).items():
            path = tmp_path / name
            path.write_text(text)
            for chosen in (columns, {}, {**columns, "answer": "missing"}):
                try:
                    load(DataConfig(name="jsonl", path=str(path), columns=chosen), clients=2, seed=0)
                except OblivionError as error:
                    refusals += 1
                    assert CANARY not in str(error) and "\x1b" not in str(error), (name, field, value)
    assert refusals > 1000


def test_an_archive_that_unpacks_to_endless_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 KB that became three gigabytes of empty records, and a table likewise."""
    monkeypatch.setattr(row_files, "MOST_VALUES", 10**5)
    for name, line in (("rows.json", b"{},"), ("rows.csv", b",\n")):
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress((b"[" if name == "rows.json" else b"question,answer\n") + line * 10**5))
        assert "more than 100000 values" in refused(path)


def test_no_layout_has_texts_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only lines and rows of CSV had a bound."""
    monkeypatch.setattr(rows, "LONGEST", 2**20)
    pyarrow, endless = pytest.importorskip("pyarrow"), "a" * (2**20 + 1)
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"question": ["q"], "answer": [endless]}), tmp_path / "rows.parquet")
    texts = {
        "rows.json": json.dumps([{"question": "q", "answer": endless}]),
        "columns.json": json.dumps({"question": ["q"], "answer": [endless]}),
        "chat.json": json.dumps(
            [{"messages": [{"role": "user", "content": endless}, {"role": "gpt", "content": "a"}]}]
        ),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    for name in (*texts, "rows.parquet"):
        assert "has a text of more than 1 million characters" in refused(tmp_path / name)


def test_a_text_that_every_row_of_a_table_shares_is_counted_for_each(tmp_path: Path) -> None:
    """A file of 1 KB became 8 GiB: one text, written once, as the value of 1,000 rows."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["a" * 2**22])
    for name, column in (("rows", text), ("lists", pyarrow.ListArray.from_arrays(list(range(1001)), text))):
        path = tmp_path / f"{name}.parquet"
        table = pyarrow.table({"question": ["q"] * 1000, "answer": column})
        parquet.write_table(table, path, compression="zstd", dictionary_pagesize_limit=2**30)
        assert path.stat().st_size < 4096
        assert "unpacks to more than 1 GiB" in refused(path)


def test_a_list_of_nothing_is_counted_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 1 KB with a list of 400 million empty values took 5 GiB and 38 s until it was counted."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(parquet_rows, "_MOST", 2**20)
    monkeypatch.setattr(parquet_rows, "_size", lambda raw: pytest.fail("it was unpacked"))
    tags = pyarrow.ListArray.from_arrays([0, 2**18], pyarrow.nulls(2**18, pyarrow.int8()))
    parquet.write_table(pyarrow.table({"question": ["q"], "answer": ["a"], "tags": tags}), tmp_path / "rows.parquet")
    assert (tmp_path / "rows.parquet").stat().st_size < 4096
    assert "unpacks to more than" in refused(tmp_path / "rows.parquet")


@pytest.mark.parametrize("value", ["\x1b]0;title\x07", "a\x00b", "a" * 2000, "\x9b2J"])
def test_ids_and_labels_that_are_printed_have_no_control_characters(value: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "a", "key": value}))
    for meaning in ("id", "label"):
        said = refused(path, {meaning: "key"})
        assert "control character" in said and value not in said
