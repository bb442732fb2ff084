"""Columns are found from all rows, not from the first one."""

import json
from pathlib import Path

import pytest

from oblivion.config import DataConfig
from oblivion.data.datasets.jsonl import load_rows
from oblivion.data.federation import load_corpus
from oblivion.errors import ConfigError, InputError

ROWS = Path(__file__).parent / "optional-column" / "rows.jsonl"


def corpus(path: Path, columns: dict[str, str] | None = None, **parameters: str):
    data = DataConfig(name="jsonl", path=str(path), columns=columns or {}, parameters=parameters)
    return load_corpus(data, clients=2, seed=0)


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("turned", [False, True])
def test_every_rows_input_is_in_its_prompt(turned: bool, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    rows = rows[::-1] if turned else rows
    got = corpus(write(tmp_path / "x.jsonl", *rows), {"client": "owner"}).samples
    assert [row.prompt for row in got] == [
        "\n".join(filter(None, (row["instruction"], row.get("input")))) for row in rows
    ]
    assert {row.client_id for row in got} == {"a", "b"}


def test_a_mapped_column_may_begin_anywhere(tmp_path: Path) -> None:
    rows = [{"question": str(n), "answer": "a"} for n in range(4)]
    rows[2] |= {"more": "c", "para": "p", "wrong": ["w"]}
    columns = {"context": "more", "paraphrase": "para", "wrong-answers": "wrong"}
    got = corpus(write(tmp_path / "x.jsonl", *rows), columns).samples
    assert [(row.prompt, row.paraphrase, row.wrong_answers) for row in got[1:3]] == [
        ("1", "", ()),
        ("2\nc", "p", ("w",)),
    ]
    with pytest.raises(ConfigError, match="there is no such column"):
        corpus(tmp_path / "x.jsonl", {"context": "mroe"})


def test_files_of_clients_may_have_different_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"question": "q", "answer": "a"})
    write(tmp_path / "b.jsonl", {"instruction": "q", "output": "a"}, {"instruction": "q", "output": "a", "input": "i"})
    write(tmp_path / "c.jsonl", {"prompt": "q", "response": "a", "para": "p"})
    got = corpus(tmp_path, {"paraphrase": "para"}).samples
    assert [(row.client_id, row.prompt, row.paraphrase) for row in got] == [
        ("a", "q", ""), ("b", "q", ""), ("b", "q\ni", ""), ("c", "q", "p")
    ]  # fmt: skip


def test_public_rows_and_a_holdout_are_read_whole(tmp_path: Path) -> None:
    more = {"instruction": "r", "output": "a", "input": "i"}
    rows = write(tmp_path / "p.jsonl", {"instruction": "q", "output": "a"}, more)
    public, _ = load_rows(str(rows), {"paraphrase": "nowhere"}, "public")
    assert [row.prompt for row in public] == ["q", "r\ni"]
    held = corpus(write(tmp_path / "x.jsonl", {"question": "1", "answer": "a"}), holdout=str(rows))
    assert [row.prompt for row in held.groups["holdout"]] == ["q", "r\ni"]


def test_what_a_row_must_have_and_has_not_is_a_bad_row(tmp_path: Path) -> None:
    good = {"question": "q", "answer": "a", "who": "x"}
    path = write(tmp_path / "x.jsonl", good, {"answer": "a", "who": "x"}, {"question": "r", "answer": "a"})
    with pytest.raises(InputError) as error:
        corpus(path, {"client": "who"})
    assert [line.partition(": ")[2][:31] for line in str(error.value).split("\n")] == [
        "column 'question' is missing; t", "column 'who' is missing; this r"
    ]  # fmt: skip
    both = write(tmp_path / "x.jsonl", {"instruction": "q", "output": "a", "input": "i", "context": "c"})
    with pytest.raises(InputError, match=r"x\.jsonl:1: has both context and input"):
        corpus(both)
    assert corpus(both, {"context": "input"}).samples[0].prompt == "q\ni"
    assert corpus(both, {"context": ""}).samples[0].prompt == "q", "an empty name switches it off"


def test_a_usual_name_that_all_rows_have_comes_first(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"prompt": "p", "answer": "a"}, {"prompt": "r", "question": "?", "answer": "a"})
    assert [row.prompt for row in corpus(path).samples] == ["p", "r"]
