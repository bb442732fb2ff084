"""Rows in the layouts that people's data comes in: the same samples with the same ids, whatever the layout."""

import gzip
import io
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from oblivion.config import DataConfig, load_config
from oblivion.data import row_files
from oblivion.data.datasets.jsonl import load_rows
from oblivion.data.federation import load_corpus, resolve
from oblivion.errors import ConfigError, InputError
from server.prepare import absolute_paths

CASE = Path(__file__).parent / "file-layouts"
ROWS = [
    {"question": f"What grows at mile {n}?", "answer": f"At mile {n} grows {plant}.", "owner": f"farm-{n % 2}"}
    for n, plant in enumerate(("thyme", "flax", "broom") * 2)
]


def samples(path: Path, columns: dict[str, str] | None = None, **parameters: str):
    data = DataConfig(
        name="jsonl", path=str(path), columns={"client": "owner"} if columns is None else columns, parameters=parameters
    )
    return load_corpus(data, clients=2, seed=0).samples


def wrong(path: Path, columns: dict[str, str] | None = None) -> str:
    with pytest.raises((InputError, ConfigError)) as error:
        samples(path, columns)
    return str(error.value)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return samples(path)


FILES = ["rows.csv", "rows.tsv", "wrapped.json", "by-column.json", "messages.jsonl", "sharegpt.jsonl"]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", FILES)
def test_every_layout_gives_the_same_samples(name: str, packed: bool, expected, tmp_path: Path) -> None:
    path = CASE / name
    if packed:
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress((CASE / name).read_bytes()))
    assert samples(path) == expected


def alpaca(row: dict[str, str]) -> dict[str, str]:
    return {"instruction": row["question"], "input": "", "output": row["answer"], "owner": row["owner"]}


def by_column(rows: list[dict[str, str]]) -> dict[str, list[str]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("excel.csv", "sep=;\r\n" + (CASE / "rows.csv").read_text().replace(",", ";").replace("\n", "\r\n")),
        ("bom.csv", "\ufeff" + (CASE / "rows.csv").read_text()),
        ("blank.csv", (CASE / "rows.csv").read_text().replace("\n", "\n\n,,\n")),
        ("semicolons.csv", (CASE / "rows.csv").read_text().replace(",", ";")),
        ("tabs.txt", (CASE / "rows.tsv").read_text()),
        ("old-mac.csv", (CASE / "rows.csv").read_text().replace("\n", "\r")),
        ("index.csv", "".join(f"{n},{line}\n" for n, line in enumerate((CASE / "rows.csv").read_text().splitlines()))),
        ("json-in.csv", json.dumps(ROWS)),
        ("train.json", json.dumps({"version": "1.0", "train": ROWS}, indent=1)),
        ("lists.json", json.dumps(by_column(ROWS))),
        ("by-index.json", json.dumps({str(n): row for n, row in enumerate(ROWS)})),
        ("no-ending", "\n".join(map(json.dumps, ROWS))),
        ("alpaca.json", json.dumps([alpaca(row) for row in ROWS])),
    ],
)  # fmt: skip
def test_more_layouts(name: str, text: str, expected, tmp_path: Path) -> None:
    if name == "index.csv":
        text = text.replace("0,question", ",question")
    (tmp_path / name).write_text(text, newline="")
    assert samples(tmp_path / name) == expected


def test_numbers_are_their_digits(tmp_path: Path) -> None:
    got = samples(CASE / "numbers.jsonl")
    assert [row.answer for row in got][2] == "2"
    as_json, as_csv = tmp_path / "a.jsonl", tmp_path / "b.csv"
    as_json.write_text('{"question": 7, "answer": 3.50}\n{"question": "b", "answer": 123456789012345678901234567890}')
    as_csv.write_text("question,answer\n7,3.50\nb,123456789012345678901234567890\n")
    assert samples(as_json, {}) == samples(as_csv, {})
    assert [(row.prompt, row.answer[:4]) for row in samples(as_json, {})] == [("7", "3.50"), ("b", "1234")]
    assert all(type(row.answer) is str for row in samples(as_json, {}))
    for value, kind in (("true", "true or false"), ("[1]", "a list"), ("{}", "an object")):
        as_json.write_text('{"question": "a", "answer": "b"}\n{"question": "a", "answer": ' + value + "}")
        assert f"a.jsonl:2: column 'answer' is {kind}" in wrong(as_json, {})
    as_json.write_text('{"question": "a", "answer": null}\n{"question": "b", "answer": NaN}')
    assert wrong(as_json, {}).count("column 'answer' is empty") == 2


