"""The tiny random models that other tests stand on: each builds, loads, and looks at its input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import CONTEXT, KINDS, build
from transformers import AutoModelForCausalLM, AutoTokenizer

from oblivion.config import ModelConfig
from oblivion.models.loading import load_base

TELLING = ("llama", "mistral", "gpt2", "mixtral", "mamba", "gemma3-nested")
KIND = [pytest.param(kind, marks=[] if kind in TELLING else pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", KIND)
def test_each_kind_builds_and_its_logits_depend_on_what_it_reads(kind: str, tmp_path: Path) -> None:
    folder = build(kind, tmp_path / kind)
    again = build(kind, tmp_path / "again")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, *range(30, 60)], [1, *range(31, 61)]])).logits
    assert (
        logits.shape[:2] == (2, 31)
        and 0 <= logits.shape[2] - len(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)) < 8
    )
    assert float(logits.std()) > 0.05 and float((logits[0] - logits[1])[5:].abs().mean()) > 0.01
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert (folder / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_changes_reach_the_config(tmp_path: Path) -> None:
    folder = build("gpt2", tmp_path, resid_pdrop=0.3, num_hidden_layers=1)
    config = load_base(ModelConfig(name=str(folder), dtype="float32")).model.config
    assert (config.resid_pdrop, config.n_layer, config.n_positions) == (0.3, 1, CONTEXT)
