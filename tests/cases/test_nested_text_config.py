"""Case nested-text-config: where a model's config keeps its sizes, and models for more than text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
from command_line import oblivion

from oblivion.config import LoraConfig, ModelConfig, load_config
from oblivion.errors import ConfigError, InputError
from oblivion.models.loading import context_of, load_base, resolve_dtype, width_of
from oblivion.models.resident import ResidentModel
from server.prepare import load


def test_a_model_that_also_sees_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tiny_models.build("gemma3-nested", tmp_path / "model")
    code, _, err = oblivion("run", "demo", "--set", f"model.name={folder}", "--out", tmp_path / "run")
    assert code == 3 and len(err.strip().splitlines()) == 1 and str(folder) in err
    for dtype in ("auto", "float32"):
        with pytest.raises(InputError, match=r"model_type 'gemma3'\) has a text_config.*'gemma3_text'"):
            load_base(ModelConfig(name=str(folder), dtype=dtype))


@pytest.mark.parametrize(
    ("kind", "width", "context"),
    [
        ("gpt2", 32, 256),
        ("mpt", 32, 256),
        ("gpt-neo", 32, 256),
        ("ctrl", 32, 256),
        ("rwkv", 32, 256),
        ("gemma3", 32, 256),
    ],
)
def test_sizes_by_the_name_that_each_config_has_for_them(kind: str, width: int, context: int, tmp_path: Path) -> None:
    base = load_base(ModelConfig(name=str(tiny_models.build(kind, tmp_path))))
    assert (width_of(base.model.config), base.max_length) == (width, context)


def test_a_model_without_a_limit_takes_the_one_that_is_asked_for(tmp_path: Path) -> None:
    folder = tiny_models.build("bloom", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    del settings["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(settings))
    config = ModelConfig(name=str(folder))
    base = load_base(config)
    assert base.max_length == context_of(base.model.config) > 10**6
    assert load_base(config, 77).max_length == 77
    assert resolve_dtype(config) == "float32"
    assert ResidentModel(base, LoraConfig(rank=2)).width == 32


def test_a_model_folder_with_an_adapter_beside_is_no_plain_model(micro_model: Path, tmp_path: Path) -> None:
    """transformers would put the adapter on the model without a word."""
    folder = shutil.copytree(micro_model, tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(InputError, match="merge that adapter first"):
        load_base(ModelConfig(name=str(folder)))


def test_quantised_weights_are_refused_by_name(micro_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(micro_model, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="quantization_config: quantised weights are not supported"):
        load_base(ModelConfig(name=str(folder)))


def test_a_scheme_with_a_residual_is_refused_on_a_head_that_is_the_embedding_too(tmp_path: Path) -> None:
    folder = tiny_models.build("llama", tmp_path / "model", tie_word_embeddings=True)
    targets = {"lora.targets": ["q_proj", "lm_head"], "model.name": str(folder), "lora.rank": 2}
    load(load_config(None, targets))  # an adapter beside the head is no harm
    with pytest.raises(ConfigError, match="'lm_head' shares its weight with another layer"):
        load(load_config(None, {**targets, "lora.scheme": "flora"}))
    load(load_config(None, {**targets, "lora.targets": ["q_proj"], "lora.scheme": "flora"}))