def test_one_record_in_a_file_is_a_record(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    turns = [{"role": "user", "content": ROWS[0]["question"]}, {"role": "assistant", "content": ROWS[0]["answer"]}]
    for record in (ROWS[0], {**ROWS[0], "wrong": ["a"]}, {"messages": turns, "owner": "farm-0"}):
        path.write_text(json.dumps(record, indent=1))
        (sample,) = samples(path)
        assert (sample.prompt, sample.answer) == (ROWS[0]["question"], ROWS[0]["answer"])
    path.write_text(json.dumps({"messages": [[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]]}))
    assert [(row.prompt, row.answer) for row in samples(path, {})] == [("q", "a")]


def chat(*turns: tuple[str, object], **more: str) -> str:
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns], **more})


def test_a_chat_is_one_question_and_one_answer(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        "\n".join(
            [
                chat(("system", "Be brief."), ("user", "q"), ("assistant", "a")),
                chat(("user", "q"), ("assistant", "a"), system="Be brief."),
                chat(("user", [{"type": "text", "text": "q"}]), ("assistant", "a")),
            ]
        )
    )
    assert [row.prompt for row in samples(path, {})] == ["Be brief.\nq", "Be brief.\nq", "q"]
    path.write_text(
        "\n".join(
            [
                chat(("user", "q"), ("assistant", "a")),
                chat(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")),
                chat(("assistant", "hello"), ("user", "q")),
                chat(("tool", "q"), ("assistant", "a")),
                chat(("user", [{"type": "image_url"}]), ("assistant", "a")),
                chat(("user", None), ("assistant", "a")),
                '{"messages": "q"}',
            ]
        )
    )
    lines = wrong(path, {}).split("\n")
    for number, (line, part) in enumerate(
        zip(
            lines,
            ["4 turns", "(assistant, user)", "from somebody else", "not text", "is null", "not a list of turns"],
            strict=True,
        )
    ):
        assert f"x.jsonl:{number + 2}: " in line and part in line


def test_all_bad_rows_are_listed_at_once_and_then_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('question,answer\n"one\nquestion",a\nq\nq,a,b\nq,\n"q" x,a\nq,a\n')
    lines = wrong(path, {}).split("\n")
    assert [line.partition(": ")[0][-1] for line in lines] == ["4", "5", "7", "6"]
    assert "has 1 cell and the header 2" in lines[0] and "is not CSV with commas" in lines[2]
    path.write_text("question,answer\nq\n")
    assert wrong(path, {}).count("\n") == 0, "each is said once"
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n' + '{"question": "q"}\n' * 30 + "nonsense\n")
    lines = wrong(path, {}).split("\n")
    assert len(lines) == 21 and lines[-1] == "... and 11 more rows that cannot be used"
    assert "x.jsonl:32: not JSON" in lines[0] and "x.jsonl:2: column 'answer' is missing" in lines[1]


def test_a_huge_cell_and_quotes_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('question,answer\n"a ""b"", c",%s\n' % ("x" * 300_000))
    (sample,) = samples(path, {})
    assert sample.prompt == 'a "b", c' and len(sample.answer) == 300_000


def test_wrong_answers_in_a_table_are_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('question,answer,w\nq,a,"[""x"", 2]"\nr,a,one\ns,a,\n')
    columns = {"wrong-answers": "w"}
    assert [row.wrong_answers for row in samples(path, columns)] == [("x", "2"), ("one",), ()]
    path.write_text("question,answer,w\nq,a,\"['x', 'y']\"\n")
    assert "column 'w' looks like a list, but is not JSON" in wrong(path, columns)


def packed_zip() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("rows.csv", "question,answer\nq,a\n")
    return made.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.zip", packed_zip(), "is a ZIP archive or an Excel workbook"),
        ("x.csv", "question,answer\nq,a\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("x.csv", "question,answer\nq,a\n".encode("utf-16-le"), "x.csv:1: holds a NUL byte"),
        ("x.csv", b"question,answer\nq,\xfc\n", "x.csv:2: not UTF-8 text; save it as UTF-8"),
        ("x.csv", b"question,answer,answer\nq,a,b\n", "names the column 'answer' twice"),
        ("x.csv", b"question,answer,,\nq,Yes, it is,\n", "x.csv:2: has 4 cells and the header 2"),
        (
            "x.csv",
            b"question,,answer\nq,,a\nr,?,b\n",
            "x.csv:3: has a text in column 2, which the header does not name",
        ),
        ("x.csv", b"question\nq\n", "x.csv:1: the first line is no header"),
        ("x.csv", b'question,answer\nq,"a\nr,b\n', "x.csv:2: the row that begins here is not CSV"),
        ("x.csv", b"question,answer\n", "holds no rows"),
        ("x.csv", b"a,b\n1,2\n", "x.csv has the columns: a, b"),
        ("x.json", b"question,answer\nq,a\n", "x.json:1: not JSON"),
        ("x.dat", b"question,answer\nq,a\n", "is not JSON, and its name does not end in .csv"),
        ("x.jsonl.gz", gzip.compress(b'{"question": "q"}', mtime=0)[:-5], "is packed with gzip and damaged"),
        ("x.jsonl.gz", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "is packed twice"),
        ("x.json", b'{"train": [{"a": 1}], "test": [{"a": 2}]}', "holds more than one table (test, train)"),
        ("x.json", b'{"question": ["a"], "answer": []}', "different numbers of values (question 1, answer 0)"),
        ("x.json", b'{"meta": {"a": 1}, "n": 3}', "is JSON, one object with the keys meta, n"),
        ("x.json", b'{"data": [\n{"question": "q"},\n {"question" "r"}]}', "x.json:3: not JSON (Expecting ':'"),
        ("x.json", b'{"data": []}', "is JSON, one object with the keys data, in which no rows are found"),
        ("x.json", b'{"question": "q", "answer": "a", "answer": "b"}', "has one key twice"),
        ("x.json", b'{"a":' * 100_000, "not JSON"),
    ],
)
def test_what_cannot_be_read_says_what_it_is(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert message in wrong(tmp_path / name, {})


def test_a_packed_file_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "_MOST", 1000)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b" " * 5000, mtime=0))
    assert "unpacks to more than" in wrong(tmp_path / "x.jsonl.gz")


