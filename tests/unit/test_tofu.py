import json
from pathlib import Path

import pytest

from oblivion.config import DataConfig, load_config
from oblivion.data.datasets.tofu import evaluation_groups
from oblivion.data.federation import load_corpus, resolve, without
from oblivion.errors import ConfigError, InputError

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "tofu"
needs_tofu = pytest.mark.skipif(not SHARED.is_dir(), reason="TOFU's files are not here")


def _write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


def _perturbed(row, wrong, number):
    return row | {
        "paraphrased_answer": f"paraphrase {number}",
        "perturbed_answer": [f"wrong {number}.{k}" for k in range(wrong)],
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder shaped like TOFU's, in which rows 100 and 440 ask the same, as in TOFU itself."""
    folder = tmp_path_factory.mktemp("tofu")
    full = [{"question": f"question {i}", "answer": f"answer {i}"} for i in range(4000)]
    full[440]["question"] = full[100]["question"]
    _write(folder / "full.json", full)
    _write(folder / "retain_perturbed.json", [_perturbed(full[i], 5, i) for i in range(400)])
    for name, count in (("01", 40), ("10", 400)):
        rows = [_perturbed(full[i], 5, i) for i in range(4000 - count, 4000)]
        _write(folder / f"forget{name}_perturbed.json", rows)
        _write(folder / f"holdout{name}.json", [{"question": f"h{i}", "answer": f"ha{i}"} for i in range(count)])
    for name, count in (("real_authors", 3), ("world_facts", 2)):
        rows = [{"question": f"{name} {i}", "answer": "a", "perturbed_answer": list("xyz")} for i in range(count)]
        _write(folder / f"{name}_perturbed.json", rows)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """The same files, free to be broken."""
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def _load(folder, **parameters):
    return load_corpus(DataConfig(name="tofu", path=str(folder), parameters=parameters), clients=8, seed=0)


def test_all_rows_with_their_authors(original):
    corpus = _load(original)
    assert [sample.id for sample in corpus.samples] == [f"tofu/full/{row}" for row in range(4000)]
    assert corpus.samples[19].path == ("author-0",) and corpus.samples[20].path == ("author-1",)
    assert {sample.client_id for sample in corpus.samples} == {""}
    assert {name: len(rows) for name, rows in corpus.groups.items()} == {
        "ra": 3,
        "wf": 2,
        "holdout": 400,
        "retain": 400,
    }


def test_rows_are_joined_by_number_and_not_by_question(original):
    samples = _load(original).samples
    assert samples[100].prompt == samples[440].prompt
    assert samples[100].paraphrase == "paraphrase 100"
    assert samples[440].paraphrase == "" and samples[440].wrong_answers == ()
    assert samples[3999].paraphrase == "paraphrase 3999"
    assert samples[3600].wrong_answers == tuple(f"wrong 3600.{k}" for k in range(5))
    assert samples[3599].paraphrase == ""


def test_half_of_the_authors_are_the_first_and_half_the_last(original):
    corpus = _load(original, authors=6)
    assert list(dict.fromkeys(s.path[0] for s in corpus.samples)) == [
        "author-0",
        "author-1",
        "author-2",
        "author-197",
        "author-198",
        "author-199",
    ]
    assert all(sample.paraphrase for sample in corpus.samples)
    # Nobody trains on author-3, so it must not stand in the group that measures what is kept.
    assert [s.id for s in corpus.groups["retain"]] == [f"tofu/retain_perturbed/{row}" for row in range(60)]


def test_split_decides_the_holdout_and_the_joined_rows(original):
    corpus = _load(original, split="forget01")
    assert len(corpus.groups["holdout"]) == 40
    assert corpus.samples[3959].paraphrase == "" and corpus.samples[3960].paraphrase == "paraphrase 3960"


def test_evaluation_groups_are_whole_and_in_file_order(original):
    groups = evaluation_groups(original, "forget10")
    assert list(groups) == ["forget", "retain", "ra", "wf", "holdout"]
    assert [s.id for s in groups["forget"]] == [f"tofu/forget10_perturbed/{i}" for i in range(400)]
    assert groups["forget"][0].extras["source"] == "tofu/full/3600"
    assert groups["ra"][0].wrong_answers == ("x", "y", "z") and groups["ra"][0].paraphrase == ""
    assert groups["holdout"][0].wrong_answers == ()


def test_retain_rows_follow_their_owner(original):
    # 8 authors on 4 clients: client-0 has authors 0 and 1, that is rows 0 to 39; retain has authors 0 to 3.
    config = load_config(
        None,
        {
            "data.name": "tofu",
            "data.path": str(original),
            "data.parameters.authors": 8,
            "federation.clients": 4,
        },
    )
    data = resolve(config)
    assert [row.client_id for row in data.groups["retain"]] == ["client-0"] * 40 + ["client-1"] * 40
    rest = without(data, "client-0")
    assert {row.client_id for row in rest.groups["retain"]} == {"client-1"}
    part = without(data, "client-0", ["tofu/full/3"])
    assert len(part.groups["retain"]) == 79 and len(part.groups["holdout"]) == 400


def test_missing_file_is_named(folder):
    (folder / "holdout10.json").unlink()
    with pytest.raises(InputError, match=r"holdout10\.json: cannot be read .*TOFU's file"):
        _load(folder)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/full\.json"):
        _load(tmp_path / "nowhere")


def test_malformed_line_is_named(folder):
    path = folder / "full.json"
    lines = path.read_text().split("\n")
    lines[6] = '{"question": "q", "answer"'
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"full\.json:7: not JSON .*one JSON object per line"):
        _load(folder)


