"""Adapters as PEFT writes them: measured as PEFT itself computes them, or refused by the name of the setting."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import plain
import pytest
import torch
from command_line import oblivion
from safetensors.torch import load_file, save_file
from tiny_models import CONTEXT, build

from oblivion.errors import InputError
from oblivion.evaluation import _opened, find_target


@dataclass(frozen=True)
class Case:
    """An adapter, by PEFT's own settings; `refused` is what the one line names, empty where it is measured."""

    settings: Mapping[str, Any]
    refused: str = ""
    base: str = "llama"
    kind: Any = peft.LoraConfig
    written: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are changed in the file, of adapters that PEFT itself cannot make from a tiny model alone."""


QV = ["q_proj", "v_proj"]
CASES = {
    "two targets": Case({"target_modules": QV}),
    "another rank and alpha": Case({"r": 3, "lora_alpha": 17, "target_modules": QV}),
    "regular expression": Case({"target_modules": r".*\.0\.self_attn\.(q|o)_proj"}),
    "all-linear": Case({"target_modules": "all-linear"}),
    "some layers": Case({"target_modules": QV, "layers_to_transform": [1]}),
    "layers by pattern": Case({"target_modules": QV, "layers_to_transform": 0, "layers_pattern": "layers"}),
    "excluded modules": Case({"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
    "excluded by pattern": Case({"target_modules": "all-linear", "exclude_modules": r".*\.1\..*"}),
    "rsLoRA": Case({"target_modules": QV, "use_rslora": True}),
    "rank pattern": Case({"target_modules": QV, "rank_pattern": {"q_proj": 2}}),
    "alpha pattern": Case({"target_modules": QV, "alpha_pattern": {r"layers\.1\..*v_proj": 32}}),
    "both patterns and rsLoRA": Case(
        {"target_modules": QV, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 1}}
    ),
    "gaussian": Case({"target_modules": QV, "init_lora_weights": "gaussian"}),
    "orthogonal": Case({"target_modules": QV, "init_lora_weights": "orthogonal"}),
    "no initial values": Case({"target_modules": QV, "init_lora_weights": False}),
    "dropout": Case({"target_modules": QV, "lora_dropout": 0.3}),
    "head": Case({"target_modules": ["q_proj", "lm_head"]}),
    "transposed weights": Case({"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, base="gpt2"),
    "attention of experts": Case({"target_modules": QV}, base="mixtral"),
    "PiSSA": Case({"target_modules": QV, "init_lora_weights": "pissa"}, "init_lora_weights"),
    "fast PiSSA": Case({"target_modules": QV, "init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
    "OLoRA": Case({"target_modules": QV, "init_lora_weights": "olora"}, "init_lora_weights"),
    "LoftQ": Case({"target_modules": QV}, "init_lora_weights", written={"init_lora_weights": "loftq"}),
    "CorDA": Case({"target_modules": QV}, "init_lora_weights", written={"init_lora_weights": "corda"}),
    "DoRA": Case({"target_modules": QV, "use_dora": True}, "use_dora"),
    "trained biases": Case({"target_modules": ["Wqkv", "q_proj"], "bias": "all"}, "bias", base="qwen2"),
    "biases of the adapter": Case({"target_modules": QV, "lora_bias": True}, "lora_bias", base="qwen2"),
    "whole modules": Case({"target_modules": QV, "modules_to_save": ["lm_head"]}, "modules_to_save"),
    "single tokens": Case({"target_modules": QV, "trainable_token_indices": [5, 6]}, "trainable_token_indices"),
    "expert weights": Case(
        {"target_modules": QV, "target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters", base="mixtral"
    ),
    "repeated layers": Case({"target_modules": QV, "layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "aLoRA": Case({"target_modules": QV, "alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
    "embedding": Case({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
    "a setting of tomorrow": Case({"target_modules": QV}, "use_xlora", written={"use_xlora": True}),
    "a task of another kind": Case({"target_modules": QV}, "task_type", written={"task_type": "SEQ_CLS"}),
    "IA3": Case({"target_modules": ["k_proj"], "feedforward_modules": []}, "peft_type", kind=peft.IA3Config),
    "LoHa": Case({"r": 4, "target_modules": QV}, "peft_type", kind=peft.LoHaConfig),
    "LoKr": Case({"r": 4, "target_modules": QV}, "peft_type", kind=peft.LoKrConfig),
    "VeRA": Case({"r": 4, "target_modules": QV}, "peft_type", kind=peft.VeraConfig),
    "AdaLoRA": Case({"target_modules": QV, "total_step": 10}, "peft_type", kind=peft.AdaLoraConfig),
    "prefix tuning": Case({"num_virtual_tokens": 4}, "peft_type", kind=peft.PrefixTuningConfig),
    "prompt tuning": Case({"num_virtual_tokens": 4}, "peft_type", kind=peft.PromptTuningConfig),
}
TELLING = ("regular expression", "some layers", "both patterns and rsLoRA", "head", "PiSSA", "whole modules", "IA3")
NAMES = [pytest.param(name, marks=[] if name in TELLING else pytest.mark.slow) for name in CASES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


def base_of(case: Case, folders: Path) -> Path:
    folder = folders / case.base
    return folder if folder.is_dir() else build(case.base, folder)


def make(case: Case, base: Path, folder: Path) -> Path:
    """What PEFT saves of an adapter that was trained, that is, whose values are none of those it began with."""
    lora = {"r": 4, "lora_alpha": 8} if case.kind is peft.LoraConfig else {}
    settings = case.kind(task_type="CAUSAL_LM", **{**lora, **case.settings})
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = peft.get_peft_model(plain.plain_model(base), settings)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **case.written}))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_it_is_measured_as_peft_computes_it_or_refused_by_name(name: str, folders: Path, tmp_path: Path) -> None:
    case = CASES[name]
    base = base_of(case, folders)
    folder = make(case, base, tmp_path / "adapter")
    rows = plain.scored_rows(CONTEXT)
    if case.refused:
        with pytest.raises(InputError) as caught, _opened(find_target(folder, str(base))):
            pass
        text = str(caught.value)
        assert case.refused in text and str(folder) in text and "\n" not in text
        return
    other = peft.PeftModel.from_pretrained(plain.plain_model(base), folder).eval()
    with _opened(find_target(folder, str(base))) as (model, _):
        assert plain.farthest_score(model, other, rows) < 1e-4
    assert plain.farthest_score(plain.plain_model(base), other, rows) > 1e-2, "the adapter changes something"


def test_weights_as_a_pickle_are_refused(folders: Path, tmp_path: Path) -> None:
    case = CASES["two targets"]
    folder = make(case, base_of(case, folders), tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.bin"):
        find_target(folder, str(folders / "llama"))


@pytest.mark.parametrize("name", ["DoRA", "prefix tuning"])
def test_the_command_line_says_so_with_exit_3(name: str, folders: Path, tmp_path: Path) -> None:
    case = CASES[name]
    base = base_of(case, folders)
    folder = make(case, base, tmp_path / "adapter")
    data = tmp_path / "data"
    data.mkdir()
    code, _, err = oblivion("evaluate", folder, "--base", base, "--data", data, "--split", "forget01")
    assert code == 3
    assert case.refused in err and "Traceback" not in err
    shutil.rmtree(folder)


def test_a_head_that_was_changed_with_its_adapter_is_refused(folders: Path, tmp_path: Path) -> None:
    """PEFT writes the head's own weight beside an adapter on it, and puts it back when it loads."""
    case = CASES["head"]
    folder = make(case, base_of(case, folders), tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.lm_head.base_layer.weight"] += 1
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    with (
        pytest.raises(InputError, match=r"lm_head\.base_layer\.weight"),
        _opened(find_target(folder, str(folders / "llama"))),
    ):
        pass
