"""Folders of models and adapters from strangers: no code of theirs runs, nothing hangs or grows."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import oblivion
from safetensors.torch import load_file, save_file

from oblivion.config import LoraConfig, ModelConfig
from oblivion.errors import ConfigError, InputError
from oblivion.evaluation import _opened, find_target
from oblivion.models.adapter_folder import CONFIG, WEIGHTS, read_adapter_folder
from oblivion.models.loading import TINY, load_base, load_tokenizer, locate
from oblivion.models.name_patterns import matcher
from oblivion.models.resident import ResidentModel

EVIL = "from pathlib import Path\nPath({marker!r}).touch()\nclass C: pass\nM = T = generate = C\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


@pytest.fixture
def adapter(tmp_path: Path, folder: Path) -> Path:
    resident = ResidentModel(load_base(ModelConfig()), LoraConfig(rank=2, targets=("q_proj", "v_proj")))
    values = {name: torch.full(p.shape, 0.01) for name, p in resident.parameters.items()}
    resident.save(values, tmp_path / "adapter", str(folder))
    return tmp_path / "adapter"


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def code_in(folder: Path, marker: Path) -> None:
    """Every way by which a folder can ask for code of its own, or of elsewhere."""
    text = EVIL.format(marker=str(marker))
    (folder / "evil.py").write_text(text)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(text)
    (folder / "generation_config.json").write_text(json.dumps({"custom_generate": str(folder)}))
    classes = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoModel": "evil.M"}
    classes |= {"AutoTokenizer": ["evil.T", "evil.T"], "AutoProcessor": "evil.C"}
    change(folder / "config.json", auto_map=classes, torch_dtype="float32")
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]}, tokenizer_class="T")


@pytest.fixture
def willing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A person who says yes to every question; the list holds the questions."""
    asked: list[str] = []

    def yes(question: str = "") -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", yes)
    return asked


@pytest.mark.parametrize("model_type", ["evilnet", "llama"])
def test_code_of_a_folder_never_runs(model_type: str, folder: Path, adapter: Path, willing: list[str]) -> None:
    """Finding M1: with dtype 'auto' the config's code was offered to a person, and ran."""
    marker = folder.parent / "ran"
    code_in(folder, marker)
    change(folder / "config.json", model_type=model_type)
    rows = folder.parent / "rows"
    for target in (folder, adapter):
        code, _, err = oblivion("evaluate", target, "--data", rows)
        assert code == 3 and len(err.strip().splitlines()) == 1
    if model_type == "llama":  # the config's code alone
        shutil.copy(TINY / "tokenizer_config.json", folder)
    for dtype in ("auto", "float32"):
        config = ModelConfig(name=str(folder), dtype=dtype)
        if model_type == "llama":  # transformers' own class is taken
            assert type(load_base(config).model).__module__.startswith("transformers.")
        else:
            for load in (load_base, load_tokenizer):
                with pytest.raises(InputError) as error:
                    load(config)
                assert len(str(error.value).splitlines()) == 1
    assert not marker.exists() and not willing