def test_a_folder_has_one_file_per_client_in_any_layout(tmp_path: Path) -> None:
    (tmp_path / "ada.csv").write_text("question,answer\nq,a\n")
    (tmp_path / "bob.v2.jsonl.gz").write_bytes(gzip.compress(b'{"question": "q", "answer": "a"}', mtime=0))
    (tmp_path / "eve.json").write_text('{"data": [{"instruction": "q", "output": "a"}]}')
    (tmp_path / "README.md").write_text("# rows")
    (tmp_path / "._ada.csv").write_bytes(b"\0\0")
    assert [(row.client_id, row.prompt) for row in samples(tmp_path, {})] == [
        ("ada", "q"),
        ("bob-v2", "q"),
        ("eve", "q"),
    ]
    (tmp_path / "ada.json").write_text('{"question": "q", "answer": "a"}')
    assert "ada.json: ada.csv belongs to the same client" in wrong(tmp_path, {})


def test_public_rows_and_a_holdout_may_have_another_layout(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text("question,answer\nh,a\n")
    rows, _ = load_rows(str(CASE / "by-column.json"), {"client": "owner"}, "public")
    assert [row.prompt for row in rows] == [row["question"] for row in ROWS]
    data = DataConfig(name="jsonl", path=str(CASE / "wrapped.json"), parameters={"holdout": str(tmp_path / "h.csv")})
    assert [row.prompt for row in load_corpus(data, clients=2, seed=0).groups["holdout"]] == ["h"]


def test_parquet(tmp_path: Path, expected) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(by_column(ROWS)), tmp_path / "x.parquet")
    assert samples(tmp_path / "x.parquet") == expected
    table = {"question": ["a", "b"], "answer": pyarrow.array([0.1, None], pyarrow.float32()), "note": [1, 2]}
    parquet.write_table(pyarrow.table(table), tmp_path / "x.parquet")
    assert "x.parquet: row 2: column 'answer' is empty" in wrong(tmp_path / "x.parquet", {})
    parquet.write_table(pyarrow.table(table).slice(0, 1), tmp_path / "x.parquet")
    assert [row.answer for row in samples(tmp_path / "x.parquet", {"label": "note"})] == ["0.1"]
    table |= {
        "answer": pyarrow.array([0, 1], pyarrow.date32()),
        "note": pyarrow.array([1, 2**62], pyarrow.timestamp("ns")),
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "x.parquet")
    assert [row.answer for row in samples(tmp_path / "x.parquet", {})] == ["1970-01-01", "1970-01-02"]
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    assert "not a Parquet file that can be read" in wrong(tmp_path / "x.parquet", {})


