import json
import os

import pytest

from oblivion.config import load_config
from oblivion.data.corpus import FederatedData
from oblivion.data.federation import check_client, for_source, resolve, without
from oblivion.data.requests import select_samples
from oblivion.errors import ConfigError, InputError
from oblivion.types import Sample


def _lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    """Twelve clients with two rows each, so that client-10 sorts before client-2."""
    folder = tmp_path / "clients"
    folder.mkdir()
    for k in range(12):
        _lines(folder / f"client-{k}.jsonl", [{"question": f"{k}.{i}", "answer": "a"} for i in range(2)])
    return folder


def _config(path, **overrides):
    values = {"data.name": "jsonl", "data.path": str(path), "federation.clients": 12}
    return load_config(None, values | overrides)


def test_clients_are_sorted_as_strings(folder):
    data = resolve(_config(folder))
    assert list(data.clients)[:4] == ["client-0", "client-1", "client-10", "client-11"]
    assert [row.prompt for row in data.clients["client-10"]] == ["10.0", "10.1"]
    assert all(row.client_id == client for client, rows in data.clients.items() for row in rows)


def test_resolve_reads_once_per_config(folder):
    first = resolve(_config(folder))
    assert resolve(_config(folder, **{"train.batch-size": 3})) is first
    assert resolve(_config(folder, **{"seed": 1})) is not first


def test_partition_parameters(folder):
    iid = {"data.partition": "iid", "federation.clients": 3}
    assert [len(rows) for rows in resolve(_config(folder, **iid)).clients.values()] == [8, 8, 8]
    shards = iid | {"data.partition": "shards", "data.columns.label": "question"}
    shards["data.partition-parameters.per-client"] = 4
    assert [len(rows) for rows in resolve(_config(folder, **shards)).clients.values()] == [8, 8, 8]
    with pytest.raises(ConfigError, match="'shards' has no parameter 'per_clients'; did you mean 'per_client'"):
        resolve(_config(folder, **shards, **{"data.partition-parameters.per-clients": 4}))
    with pytest.raises(ConfigError, match=r"data.partition-parameters: 'shards' with per_client = 0 is not allowed"):
        resolve(_config(folder, **shards | {"data.partition-parameters.per-client": 0}))
    with pytest.raises(ConfigError, match="'shards' with per_client = '4' is not allowed; it must be a whole number"):
        resolve(_config(folder, **shards | {"data.partition-parameters.per-client": "4"}))
    with pytest.raises(ConfigError, match="has no parameter 'seed'"):
        resolve(_config(folder, **iid, **{"data.partition-parameters.seed": 4}))
    with pytest.raises(ConfigError, match="did you mean 'shards'"):
        resolve(_config(folder, **{"data.partition": "shard"}))


@pytest.mark.parametrize("setting", ["joins", "ranks"])
def test_settings_of_clients_must_name_clients(folder, setting):
    resolve(_config(folder, **{f"federation.{setting}.client-10": 2}))
    with pytest.raises(ConfigError, match=rf"federation\.{setting}: there is no client 'client-1x'; did you mean"):
        resolve(_config(folder, **{f"federation.{setting}.client-1x": 2}))


def test_settings_of_a_client_that_was_forgotten_and_deleted_name_nobody(folder):
    values = {"federation.joins.client-99": 2, "federation.ranks": {"client-99": 3, "client-10": 4}}
    fitted = for_source(_config(folder, **values), {"client-99"})
    assert fitted.federation.joins == {} and fitted.federation.ranks == {"client-10": 4}


def test_number_of_owners_must_be_that_of_the_config(folder):
    with pytest.raises(ConfigError, match=r"names 12 owners; set federation\.clients = 12"):
        resolve(_config(folder, **{"federation.clients": 8}))


def test_one_id_for_two_texts_is_refused(monkeypatch, folder):
    from oblivion.data.corpus import Corpus
    from oblivion.data.datasets import datasets

    rows = tuple(Sample(id="same", client_id="c", prompt=text, answer="a") for text in ("q", "r"))
    monkeypatch.setattr(datasets, "get", lambda name: lambda data, clients, seed: Corpus(samples=rows))
    with pytest.raises(InputError, match="'c' has two different rows with one id"):
        resolve(_config(folder / "other", **{"federation.clients": 1}))