@pytest.mark.parametrize("kind", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize(
    "value", ["evil/kernel", "evil/kernel@v1:f", {"": "evil/kernel"}, ["evil/kernel"], "paged|a/b"]
)
def test_a_kernel_from_elsewhere_is_refused(kind: str, value: Any, folder: Path) -> None:
    change(folder / "config.json", **{kind: value})
    with pytest.raises(InputError, match=r"config\.json: .*_implementation = .* is not one of transformers' own"):
        load_tokenizer(ModelConfig(name=str(folder)))


@pytest.mark.parametrize("where", ["parent", "library"])
def test_an_adapters_code_is_not_imported(where: str, adapter: Path, willing: list[str]) -> None:
    marker = adapter.parent / "ran"
    (adapter / "evil.py").write_text(EVIL.format(marker=str(marker)))
    mapping = {"base_model_class": "C", "parent_library": "evil" if where == "parent" else "transformers.evil"}
    change(adapter / CONFIG, auto_mapping=mapping)
    with _opened(find_target(adapter)):
        pass
    assert not marker.exists() and not willing


SLOW = "(((.*)*)*)*X"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("target_modules", SLOW),
        ("target_modules", "(a|a)*" * 30 + "X"),
        ("exclude_modules", SLOW),
        ("layers_pattern", SLOW),
        ("layers_pattern", [SLOW]),
        ("target_modules", [SLOW]),
        ("exclude_modules", [SLOW]),
        ("rank_pattern", {SLOW: 2}),
        ("alpha_pattern", {SLOW: 2.0}),
        ("target_modules", "(?<=a)b"),
        ("target_modules", r"(a)\1"),
        ("target_modules", "(" * 5000),
        ("target_modules", "a" * 100_000),
        ("rank_pattern", {f"layer.{n}": 2 for n in range(100_000)}),
        ("alpha_pattern", {f".*{n}": 2.0 for n in range(1000)}),
        ("target_modules", [f"layer.{n}" for n in range(100_000)]),
    ],
)
def test_no_expression_of_a_file_is_run(setting: str, value: Any, adapter: Path) -> None:
    """Finding m3: such a folder hung for ever. A pattern is read by our own grammar, or refused."""
    change(adapter / CONFIG, **{setting: value}, **({"layers_to_transform": [0]} if "layers" in setting else {}))
    try:
        with _opened(find_target(adapter)):
            pass
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 600
    else:  # it means no layer, and says nothing of any
        assert setting in ("exclude_modules", "rank_pattern", "alpha_pattern")


def test_a_pattern_of_the_scenario_is_read_in_the_same_way() -> None:
    base = load_base(ModelConfig())
    for pattern, reason in ((SLOW, "not found in the base model"), ("(?=a)", "not supported")):
        with pytest.raises(ConfigError, match=rf"lora\.targets = .*{reason}"):
            ResidentModel(base, LoraConfig(targets=pattern))
    resident = ResidentModel(base, LoraConfig(targets=r".*\.(q_proj|v_proj)$", rank=2))
    assert {name.split(".")[-3] for name in resident.parameters} == {"q_proj", "v_proj"}


def test_a_pattern_means_what_it_means_to_others() -> None:
    names = ("model.layers.1.mlp.up_proj", "model.layers.12.self_attn.q_proj", "q_proj", "", "aab")
    for pattern in (
        r".*\.(q_proj|up_proj)$",
        r"^model\.layers\.\d+\..*",
        r"(?:.*?\.)?q_proj",
        "a+b?",
        "(a|)*b",
        r"model.layers.1.*",
    ):
        matches = matcher(pattern)
        assert [matches(name) for name in names] == [bool(re.fullmatch(pattern, name)) for name in names]


@pytest.mark.parametrize(("setting", "value"), [("r", 65536), ("r", 10**6), ("rank_pattern", {"q_proj": 60000})])
def test_a_rank_that_the_weights_do_not_have_is_refused(setting: str, value: Any, adapter: Path) -> None:
    change(adapter / CONFIG, **{setting: value})
    with pytest.raises(InputError, match=rf"{CONFIG}: {setting}"):
        read_adapter_folder(adapter)


