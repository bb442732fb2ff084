"""The config: what it reads, what it writes back, and what it says about mistakes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from oblivion.config import RunConfig, assign, config_from_mapping, load_config, parse_assignment
from oblivion.errors import ConfigError, InputError

EXAMPLE = """
seed = 7
engine = "inline"

[lora]
targets = ["q_proj", "v_proj"]

[federation]
clients = 5
joins = { client-3 = 4 }
parameters = { learning-rate = 0.5 }

[train]
learning-rate = 3e-4
cohort = 2

[forget]
client = "client-3"
methods = ["exclude", "local"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message(*arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_defaults_are_those_of_the_design() -> None:
    config = load_config()
    assert (config.seed, config.engine, config.model.name) == (0, "ray", "tiny")
    assert (config.lora.rank, config.lora.alpha, config.lora.targets, config.lora.scheme) == (
        16,
        32,
        "all-linear",
        "fedit",
    )
    federation = config.federation
    assert (federation.clients, federation.rounds, federation.clients_per_round) == (8, 10, 8)
    assert (federation.aggregator, federation.joins, federation.parameters) == ("fedavg", {}, {})
    train = config.train
    assert (train.batch_size, train.local_epochs, train.learning_rate) == (8, 4, 3e-3)
    assert (train.optimizer, train.threads, train.cohort) == ("adamw", 1, "auto")
    assert config.forget.methods == {}
    assert (config.evaluate.suite, config.evaluate.oracle_seeds, config.data.name) == ("tofu", 1, "authors")


def test_a_scenario_is_read_with_overrides_on_top(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, EXAMPLE), ["federation.rounds=4", "train.learning-rate=1e-2", "model.name=x/y"]
    )
    assert config.lora.targets == ("q_proj", "v_proj")
    assert config.federation.joins == {"client-3": 4}
    assert config.federation.parameters == {"learning-rate": 0.5}
    assert (config.federation.rounds, config.train.learning_rate, config.model.name) == (4, 1e-2, "x/y")
    assert (config.train.cohort, config.federation.clients) == (2, 5)


def test_overrides_from_python_are_the_same_as_from_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, EXAMPLE)
    from_python = load_config(path, {"forget.methods.local.beta": 0.2, "seed": 3, "forget.client": "a"})
    from_shell = load_config(path, ["forget.methods.local.beta=0.2", "seed=3", "forget.client=a"])
    assert from_python == from_shell
    assert from_python.forget.methods == {"exclude": {}, "local": {"beta": 0.2}}


METHODS = """
[forget]
client = "client-1"
[forget.methods.rollback]
[forget.methods.local]
learning-rate = 2e-4
"""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["forget.methods=local,exclude"], {"local": {"learning-rate": 2e-4}, "exclude": {}}),
        (["forget.methods=[]"], {}),
        (
            ["forget.methods.gentle.method=local"],
            {"rollback": {}, "local": {"learning-rate": 2e-4}, "gentle": {"method": "local"}},
        ),
        (["forget.methods.local.beta=1"], {"rollback": {}, "local": {"learning-rate": 2e-4, "beta": 1}}),
        (["forget.methods=[]", "forget.methods.a.method=local"], {"a": {"method": "local"}}),
        ({"forget.methods": {"local": {"beta": 1}}}, {"rollback": {}, "local": {"beta": 1}}),
    ],
)
def test_a_list_of_methods_chooses_and_a_table_adds(changes: Any, expected: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(write(tmp_path, METHODS), changes)
    assert config.forget.methods == expected and list(config.forget.methods) == list(expected)
    assert load_config(write(tmp_path, config.to_toml())) == config


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("forget.methods=local,local", "'local' is named twice"),
        ("forget.methods.oracle.method=local", "that of another model"),
        ("forget.methods.oracle-2.method=local", "that of another model"),
        ("forget.methods={'../x'={}}", "is no name"),
        ("forget.methods=3", "forget.methods = 3"),
        ("forget.methods.local=3", "forget.methods.local = 3"),
    ],
)
def test_a_wrong_name_of_a_method_is_refused(value: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, METHODS), [value])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", EXAMPLE])
def test_toml_round_trip(text: str, tmp_path: Path) -> None:
    config = load_config(write(tmp_path, text))
    written = write(tmp_path, config.to_toml())
    assert load_config(written) == config
    assert config_from_mapping(config.to_json()) == config
    assert load_config(written).to_toml() == config.to_toml()


def test_every_key_that_is_written_is_kebab_case() -> None:
    def keys(tree: dict[str, Any]) -> list[str]:
        return [k for key, v in tree.items() for k in (key, *(keys(v) if isinstance(v, dict) else ()))]

    written = tomllib.loads(load_config().to_toml())
    assert not [key for key in keys(written) if "_" in key]
    assert {"batch-size", "clients-per-round", "oracle-seeds"} <= set(keys(written))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**63 - 1),
    rounds=st.integers(5, 10**4),
    rate=st.floats(1e-12, 1e3, allow_nan=False),
    joins=st.dictionaries(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True), st.integers(1, 5)),
    path=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_config_survives_toml(seed: int, rounds: int, rate: float, joins: dict[str, int], path: str) -> None:
    overrides = {
        "seed": seed,
        "federation.rounds": rounds,
        "train.learning-rate": rate,
        "federation.joins": joins,
        "data.path": path,
    }
    config = load_config(None, overrides)
    assert config_from_mapping(tomllib.loads(config.to_toml())) == config