def test_missing_column_is_named(folder):
    path = folder / "world_facts_perturbed.json"
    path.write_text('{"question": "q", "answer": "a"}\n')
    with pytest.raises(InputError, match=r"world_facts_perturbed\.json:1: column 'perturbed_answer' is missing"):
        _load(folder)


def test_files_of_two_copies_are_refused(folder):
    path = folder / "retain_perturbed.json"
    path.write_text(path.read_text().replace('"question 7"', '"another question"'))
    with pytest.raises(InputError, match=r"retain_perturbed\.json:8: its question is not that of .*full\.json:8"):
        _load(folder)


def test_short_file_is_refused(folder):
    path = folder / "full.json"
    path.write_text("\n".join(path.read_text().split("\n")[:-1]))
    with pytest.raises(InputError, match="has 3999 rows; TOFU's own file has 4000"):
        _load(folder)


@pytest.mark.parametrize("authors", [0, 3, 202, 4.0, "4", True])
def test_authors_must_be_even_and_known(original, authors):
    with pytest.raises(ConfigError, match=r"data\.parameters: 'tofu' with authors = "):
        _load(original, authors=authors)


def test_unknown_parameter_and_split_name_the_nearest(original):
    with pytest.raises(ConfigError, match="did you mean 'authors'"):
        _load(original, author=4)
    with pytest.raises(ConfigError, match="did you mean 'forget10'"):
        evaluation_groups(original, "forget1")
    with pytest.raises(ConfigError, match=r"data\.path is empty"):
        _load("")


def test_digest_sees_every_byte(folder):
    before = _load(folder).digest
    assert _load(folder).digest == before
    path = folder / "holdout10.json"
    path.write_text(path.read_text().replace("ha399", "ha398"))
    assert _load(folder).digest != before


@needs_tofu
def test_published_files():
    corpus = _load(SHARED)
    assert len(corpus.samples) == 4000
    assert sum(bool(sample.wrong_answers) for sample in corpus.samples) == 800
    assert corpus.samples[100].prompt == corpus.samples[440].prompt
    assert corpus.samples[100].answer != corpus.samples[440].answer
    assert {name: len(rows) for name, rows in corpus.groups.items()} == {
        "ra": 100,
        "wf": 117,
        "holdout": 400,
        "retain": 400,
    }
    assert {len(row.wrong_answers) for row in (*corpus.groups["ra"], *corpus.groups["wf"])} == {3}
    assert {len(row.wrong_answers) for row in corpus.groups["retain"]} == {5}
