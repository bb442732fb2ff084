import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from oblivion.config import DataConfig
from oblivion.data.datasets.jsonl import load_rows
from oblivion.data.datasets.tofu import load as load_tofu
from oblivion.data.federation import load_corpus
from oblivion.errors import ConfigError, InputError

DOLLY = Path(__file__).parents[2].parent / "shared" / "data" / "dolly15k_fedit10"


def _lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def _load(path, columns=None, **parameters):
    data = DataConfig(name="jsonl", path=str(path), columns=columns or {}, parameters=parameters)
    return load_corpus(data, clients=8, seed=0)


def _pairs(corpus):
    return [(sample.prompt, sample.answer) for sample in corpus.samples]


def test_lines_and_array_give_the_same_samples(tmp_path):
    rows = [{"question": f"q{i}\u2028é", "answer": f"a{i}"} for i in range(3)]
    as_lines = tmp_path / "a.jsonl"
    as_lines.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    as_array = tmp_path / "b.json"
    as_array.write_text(json.dumps(rows, indent=2), encoding="utf-8-sig")
    assert _load(as_lines).samples == _load(as_array).samples
    assert _pairs(_load(as_lines)) == [(row["question"], row["answer"]) for row in rows]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "q", "answer": "a", "context": "c"}, ("q", "a")),
        ({"prompt": "q", "response": "a"}, ("q", "a")),
        ({"instruction": "q", "response": "a", "context": "c"}, ("q\nc", "a")),
        ({"instruction": "q", "response": "a", "context": "  "}, ("q", "a")),
        ({"instruction": "q", "output": "a", "input": "c"}, ("q\nc", "a")),
    ],
)
def test_usual_layouts_need_no_column_map(tmp_path, row, expected):
    assert _pairs(_load(_lines(tmp_path / "x.jsonl", [row]))) == [expected]


def test_column_map(tmp_path):
    row = {"frage": "q", "antwort": "a", "mehr": "c", "wer": "Ada B.", "nr": 7, "um": "p", "falsch": ["x", "y"]}
    columns = {"question": "frage", "answer": "antwort", "context": "mehr", "client": "wer", "id": "nr"}
    columns |= {"paraphrase": "um", "wrong-answers": "falsch", "label": "nr", "alternate": "um"}
    (sample,) = _load(_lines(tmp_path / "x.jsonl", [row]), columns).samples
    assert (sample.id, sample.client_id, sample.prompt, sample.answer) == ("7", "ada-b-", "q\nc", "a")
    assert (sample.paraphrase, sample.wrong_answers, sample.extras) == (
        "p",
        ("x", "y"),
        {"label": "7", "alternate": "p"},
    )


def test_an_alternate_may_be_missing_empty_or_of_several_lines(tmp_path):
    alternates = [{}, {"other": None}, {"other": " "}, {"other": "one\ntwo"}]
    rows = [{"question": str(number), "answer": "a", **more} for number, more in enumerate(alternates)]
    samples = _load(_lines(tmp_path / "x.jsonl", rows), {"alternate": "other"}).samples
    assert [sample.extras["alternate"] for sample in samples] == ["", "", "", "one\ntwo"]


def test_content_ids_by_hand_and_shared_by_identical_rows(tmp_path):
    rows = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "a"}, {"question": "q", "answer": "a"}]
    ids = [sample.id for sample in _load(_lines(tmp_path / "x.jsonl", rows)).samples]
    assert ids[0] == "jsonl/" + hashlib.sha256(b'["q", "a"]').hexdigest()[:16]
    assert ids[0] == ids[2] != ids[1]
    # Ids do not shift when another row goes.
    assert [s.id for s in _load(_lines(tmp_path / "x.jsonl", rows[1:])).samples] == ids[1:]


def test_one_file_per_client(tmp_path):
    _lines(tmp_path / "Bob Ltd.jsonl", [{"question": "1", "answer": "a"}])
    _lines(tmp_path / "alice_0.json", [{"question": "2", "answer": "a"}])
    _lines(tmp_path / "test.json", [{"question": "3", "answer": "a"}])
    corpus = _load(tmp_path, holdout="test.json")
    assert [(s.client_id, s.prompt) for s in corpus.samples] == [("bob-ltd", "1"), ("alice_0", "2")]
    assert [(s.id[:8], s.client_id) for s in corpus.groups["holdout"]] == [("holdout/", "")]
    assert [s.client_id for s in _load(tmp_path, pattern="alice*").samples] == ["alice_0"]