def test_a_rank_is_held_to_the_layers(adapter: Path) -> None:
    """Weights of rank 65536 that are one number wide: small in the file, and large beside a layer."""
    tensors = load_file(adapter / WEIGHTS)
    first = min(name for name in tensors if ".lora_A." in name)
    save_file({**tensors, first: torch.ones((65536, 1))}, adapter / WEIGHTS)
    change(adapter / CONFIG, r=65536)
    with pytest.raises(InputError, match=r"does not fit its base model .*has shape"), _opened(find_target(adapter)):
        pass


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 1000},
        {"vocab_size": 10**12},
        {"vocab_size": 10**7},
        {"hidden_size": 10**9},
        {"hidden_size": 60_000},
        {"intermediate_size": 10**10},
        {"num_attention_heads": 10**9},
        {"head_dim": 10**8},
        {"model_type": "gpt2", "n_layer": 10**8},
        {"model_type": "gpt2", "n_positions": 10**8},
        {"model_type": "mixtral", "num_local_experts": 10**7},
        {"text_config": {"num_hidden_layers": 10**9}},
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused(settings: dict[str, Any], folder: Path) -> None:
    change(folder / "config.json", **settings)
    with pytest.raises(InputError) as error:
        load_base(ModelConfig(name=str(folder)))
    assert len(str(error.value).splitlines()) == 1


def test_an_index_names_files_of_its_folder(folder: Path) -> None:
    name = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / name)
    (folder.parent / name).write_bytes((folder / name).read_bytes())
    index = folder / "model.safetensors.index.json"
    keys = list(load_file(folder / name))
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(keys, name)}))
    load_base(ModelConfig(name=str(folder)))
    for wrong in (f"../{name}", str(folder.parent / name), "other.safetensors", "/dev/zero", "a.bin"):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(keys, wrong)}))
        with pytest.raises(InputError, match=r"index\.json: names the file"):
            load_tokenizer(ModelConfig(name=str(folder)))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "chat_template.jinja", "x"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_in_a_folder_are_refused(name: str, kind: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is not a regular file"):
        locate(ModelConfig(name=str(folder)))


def test_links_as_the_hubs_cache_makes_them_are_followed(folder: Path) -> None:
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    load_base(ModelConfig(name=str(folder)))


@pytest.mark.parametrize("content", ["[" * 10**5, "[]", '{"a": 1, "a": 2}', "", '{"vocab_size": 1e999}'])
def test_a_config_that_is_no_config(content: str, folder: Path, adapter: Path) -> None:
    (folder / "config.json").write_text(content)
    (adapter / CONFIG).write_text(content)
    for read in (lambda: load_tokenizer(ModelConfig(name=str(folder))), lambda: read_adapter_folder(adapter)):
        with pytest.raises(InputError) as error:
            read()
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"hidden_size": "64"}),
        ("config.json", {"rope_parameters": [1, 2]}),
        ("config.json", {"pad_token_id": "x"}),
        ("tokenizer_config.json", {"tokenizer_class": "__init__"}),
        ("tokenizer_config.json", {"tokenizer_class": 7}),
        ("tokenizer_config.json", {"eos_token": {"content": 7}}),
        ("tokenizer_config.json", {"from_pretrained": "x"}),
        ("special_tokens_map.json", None),
        ("tokenizer.json", None),
        ("added_tokens.json", []),
    ],
)
def test_what_no_library_expects_in_a_file_is_one_line(name: str, settings: Any, folder: Path) -> None:
    """Each was a traceback; None stands for lists in one another without end."""
    if isinstance(settings, dict):
        change(folder / name, **settings)
    else:
        (folder / name).write_text("[[[]]]" if settings == [] else '{"a":' * 5000 + "1" + "}" * 5000)
    with pytest.raises(InputError) as error:
        load_base(ModelConfig(name=str(folder)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_weights_that_are_a_hole_are_not_read(folder: Path, adapter: Path) -> None:
    """A file that takes nothing on the disk says that it has 8 TiB."""
    for path in (folder / "model.safetensors", adapter / WEIGHTS):
        os.truncate(path, 2**43)
    for read in (lambda: load_base(ModelConfig(name=str(folder))), lambda: read_adapter_folder(adapter)):
        with pytest.raises(InputError, match="this machine's memory"):
            read()


def test_names_of_files_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    name = "\x1b]0;title\x07\x9b2J\u202e"
    code, out, err = oblivion("evaluate", tmp_path / name)
    assert code != 0 and "error: " in err and not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out + err)
