"""Models that would give wrong numbers are refused by name in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import build

from oblivion.config import ModelConfig
from oblivion.errors import InputError
from oblivion.models.loading import load_base


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_base(ModelConfig(name=str(folder), dtype="float32"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_model_that_sees_later_tokens(tmp_path: Path) -> None:
    """BERT as it comes: transformers opens it as a causal model, with a remark that nobody reads."""
    folder = build("bert", tmp_path)
    assert "bert" in refusal(folder) and "depends on tokens that come later" in refusal(folder)
    rewrite(folder, is_decoder=True)
    load_base(ModelConfig(name=str(folder), dtype="float32"))


def test_a_model_whose_positions_begin_at_its_padding_id(tmp_path: Path) -> None:
    assert "'roberta'" in refusal(build("roberta-decoder", tmp_path))
    assert "padding" in refusal(tmp_path)


def test_a_model_with_an_encoder(tmp_path: Path) -> None:
    folder = build("bart", tmp_path)
    rewrite(folder, is_encoder_decoder=True)
    assert "'bart' with an encoder is not supported" in refusal(folder)


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_transformers_would_draw_at_random(tmp_path: Path, lost: str) -> None:
    folder = build("llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights[lost]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert f"lack 1 weights of a LlamaForCausalLM, the first of them '{lost}'" in refusal(folder)


def test_a_model_whose_attention_is_drawn_at_random(tmp_path: Path) -> None:
    folder = build("llama", tmp_path)
    rewrite(folder, model_type="reformer", attn_layers=["local", "lsh"], is_decoder=True)
    assert "'reformer' draws its attention at random" in refusal(folder)
