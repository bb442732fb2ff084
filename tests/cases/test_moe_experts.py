"""Case moe-experts: an adapter goes on linear layers; experts in one parameter of three dimensions are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from command_line import oblivion

from oblivion.config import LoraConfig, ModelConfig
from oblivion.errors import ConfigError
from oblivion.models.loading import load_base
from oblivion.models.resident import ResidentModel

KINDS = ("mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "gpt-oss", "deepseek-v3", "llama4", "jamba", "phimoe")
IDS = torch.tensor([[1, 10, 20, 30, 40, 50]])
SMALL = {
    "engine": "inline",
    "lora.rank": 2,
    "forget.client": "",
    "federation.joins": "{}",
    "federation.clients": 2,
    "federation.clients-per-round": 2,
    "federation.rounds": 1,
    "train.local-epochs": 1,
    "data.parameters.rows_per_client": 4,
    "data.parameters.holdout_authors": 1,
    "evaluate.limit": 2,
    "evaluate.max-new-tokens": 2,
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_is_what_is_linear(kind: str, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    folder = tiny_models.build(kind, tmp_path / "model")
    resident = ResidentModel(load_base(ModelConfig(name=str(folder))), LoraConfig(rank=2, alpha=4))
    assert resident.lora_layers and not any("experts" in name.split(".")[-1] for name in resident.lora_layers)
    assert "experts" in resident.left_out
    generator = torch.Generator().manual_seed(0)
    adapter = {n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in resident.parameters.items()}
    resident.write(adapter)
    with resident.merged() as model, torch.no_grad():
        measured = model(input_ids=IDS).logits
    resident.save(adapter, tmp_path / "adapter", str(folder))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    with torch.no_grad():
        exported = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(input_ids=IDS).logits
    torch.testing.assert_close(measured, exported, rtol=0, atol=2e-5)


def test_a_mixture_learns_with_a_warning_of_what_is_left_out(tmp_path: Path) -> None:
    folder = tiny_models.build("mixtral", tmp_path / "model")
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    code, out, err = oblivion(
        "run", "demo", *settings, "--set", "forget.methods=", "--set", f"model.name={folder}", "--out", tmp_path / "run"
    )
    assert code == 0, err
    assert "these layers carry no adapter, see docs/models.md: experts" in out + err


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("mixtral", ("q_proj", "w1", "w2", "w3")),
        ("mixtral", ("gate",)),
        ("gpt2", ("wte",)),
        ("llama", ("embed_tokens", "q_proj")),
    ],
)
def test_targets_that_are_no_linear_layers_are_named(kind: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    base = load_base(ModelConfig(name=str(tiny_models.build(kind, tmp_path))))
    with pytest.raises(ConfigError, match="only linear layers can carry an adapter, and these are not: ") as caught:
        ResidentModel(base, LoraConfig(rank=2, targets=targets))
    would = "lora.targets = ['q_proj'] would do" if "q_proj" in targets else "'all-linear' leaves them out"
    assert would in str(caught.value)


def test_a_model_without_experts_leaves_nothing_out(tmp_path: Path) -> None:
    for kind in ("llama", "gpt2", "opt"):
        base = load_base(ModelConfig(name=str(tiny_models.build(kind, tmp_path / kind))))
        assert ResidentModel(base, LoraConfig(rank=2)).left_out == ()