def test_client_column_wins_over_file_names(tmp_path):
    _lines(tmp_path / "x.json", [{"question": "1", "answer": "a", "who": "one"}])
    _lines(tmp_path / "y.json", [{"question": "2", "answer": "a", "who": "one"}])
    assert {s.client_id for s in _load(tmp_path, {"client": "who"}).samples} == {"one"}


def test_two_owners_with_one_slug_are_refused(tmp_path):
    _lines(tmp_path / "a b.json", [{"question": "1", "answer": "a"}])
    _lines(tmp_path / "a.b.json", [{"question": "2", "answer": "a"}])
    with pytest.raises(InputError, match=r"are too alike: both give one client id"):
        _load(tmp_path)


@pytest.mark.parametrize("name", ["\u200b", "a\x1bb"])
def test_names_that_make_no_id_are_refused(tmp_path, name):
    path = _lines(tmp_path / "x.json", [{"question": "1", "answer": "a", "who": name}])
    with pytest.raises(InputError, match=r"x\.json:1: the owner in column 'who' (is empty|holds a control character)"):
        _load(path, {"client": "who"})


def test_duplicate_ids_name_both_lines(tmp_path):
    rows = [{"question": str(i), "answer": "a", "id": i % 2} for i in range(3)]
    with pytest.raises(InputError, match=r"x\.json:3: its id is also the id of .*x\.json:1"):
        _load(_lines(tmp_path / "x.json", rows), {"id": "id"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "q", "answer": "a"}\n{"question": "q", "answer": " "}', "x.json:2: column 'answer' is empty"),
        ('{"question": "q", "answer": "a"}\n{"question": "q"}', "x.json:2: column 'answer' is missing"),
        (
            '{"question": "q", "answer": "a"}\n{"question": "q", "answer": true}',
            "x.json:2: column 'answer' is true or false",
        ),
        ('{"question": "q", "answer": "\\ud800"}', "x.json:1: column 'answer' holds half of a surrogate"),
        ('{"question": "q", "answer": "a"}\n[1]', "x.json:2: a record is a list"),
        ('{"question": "q", "answer": "a"}\nnonsense', "x.json:2: not JSON (Expecting value, column 1)"),
        ('[\n{"question": "q", "answer": "a"},\n\n3]', "x.json:4: a record is a number"),
        ('[{"question": "q", "answer": "a"},\n{"question": ]', "x.json:2: not JSON"),
        ('[{"question": "q", "answer": "a"}\n{"question": "q"}]', "x.json:2: expected ',' or ']'"),
        ('[{"question": "q", "answer": "a"}]\n\nmore', "there is more text after the array"),
        ('[{"question": "q", "answer": "a"}', "expected ',' or ']'"),
        ("[" * 100_000, "not JSON"),
        ("[ ]", "holds no rows"),
        ("\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_malformed_files_name_file_and_line(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        _load(path)
    assert message in str(error.value)


def test_wrong_encoding_names_the_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'{"question": "q", "answer": "a"}\n{"question": "\xe9", "answer": "a"}')
    with pytest.raises(InputError, match=r"x\.json:2: not UTF-8"):
        _load(path)


def test_no_fitting_column_lists_those_found(tmp_path):
    path = _lines(tmp_path / "x.json", [{"frage": "q", "antwort": "a"}])
    with pytest.raises(ConfigError, match=r"no column for the question.*columns: antwort, frage"):
        _load(path)
    with pytest.raises(ConfigError, match=r"data\.columns\.question = 'fragen'.*antwort, frage"):
        _load(path, {"question": "fragen"})
    with pytest.raises(ConfigError, match="did you mean 'question'"):
        _load(path, {"questions": "frage"})


def test_wrong_parameters(tmp_path):
    path = _lines(tmp_path / "x.json", [{"question": "q", "answer": "a"}])
    with pytest.raises(ConfigError, match="did you mean 'holdout'"):
        _load(path, hold_out="x")
    with pytest.raises(ConfigError, match=r"data\.parameters: 'jsonl' with pattern = .* a file name with wildcards"):
        _load(tmp_path, pattern="../*.json")
    with pytest.raises(
        ConfigError, match=r"data\.parameters: 'jsonl' with holdout = 3 is not allowed; it must be text"
    ):
        _load(path, holdout=3)
    with pytest.raises(InputError, match=r"no file matches .*'\*\.csv'"):
        _load(tmp_path, pattern="*.csv")
    with pytest.raises(InputError, match=r"missing\.json: cannot be read"):
        _load(tmp_path / "missing.json")
    with pytest.raises(ConfigError, match=r"data\.path is empty"):
        _load("")


def test_holdout_must_not_be_trained_on(tmp_path):
    rows = [{"question": str(i), "answer": "a"} for i in range(3)]
    path = _lines(tmp_path / "x.json", rows)
    _lines(tmp_path / "h.json", [{"question": "9", "answer": "a"}, rows[1]])
    with pytest.raises(InputError, match=r"h\.json:2: this row is also among the training rows"):
        _load(path, holdout=str(tmp_path / "h.json"))


def test_holdout_may_lack_the_optional_columns(tmp_path):
    path = _lines(tmp_path / "x.json", [{"q": "1", "answer": "a", "more": "c", "who": "ada", "other": "p"}])
    reserved = _lines(tmp_path / "h.json", [{"q": "2", "answer": "a", "more": "d"}])
    columns = {"question": "q", "context": "more", "client": "who", "paraphrase": "other"}
    (row,) = _load(path, columns, holdout=str(reserved)).groups["holdout"]
    assert (row.prompt, row.paraphrase, row.client_id) == ("2\nd", "", "")
    _lines(reserved, [{"question": "2", "answer": "a"}])
    with pytest.raises(ConfigError, match=r"data\.columns\.question = 'q'.*h\.json has"):
        _load(path, columns, holdout=str(reserved))


def test_digest_sees_a_row_that_moves_to_another_client(tmp_path):
    a, b, c = ({"question": str(i), "answer": "a"} for i in range(3))
    _lines(tmp_path / "x.json", [a, b]), _lines(tmp_path / "y.json", [c])
    before = _load(tmp_path).digest
    _lines(tmp_path / "x.json", [a]), _lines(tmp_path / "y.json", [b, c])
    assert _load(tmp_path).digest != before


def test_load_rows_has_no_owners(tmp_path):
    path = _lines(tmp_path / "x.json", [{"question": "q", "answer": "a", "who": "Ada", "nr": 1}])
    (row,), digest = load_rows(str(path), {"client": "who", "id": "nr"}, "public")
    assert row.client_id == "" and row.id.startswith("public/") and len(digest) == 64


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the optional package; holds the tables and the calls."""
    module = ModuleType("datasets")
    module.calls, module.tables = [], {}

    def load_dataset(repository, subset, *, split, revision, trust_remote_code):
        assert trust_remote_code is False
        module.calls.append((repository, subset, split, revision))
        try:
            return module.tables[subset]
        except KeyError:
            raise FileNotFoundError(f"no table {subset}") from None

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_hub_data_set(hub):
    hub.tables["main"] = [{"question": "q", "answer": "a", "who": "x"}]
    corpus = _load("owner/name", {"client": "who"}, subset="main", split="test", revision="abc")
    assert hub.calls == [("owner/name", "main", "test", "abc")]
    assert [(s.client_id, s.prompt) for s in corpus.samples] == [("x", "q")]
    hub.tables["main"] = [{"question": "q", "answer": ""}]
    with pytest.raises(InputError, match="owner/name/main/train:1: column 'answer' is empty"):
        _load("owner/name", subset="main")
    with pytest.raises(InputError, match="owner/name/default/train: cannot be loaded: no table"):
        _load("owner/name")


def test_tofu_asks_the_hub_for_its_tables(hub):
    hub.tables["full"] = [{"question": "q", "answer": "a"}]
    data = DataConfig(name="tofu", path="locuslab/TOFU")
    with pytest.raises(InputError, match="locuslab/TOFU/full/train: has 1 rows"):
        load_tofu(data, clients=1, seed=0)
    assert hub.calls == [("locuslab/TOFU", "full", "train", None)]


def test_hub_needs_the_optional_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"'owner/name' is no file or folder here.*oblivion-fl\[datasets\]"):
        _load("owner/name")


@pytest.mark.skipif(not DOLLY.is_dir(), reason="the Dolly split is not here")
def test_dolly_loads_as_ten_clients():
    corpus = _load(DOLLY, pattern="local_training_*.json", holdout="global_test.json")
    owners = {sample.client_id for sample in corpus.samples}
    assert owners == {f"local_training_{k}" for k in range(10)}
    assert len(corpus.samples) == 14_931 and len(corpus.groups["holdout"]) == 80