def test_a_config_cannot_be_changed() -> None:
    config = load_config()
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.train.batch_size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[train]\nbatch-sizes = 4", ["unknown key 'train.batch-sizes'", "did you mean 'train.batch-size'?"]),
        ("sead = 1", ["unknown key 'sead'", "did you mean 'seed'?"]),
        ("[fedration]\nrounds = 1", ["unknown key 'fedration'"]),
        ("[train]\nbatch-size = 0", ["train.batch-size = 0", "a whole number from 1 to 65536"]),
        ("[train]\nlearning-rate = -1.0", ["train.learning-rate = -1.0", "a number above 0 and up to 1000"]),
        ("[train]\nlearning-rate = nan", ["train.learning-rate = ", "a number above 0"]),
        ("[train]\nlearning-rate = inf", ["train.learning-rate = ", "a number above 0"]),
        ('[train]\noptimizer = "lion"', ['train.optimizer = "lion"', "'adamw' or 'sgd'"]),
        ('[train]\ncohort = "many"', ['train.cohort = "many"']),
        ('engine = "spark"', ['engine = "spark"', "'ray' or 'inline'"]),
        ("seed = -1", ["seed = -1"]),
        ('seed = "x"', ['seed = "x"', "a whole number"]),
        ("train = 3", ["train = 3"]),
        ("[federation.joins]\nclient-1 = 0", ["federation.joins", "a whole number from 1"]),
        ("[federation.joins]\nclient-1 = 99", ["federation.joins.client-1 = 99", "after the last round"]),
        ('[federation.joins]\n"a\\u0001" = 2', ["federation.joins", "holds a control character"]),
        ("[federation.joins]\n'Bob Ltd.' = 2\nbob-ltd- = 3", ["two names of the client 'bob-ltd-'"]),
        ('[forget]\nmethods = ["local"]', ["forget.methods is set, but forget.client names no client"]),
        ("[train]\nbatch-size = 4\nbatch-size = 5\n\nthreads = 1", ["not a TOML file", "line 3"]),
        ("seed = \n", ["not a TOML file", "line 1"]),
    ],
)
def test_mistakes_are_named(text: str, parts: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, text)
    said = message(path)
    for part in (*parts, str(path)):
        assert part in said


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    said = message(write(tmp_path, "sead = 1\n[train]\nbatch-size = 0\nthreads = 0"))
    assert len(said.splitlines()) == 3


def test_a_mistake_in_an_override_names_the_override(tmp_path: Path) -> None:
    said = message(write(tmp_path, EXAMPLE), ["train.batch-size=none"])
    assert 'train.batch-size = "none"' in said
    assert "--set train.batch-size" in said


def test_a_path_through_a_value_is_refused() -> None:
    assert "'seed.deep' goes through 'seed', which is not a table" in message(None, {"seed": 1, "seed.deep": 2})


def test_a_file_that_cannot_be_read_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_config(tmp_path / "absent.toml")
    assert caught.value.exit_code == 3
    with pytest.raises(InputError):
        load_config(tmp_path)


def test_a_file_that_is_not_text_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "UTF-16" in message(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", ("a", 1)),
        ("a.b = 2.5", ("a.b", 2.5)),
        ("a=3e-4", ("a", 3e-4)),
        ("a=true", ("a", True)),
        ('a="1"', ("a", "1")),
        ("a=plain text", ("a", "plain text")),
        ("a=client-5", ("a", "client-5")),
        ("a=org/model-1.5b", ("a", "org/model-1.5b")),
        ("a=x=y", ("a", "x=y")),
        ("a=", ("a", "")),
        ('a=["b", "c"]', ("a", ["b", "c"])),
        ("a={x = 1}", ("a", {"x": 1})),
    ],
)
def test_assignments(text: str, expected: tuple[str, Any]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["a", "", "=1", "  =1"])
def test_an_assignment_without_key_or_sign_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected key=value, such as federation\.rounds=5"):
        parse_assignment(text)


def test_the_types_that_a_config_makes() -> None:
    assert isinstance(config_from_mapping({}), RunConfig)
    assert config_from_mapping({"train": {"batch_size": 4}}).train.batch_size == 4  # a Python caller's spelling


@pytest.mark.parametrize(
    "key",
    ["forget.methods.exclude.recovery-rounds", "federation.parameters.learning-rate", "evaluate.parameters.some-share"],
)
def test_a_parameter_that_is_set_takes_the_place_of_its_other_spelling(key: str) -> None:
    tree: dict[str, Any] = {}
    assign(tree, key.replace("-", "_"), 1, "a file")
    assign(tree, key, 2, "--set")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree[parent]
    assert tree == {last.replace("-", "_"): 2}


def test_one_override_need_not_stand_in_a_list() -> None:
    assert load_config(None, "federation.rounds=3").federation.rounds == 3
