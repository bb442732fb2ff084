"""Case init-moves-base: initial values that are taken out of the base weights change what A and B mean."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import tiny_models
import torch
from command_line import oblivion
from transformers import AutoModelForCausalLM

from oblivion.errors import InputError
from oblivion.models.adapter_folder import CONFIG, read_adapter_folder

MADE = ("pissa", "pissa_niter_4", "olora")
WRITTEN = ("loftq", "corda", "lora_ga", "mica", "something_new")


def write(folder: Path, model: Path, initial: str | bool) -> Path:
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=initial
    )
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False), settings)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("init") / "llama")


@pytest.mark.parametrize("initial", MADE)
def test_an_adapter_whose_base_was_moved_is_refused(initial: str, model: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", model, initial)
    code, out, err = oblivion("evaluate", folder, "--base", model, "--data", tmp_path)
    assert code == 3 and not out
    assert f'{CONFIG}: init_lora_weights = "{initial}" is not supported' in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("initial", WRITTEN)
def test_initial_values_that_are_not_known_to_be_harmless(initial: str, model: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", model, True)
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, "init_lora_weights": initial}))
    with pytest.raises(InputError, match=f'init_lora_weights = "{initial}"'):
        read_adapter_folder(folder)


def test_an_adapter_on_the_model_of_the_case(shared: Path, tmp_path: Path) -> None:
    base = shared / "models" / "stories260k"
    if not base.is_dir():
        pytest.skip("the model of the case is not there")
    folder = write(tmp_path / "adapter", base, "pissa")
    arguments = ("--base", base, "--data", shared / "data" / "tofu", "--split", "forget01", "--limit", "3")
    code, out, err = oblivion("evaluate", folder, *arguments)
    assert code == 3 and not out and "init_lora_weights" in err