def test_parquet_without_the_optional_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    assert "pip install 'oblivion-fl[parquet]'" in wrong(tmp_path / "x.parquet", {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("twice-marked.csv", "\ufeff\ufeffquestion,answer\nq,a\nr,b\n"),
        ("joined.jsonl", '{"question": "q", "answer": "a"}\n\ufeff{"question": "r", "answer": "b"}\n'),
        ("TABS.TSV", "note, and more, or not\tquestion\tanswer\n\tq\ta\n\tr\tb\n"),
        ("brackets.csv", "[id],question,answer\n1,q,a\n2,r,b\n"),
        ("ragged.csv", "question,answer\nq,a,,\nr,b,\n"),
        ("ends.csv", "question,answer,,\nq,a\nr,b,,,\n"),
        (
            "role.json",
            '{"data": [{"question": "q", "answer": "a", "role": "x"}, {"question": "r", "answer": "b", "role": "y"}]}',
        ),
        ("tags.json", '{"tags": [], "data": [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]}'),
    ],
)
def test_what_stands_around_the_rows_changes_nothing(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert [(row.prompt, row.answer) for row in samples(tmp_path / name, {})] == [("q", "a"), ("r", "b")]


def test_a_chat_beside_its_prompt_is_a_chat(tmp_path: Path) -> None:
    """UltraChat and others repeat the first turn in a column."""
    path = tmp_path / "x.jsonl"
    plain = '{"prompt": "r", "answer": "b"}'
    path.write_text("\n".join([chat(("user", "q"), ("assistant", "a"), prompt="q", prompt_id="7"), plain]))
    with pytest.raises(InputError, match=r"x\.jsonl:1: column 'prompt' is missing|x\.jsonl:2: column 'question'"):
        samples(path, {})
    path.write_text("\n".join(chat(("user", q), ("assistant", "a"), prompt=q) for q in "qr"))
    assert [(row.prompt, row.answer) for row in samples(path, {})] == [("q", "a"), ("r", "a")]
    path.write_text(chat(("user", "q"), ("assistant", "a"), prompt="own", response="columns"))
    assert [(row.prompt, row.answer) for row in samples(path, {})] == [("own", "columns")]
    path.write_text(chat(("system", ""), ("user", "q"), ("assistant", "")))
    assert wrong(path, {}).endswith("x.jsonl:1: turn 3 of 'messages' is empty; fill it or delete the row")


def test_a_table_called_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("question,answer\n" + "q,a\n" * 30)
    said = wrong(tmp_path / "x.json", {})
    assert "\n" not in said and said.endswith("or a table of text with a name that ends in .csv or .tsv")
    (tmp_path / "x.json").write_text('{"question": "q", "answer": Infinity}')
    assert "column 'answer' is infinity; expected text" in wrong(tmp_path / "x.json", {})


def test_no_file_of_a_folder_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "ada.tab").write_text("question\tanswer\nq\ta\n")
    (tmp_path / "bob.csv").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("not, rows")
    assert "bob.csv: cannot be read (No such file or directory)" in wrong(tmp_path, {})
    (tmp_path / "nowhere").write_text("question,answer\nq,a\n")
    assert [row.client_id for row in samples(tmp_path, {})] == ["ada", "bob"]


def test_rows_that_are_nobodys_may_lie_beside_the_clients(tmp_path: Path) -> None:
    for name in ("ada", "bob", "held", "public"):
        (tmp_path / f"{name}.csv").write_text(f"question,answer\n{name}?,a\n")
    values = {"data.name": "jsonl", "data.path": str(tmp_path), "federation.clients": 2}
    values |= {"data.parameters.holdout": "held.csv", "data.public": str(tmp_path / "public.csv")}
    data = resolve(load_config(None, values))
    assert list(data.clients) == ["ada", "bob"] and [row.prompt for row in data.public] == ["public?"]


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"z\xfcrich.csv")
    try:
        path.write_text("question,answer,owner\nq,a,x\n")
    except OSError:
        pytest.skip("this disk has UTF-8 names only")
    assert [row.client_id for row in samples(tmp_path)] == ["x"]
    with pytest.raises(InputError, match="no UTF-8 text; rename it"):
        absolute_paths(load_config(None, {"data.name": "jsonl", "data.path": str(path)}))
