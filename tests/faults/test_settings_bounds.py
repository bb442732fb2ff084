"""Every number that a scenario can set has an upper bound, and what is beyond it is refused at once in one line."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import command_line
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from oblivion.config import RunConfig, config_from_mapping, load_config
from oblivion.errors import ConfigError
from oblivion.parts import REGISTRIES
from oblivion.validation import bounds

HUGE = 99_999_999_999_999_999_999


def numbers(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and annotated type of every number in a tree of settings, also inside unions and tables."""
    for name, info in model.model_fields.items():
        key = prefix + name.replace("_", "-")
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from numbers(info.annotation, key + ".")
        else:
            yield from inner_numbers(key, Annotated[info.annotation, info])


def inner_numbers(key: str, annotation: Any) -> Iterator[tuple[str, Any]]:
    plain = annotation
    while get_origin(plain) is Annotated:
        plain = get_args(plain)[0]
    if plain in (int, float):
        yield key, annotation
    elif get_origin(plain) is not Literal:
        for member in get_args(plain):
            yield from inner_numbers(f"{key}.client-1" if get_origin(plain) is dict else key, member)


NUMBERS = dict(numbers(RunConfig))


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def test_the_numbers_of_all_sections_are_looked_at() -> None:
    assert len(NUMBERS) >= 35
    assert {"seed", "train.cohort", "simulation.hosts", "federation.joins.client-1", "privacy.delta"} <= NUMBERS.keys()
    assert sum(isinstance(i, FieldInfo) for model in (RunConfig,) for i in model.model_fields.values()) >= 10


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_both_bounds(key: str) -> None:
    limits = bounds(NUMBERS[key])
    assert {"ge", "gt"} & limits.keys() and {"le", "lt"} & limits.keys()
    assert all(math.isfinite(limit) for limit in limits.values())


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_refuses_what_is_none(key: str) -> None:
    for value in (True, "3", "abc", math.nan, math.inf, -math.inf, HUGE, -HUGE, 10**5000, 1e300, [], {}, None):
        with pytest.raises(ConfigError) as caught:
            config_from_mapping(nested(key, value), "file")
        text = str(caught.value)
        assert text.startswith(f"file: {key} = ") and "expected a" in text
        assert "\n" not in text and len(text) < 300 and "pydantic" not in text


def test_a_whole_number_is_no_fraction() -> None:
    with pytest.raises(ConfigError, match=r"federation\.rounds = 2\.5: expected a whole number from 1 to 10000"):
        load_config(None, {"federation.rounds": 2.5})
    assert load_config(None, {"lora.alpha": 8}).lora.alpha == 8


@pytest.mark.parametrize("table", ["federation.parameters", "forget.methods.local", "data.parameters"])
@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, HUGE, 10**5000, [1, [math.nan]], {"a": -math.inf}],
    ids=("nan", "inf", "huge", "digits", "in a list", "in a table"),
)
def test_a_part_is_given_no_number_beyond_all_use(table: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"must be a finite number from -1e12 to 1e12"):
        config_from_mapping(nested(table, {"x": value}), "file")


GIVEN = {"clients": 1, "seed": 0}
PARAMETERS = [
    (registry, name, parameter)
    for registry in REGISTRIES
    for name in registry.names()
    for parameter in inspect.signature(registry.get(name)).parameters.values()
    if parameter.annotation in ("int", "float") and parameter.name not in GIVEN
]


@pytest.mark.parametrize(
    ("registry", "name", "parameter"), PARAMETERS, ids=[f"{name}-{parameter.name}" for _, name, parameter in PARAMETERS]
)
def test_every_parameter_of_a_part_refuses_what_is_no_number(registry: Any, name: str, parameter: Any) -> None:
    from oblivion.parameters import build, call

    for value in (True, "3", math.nan, math.inf, HUGE, 10**5000):
        with pytest.raises(ConfigError, match=f"'{name}' with "):
            if inspect.isclass(registry.get(name)):
                build(registry, name, {parameter.name: value}, "key")
            else:
                call(registry, name, {parameter.name: value}, "key", None, **GIVEN)


@pytest.mark.parametrize(
    "setting",
    [
        "train.threads=100000",
        "federation.rounds=99999999999999999999",
        "lora.rank=1000000",
        "federation.rounds=true",
        "train.threads=" + "9" * 5000,
        "train.threads=" + "[" * 5000,
        "federation.parameters.x=" + "[" * 500 + "]" * 500,
    ],
    ids=lambda text: text[:40],
)
def test_a_dry_run_with_it_ends_in_one_line(setting: str) -> None:
    since = time.process_time()
    code, _, said = command_line.oblivion("run", "demo", "--set", setting, "--dry-run")
    assert code == ConfigError.exit_code and said.count("\n") == 1 and len(said) < 400
    assert time.process_time() - since < 30  # it hung


@pytest.mark.parametrize(("option", "value"), [("--limit", "9" * 30), ("--max-new-tokens", 10**9), ("--batch-size", 0)])
def test_numbers_of_evaluate_have_bounds(option: str, value: Any) -> None:
    code, _, said = command_line.oblivion("evaluate", "nowhere", option, value)
    assert code == 2 and option in said