def test_the_servers_rows_for_evaluation_are_nobodys(monkeypatch, folder):
    from oblivion.data.corpus import Corpus
    from oblivion.data.datasets import datasets

    rows = tuple(Sample(id=text, client_id="c", prompt=text, answer="a") for text in ("q", "r"))
    groups = {"retain": rows[:1], "holdout": (Sample(id="h", prompt="r", answer="a"),)}
    monkeypatch.setattr(datasets, "get", lambda name: lambda data, clients, seed: Corpus(samples=rows, groups=groups))
    with pytest.raises(InputError, match="row 1 of group 'holdout' is also among the rows of 'c'"):
        resolve(_config(folder / "held", **{"federation.clients": 1}))


def test_public_rows_from_a_file(folder, tmp_path):
    public = _lines(tmp_path / "public.jsonl", [{"question": "p", "answer": "a"}])
    data = resolve(_config(folder, **{"data.public": str(public)}))
    assert [(row.client_id, row.prompt) for row in data.public] == [("", "p")]
    assert data.public[0].id.startswith("public/")
    assert data.digest != resolve(_config(folder)).digest
    assert resolve(_config(folder)).public == ()


def test_public_rows_must_be_nobodys(folder, tmp_path):
    trained = _lines(tmp_path / "trained.jsonl", [{"question": "p", "answer": "a"}, {"question": "3.1", "answer": "a"}])
    with pytest.raises(ConfigError, match=r"data\.public: row \d+.*the rows of 'client-3'"):
        resolve(_config(folder, **{"data.public": str(trained)}))
    held = _lines(tmp_path / "held.jsonl", [{"question": "h", "answer": "a"}])
    overrides = {"data.public": str(held), "data.parameters.holdout": str(held)}
    with pytest.raises(ConfigError, match="also among group 'holdout'"):
        resolve(_config(folder, **overrides))
    # The same question with another answer is another row.
    other = _lines(tmp_path / "other.jsonl", [{"question": "3.1", "answer": "b"}])
    assert len(resolve(_config(folder, **{"data.public": str(other)})).public) == 1


def test_public_dataset_needs_one_that_has_public_rows(folder):
    with pytest.raises(ConfigError, match="'jsonl' has no public rows"):
        resolve(_config(folder, **{"data.public": "dataset"}))


def _data(**clients):
    """Clients from lists of authors: one row per letter, ids `<client>/<position>`."""
    return FederatedData(
        clients={
            client: tuple(
                Sample(id=f"{client}/{i}", client_id=client, prompt=f"{client}{i}", answer="a", path=(author,))
                for i, author in enumerate(authors)
            )
            for client, authors in clients.items()
        },
        groups={
            "retain": (
                Sample(id="r/0", client_id="ada", prompt="", answer="", extras={"source": "ada/0"}),
                Sample(id="r/1", client_id="bob", prompt="", answer="", extras={"source": "bob/0"}),
            )
        },
        digest="d",
    )


def test_without_a_client_is_a_pure_filter():
    data = _data(ada="xxyy", bob="zz")
    rest = without(data, "ada")
    assert rest.clients == {"bob": data.clients["bob"]} and rest.clients["bob"] is data.clients["bob"]
    assert [row.id for row in rest.groups["retain"]] == ["r/1"]
    assert list(data.clients) == ["ada", "bob"] and len(data.groups["retain"]) == 2


def test_without_samples():
    data = _data(ada="xxyy", bob="zz")
    rest = without(data, "ada", {"ada/0", "ada/2"})
    assert [row.id for row in rest.clients["ada"]] == ["ada/1", "ada/3"]
    assert [row.id for row in rest.groups["retain"]] == ["r/1"]
    assert without(data, "ada", []) == data
    assert list(without(data, "ada", [f"ada/{i}" for i in range(4)]).clients) == ["bob"]


