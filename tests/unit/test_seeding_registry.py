"""Seeds, tables of named parts, and the making of parts from a scenario's parameters."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from itertools import product

import numpy as np
import pytest
import torch

from oblivion import registry as registry_module
from oblivion.errors import ConfigError, InputError, nearest
from oblivion.parameters import build
from oblivion.registry import Registry
from oblivion.seeding import derive_seed, numpy_generator, torch_generator


class TestSeeding:
    def test_the_seed_is_the_first_63_bits_of_the_hash_of_the_canonical_text(self) -> None:
        digest = hashlib.sha256(b'[7,"batches",3,"client-1"]').digest()
        bits = "".join(f"{byte:08b}" for byte in digest)[:63]
        assert derive_seed(7, "batches", 3, "client-1") == int(bits, 2)

    def test_defaults_are_round_zero_and_no_client(self) -> None:
        assert derive_seed(1, "x") == derive_seed(1, "x", 0, "")

    def test_a_fixed_value_that_must_never_change(self) -> None:
        # sha256 of '[0,"init",0,""]', computed apart; old runs could not be replayed if this moved.
        assert derive_seed(0, "init") == int(hashlib.sha256(b'[0,"init",0,""]').hexdigest()[:16], 16) // 2

    def test_every_argument_matters_and_seeds_are_63_bit(self) -> None:
        clients = ["", "client-1", "client-11"]
        seeds = {derive_seed(*key) for key in product(range(4), ["a", "b", "a1"], range(5), clients)}
        assert len(seeds) == 4 * 3 * 5 * 3
        assert all(0 <= seed < 2**63 for seed in seeds)
        assert max(seeds) > 2**60

    def test_neighbouring_fields_cannot_be_confused(self) -> None:
        assert derive_seed(1, "a", 11, "1") != derive_seed(1, "a", 1, "11")
        assert derive_seed(11, "a", 1) != derive_seed(1, "1a", 1)
        assert derive_seed(1, 'a",1,"b', 2) != derive_seed(1, "a", 1, "b")

    def test_generators_repeat_and_do_not_touch_the_global_ones(self) -> None:
        torch.manual_seed(5)
        before, old = torch.get_rng_state(), np.random.get_state()[1].copy()
        first = numpy_generator(3, "p", 1, "c").random(4)
        again = numpy_generator(3, "p", 1, "c").random(4)
        other = numpy_generator(3, "p", 2, "c").random(4)
        draws = [torch.rand(4, generator=torch_generator(3, "p", 1, "c")) for _ in range(2)]
        assert (first == again).all()
        assert (first != other).any()
        assert torch.equal(*draws)
        assert torch.equal(torch.get_rng_state(), before)
        assert (np.random.get_state()[1] == old).all()

    def test_another_process_derives_the_same_seed(self) -> None:
        code = "from oblivion.seeding import derive_seed; print(derive_seed(9, 'p', 2, 'c'))"
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert int(output) == derive_seed(9, "p", 2, "c")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part for the tests.

    More text.
    """

    size_limit: int = 3

    def __post_init__(self) -> None:
        if self.size_limit < 0:
            raise ValueError(f"size_limit = {self.size_limit}; it must be at least 0")


ROWS = {"second": f"{__name__}:Part", "first": f"{__name__}:Part", "broken": "no.such.module:X"}
TABLE = Registry("part", ROWS)


def install(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> list[str]:
    groups: list[str] = []

    def entry_points(group: str) -> list[EntryPoint]:
        groups.append(group)
        return list(entries)

    monkeypatch.setattr(registry_module, "entry_points", entry_points)
    return groups


class TestRegistry:
    def test_names_are_sorted_and_import_nothing(self) -> None:
        assert TABLE.names() == ["broken", "first", "second"]

    def test_get_imports_the_class(self) -> None:
        assert TABLE.get("first") is Part

    def test_an_unknown_name_lists_the_nearest_and_the_known(self) -> None:
        with pytest.raises(ConfigError) as caught:
            TABLE.get("frist")
        assert str(caught.value) == "unknown part 'frist'; did you mean 'first'? Known: broken, first, second"

    def test_describe_gives_the_first_line(self) -> None:
        table = Registry("part", {"only": f"{__name__}:Part"})
        assert table.describe() == {"only": "A part for the tests."}

    def test_a_part_that_is_not_installed_whole_breaks_no_list(self) -> None:
        assert TABLE.describe()["first"] == "A part for the tests."
        assert "cannot be loaded: ModuleNotFoundError: No module named 'no'" in TABLE.describe()["broken"]
        with pytest.raises(InputError, match="part 'broken' cannot be loaded"):
            TABLE.get("broken")

    def test_other_packages_add_by_entry_point(self, monkeypatch: pytest.MonkeyPatch) -> None:
        entry = EntryPoint("outside", f"{__name__}:Part", "oblivion.parts")
        groups = install(monkeypatch, entry)
        table = Registry("part", ROWS)
        assert table.names() == ["broken", "first", "outside", "second"]
        assert table.get("outside") is Part
        assert groups == ["oblivion.parts"]  # looked for once

    def test_a_name_cannot_be_taken_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, EntryPoint("first", "evil:Part", "oblivion.parts"))
        table = Registry("part", ROWS)
        assert table.get("second") is Part, "who does not use the name is not hurt"
        with pytest.raises(ConfigError, match=r"part 'first' is registered twice, by this distribution and by .*evil"):
            table.get("first")
        with pytest.raises(ConfigError, match="part 'first' is registered twice"):
            table.check("first")

    def test_the_table_that_was_passed_is_copied(self) -> None:
        rows = {"a": f"{__name__}:Part"}
        table = Registry("part", rows)
        rows["b"] = "x:y"
        assert table.names() == ["a"]


class TestBuild:
    def test_kebab_case_parameters_become_keyword_arguments(self) -> None:
        assert build(TABLE, "first", {"size-limit": 5}, "k") == Part(size_limit=5)
        assert build(TABLE, "first", {}, "k") == Part()

    def test_an_unknown_parameter_names_the_key_and_the_nearest(self) -> None:
        with pytest.raises(ConfigError) as caught:
            build(TABLE, "first", {"size-limits": 5}, "some.parameters")
        assert str(caught.value).startswith("some.parameters: 'first' has no parameter 'size_limits'; did you mean")

    def test_a_refused_value_is_a_config_error_with_its_reason(self) -> None:
        with pytest.raises(ConfigError, match=r"some\.parameters: 'first' .*size_limit = -1; it must be at least 0"):
            build(TABLE, "first", {"size-limit": -1}, "some.parameters")

    def test_a_wrong_type_is_a_config_error(self) -> None:
        with pytest.raises(ConfigError, match=r"some\.parameters: 'first'"):
            build(TABLE, "first", {"size-limit": "wide"}, "some.parameters")


def test_nearest_without_a_near_name_and_without_names() -> None:
    assert nearest("zzz", ["abc", "aaa"]) == "Known: aaa, abc"
    assert nearest("x", []) == "Known: (none)"