def test_without_refuses_the_unknown_and_the_last():
    data = _data(ada="xxyy", bob="zz")
    with pytest.raises(ConfigError, match="no client 'bib'; did you mean 'bob'"):
        without(data, "bib")
    with pytest.raises(ConfigError, match="'ada' has no sample 'bob/0'"):
        without(data, "ada", ["bob/0"])
    with pytest.raises(ConfigError, match="no data is left"):
        without(_data(ada="x"), "ada")
    assert check_client(data, "ada") == "ada"


def test_select_whole_client():
    assert select_samples(_data(ada="xy", bob="z"), "ada", "") is None
    with pytest.raises(ConfigError, match="did you mean 'bob'"):
        select_samples(_data(ada="xy", bob="z"), "bobb", "")


@pytest.mark.parametrize(
    ("authors", "spec", "positions"),
    [
        ("vvwwxy", "authors:0.5", [4, 5]),  # four authors: the last two
        ("vwx", "authors:0.5", [2]),  # three: rounded down to one
        ("vwx", "authors:0.01", [2]),  # never none
        ("vwx", "authors:0.99", [1, 2]),  # never all
        ("vwvx", "authors:0.67", [1, 3]),  # by first appearance: v, w, x
    ],
)
def test_select_the_last_authors(authors, spec, positions):
    selected = select_samples(_data(ada=authors), "ada", spec)
    assert selected == tuple(f"ada/{i}" for i in positions)


@pytest.mark.parametrize("spec", ["authors:", "authors:x", "authors:0", "authors:1", "authors:nan", "authors:-1"])
def test_wrong_fractions(spec):
    with pytest.raises(ConfigError, match=r"expected authors:<fraction>"):
        select_samples(_data(ada="xy"), "ada", spec)


def test_select_authors_needs_two():
    with pytest.raises(ConfigError, match="has one author only"):
        select_samples(_data(ada="xx"), "ada", "authors:0.5")
    data = FederatedData(clients={"ada": (Sample(id="1", prompt="", answer=""),)})
    with pytest.raises(ConfigError, match="have no authors"):
        select_samples(data, "ada", "authors:0.5")


def test_select_from_a_file(tmp_path):
    path = tmp_path / "ids"
    path.write_text(f"ada/3{os.linesep}\n  ada/1 \nada/3\n")
    # In the order of the data, each once, so that one request always reads the same.
    assert select_samples(_data(ada="xxyy", bob="z"), "ada", str(path)) == ("ada/1", "ada/3")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("ada/0\nada/9\n", ConfigError, "ids:2: 'ada' has no sample 'ada/9'; the nearest of its 4 is 'ada/"),
        ("1\tada/0\trow/0\n", ConfigError, "a line holds one id and nothing else"),
        ("ada/0\nbob/0\n", ConfigError, "ids:2: sample 'bob/0' belongs to 'bob', not to 'ada'"),
        ("ada/0\nada/1\nada/2\nada/3", ConfigError, "names all samples of 'ada'; leave out --samples"),
        ("\n\n", InputError, "names no sample"),
    ],
)
def test_wrong_files(tmp_path, text, error, message):
    path = tmp_path / "ids"
    path.write_text(text)
    with pytest.raises(error) as caught:
        select_samples(_data(ada="xxyy", bob="z"), "ada", str(path))
    assert message in str(caught.value)


def test_missing_and_binary_files(tmp_path):
    data = _data(ada="xy")
    with pytest.raises(InputError, match="one sample id per line, or authors:<fraction>"):
        select_samples(data, "ada", str(tmp_path / "none"))
    (tmp_path / "ids").write_bytes(b"id\xff")
    with pytest.raises(InputError, match=r"not UTF-8 text.*expected a file with one sample id per line"):
        select_samples(data, "ada", str(tmp_path / "ids"))


def test_who_was_forgotten_is_not_among_the_known() -> None:
    config = load_config(None, {"federation.clients": 3, "federation.joins": {"client-9": 2}})
    with pytest.raises(ConfigError) as caught:
        resolve(config, forgotten=["client-1"])
    assert "no client 'client-9'" in str(caught.value) and str(caught.value).endswith("Known: client-0, client-2")
