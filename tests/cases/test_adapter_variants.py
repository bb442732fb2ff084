"""Case adapter-variants: LoRA in other clothes is measured as PEFT does it, all else refused by the setting's name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from command_line import oblivion
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from oblivion.config import LoraConfig, ModelConfig
from oblivion.errors import InputError
from oblivion.evaluation import _opened, find_target
from oblivion.models.adapter_folder import CONFIG, WEIGHTS, read_adapter_folder
from oblivion.models.loading import load_base
from oblivion.models.resident import ResidentModel

IDS = torch.tensor([[1, 10, 20, 30, 40, 50, 60, 70]])
MEASURED: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank-pattern": {"rank_pattern": {"q_proj": 2, r"layers\.0\..*v_proj": 6}},
    "alpha-pattern": {"alpha_pattern": {"q_proj": 32}},
    "both-patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True},
    "layers": {"layers_to_transform": [0]},
    "one-layer": {"layers_to_transform": 1, "layers_pattern": "layers"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "excluded-by-pattern": {"target_modules": "all-linear", "exclude_modules": r".*\.(mlp)\..*"},
    "pattern": {"target_modules": r".*layers\.1\..*(q_proj|up_proj)"},
    "mlp": {"target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "as-it-comes": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dropout": {"lora_dropout": 0.5},
    "fan-in": {"fan_in_fan_out": True},
}
MADE_AND_REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("use_dora", {"use_dora": True}),
    "modules-to-save": ("modules_to_save", {"modules_to_save": ["lm_head"]}),
    "bias": ("bias", {"bias": "lora_only"}),
    "bias-all": ("bias", {"bias": "all"}),
    "tokens": ("trainable_token_indices", {"trainable_token_indices": [1, 2]}),
}
WRITTEN_AND_REFUSED: dict[str, Any] = {
    "lora_bias": True,
    "target_parameters": ["mlp.up_proj.weight"],
    "layer_replication": [[0, 2], [1, 2]],
    "alora_invocation_tokens": [5, 6],
    "use_qalora": True,
    "megatron_config": {"tensor_model_parallel_size": 2},
    "arrow_config": {"top_k": 1},
    "kasa_config": {"beta": 1.0},
    "use_bdlora": {"nblocks": 2},
    "ensure_weight_tying": True,
    "peft_type": "LOHA",
    "task_type": "SEQ_2_SEQ_LM",
    "a_setting_of_next_year": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("adapters") / "llama")


def write(folder: Path, model: Path, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    """A random adapter, as PEFT makes and saves it."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False)
    plain = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = peft.get_peft_model(base, peft.LoraConfig(**{**plain, **settings}))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def by_peft(folder: Path, model: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    adapted = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False), folder
    ).eval()
    with torch.no_grad():
        return adapted(input_ids=IDS).logits


def by_us(folder: Path, model: Path) -> torch.Tensor:
    with _opened(find_target(folder, base=str(model))) as (opened, _), torch.no_grad():
        return opened(input_ids=IDS).logits


@pytest.mark.parametrize("kind", MEASURED)
def test_lora_in_other_clothes_is_measured_as_peft_does(kind: str, model: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", model, MEASURED[kind])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, trust_remote_code=False)(
            input_ids=IDS
        ).logits
    expected = by_peft(folder, model)
    assert float((expected - plain).abs().max()) > 1e-2  # the adapter does something
    torch.testing.assert_close(by_us(folder, model), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("base", "targets"), [("gpt2", ["c_attn"]), ("gpt2", ["lm_head", "c_fc"]), ("gemma", ["lm_head"])]
)
def test_weights_that_lie_the_other_way_or_are_shared(base: str, targets: list[str], tmp_path: Path) -> None:
    """Folded into a head that shares its weight with the embedding, an adapter would change the embedding as well."""
    model = tiny_models.build(base, tmp_path / "model")
    folder = write(tmp_path / "adapter", model, {"target_modules": targets})
    torch.testing.assert_close(by_us(folder, model), by_peft(folder, model), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", MADE_AND_REFUSED)
def test_what_is_more_than_lora_is_refused_by_name(kind: str, model: Path, tmp_path: Path) -> None:
    name, settings = MADE_AND_REFUSED[kind]
    folder = write(tmp_path / "adapter", model, settings)
    code, _, err = oblivion("evaluate", folder, "--base", model, "--data", tmp_path)
    assert code == 3 and f"{CONFIG}: {name} = " in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", WRITTEN_AND_REFUSED)
def test_every_other_setting_is_refused_by_name(name: str, model: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", model, {})
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, name: WRITTEN_AND_REFUSED[name]}))
    with pytest.raises(InputError, match=f"{CONFIG}: {name} = .* is not supported"):
        read_adapter_folder(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", "4"),
        ("r", 4.0),
        ("r", 0),
        ("r", 10**12),
        ("lora_alpha", "8"),
        ("lora_alpha", None),
        ("lora_alpha", float("nan")),
        ("target_modules", 3),
        ("rank_pattern", [1]),
        ("rank_pattern", {"q_proj": "2"}),
        ("use_rslora", "yes"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(name: str, value: Any, model: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", model, {})
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, name: value}))
    with pytest.raises(InputError, match=rf"{CONFIG}: {name}.*expected") as caught:
        read_adapter_folder(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_targets_that_are_no_pattern_are_refused(model: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", model, {})
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, "target_modules": "(("}))
    with pytest.raises(InputError, match=r"target_modules: .* is a pattern that ends too early"):
        read_adapter_folder(folder)


def test_settings_that_are_off_or_at_their_default_are_read(model: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", model, {})
    settings = json.loads((folder / CONFIG).read_text())
    off = {"enable_lora": None, "merge_weights": False, "a_setting_of_next_year": [], "rank_pattern": None}
    (folder / CONFIG).write_text(json.dumps({**settings, **off, "revision": "abc", "peft_version": "9.9"}))
    stored = read_adapter_folder(folder)
    assert stored.settings.to_peft().r == 4 and stored.revision == "abc"
    assert find_target(folder).model == ModelConfig(name=stored.base, revision="abc")
    assert find_target(folder, base="tiny").model == ModelConfig(name="tiny")


def test_other_kinds_of_adapters_and_pickles(model: Path, tmp_path: Path) -> None:
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False),
        peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
    )
    adapted.save_pretrained(tmp_path / "ia3")
    with pytest.raises(InputError, match='peft_type = "IA3" is not supported'):
        read_adapter_folder(tmp_path / "ia3")
    folder = write(tmp_path / "adapter", model, {})
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    read_adapter_folder(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"adapter_model\.bin is a pickle, which can run code"):
        read_adapter_folder(folder)


def test_an_adapter_of_another_model_is_an_input_that_does_not_fit(model: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", model, {})
    other = tiny_models.build("llama", tmp_path / "other", num_hidden_layers=1)
    gpt2 = tiny_models.build("gpt2", tmp_path / "gpt2")
    for base, reason in ((other, "layers.1.* is unknown to this model"), (gpt2, "not found in the base model")):
        with pytest.raises(InputError, match=f"adapter does not fit its base model .*{reason}"):
            by_us(folder, base)
    more = load_file(folder / WEIGHTS) | {"base_model.model.model.norm.weight": torch.ones(32)}
    save_file(more, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"norm\.weight', which is not what the base model has there"):
        by_us(folder, model)


def test_an_adapter_of_a_bfloat16_model_is_measured_as_it_is_exported(model: Path, tmp_path: Path) -> None:
    """Finding S11: folded into bfloat16 weights, a small adapter is rounded away."""
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, trust_remote_code=False).save_pretrained(half)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, half / name)
    config = ModelConfig(name=str(half), dtype="bfloat16")
    resident = ResidentModel(load_base(config), LoraConfig(rank=4, alpha=8, targets=("q_proj", "v_proj")))
    generator = torch.Generator().manual_seed(0)
    adapter = {n: 2e-2 * torch.randn(p.shape, generator=generator) for n, p in resident.parameters.items()}
    before = {name: tensor.clone() for name, tensor in resident.model.state_dict().items() if "lora" not in name}
    resident.write(adapter)
    resident.save(adapter, tmp_path / "adapter", str(half))
    with resident.merged() as measured, torch.no_grad():
        logits = measured(input_ids=IDS).logits
    assert torch.equal(logits, by_peft(tmp_path / "adapter", half, torch.bfloat16))
    with resident.model.disable_adapter(), torch.no_grad():
        assert not torch.equal(logits, resident.model(input_ids=IDS).logits)
    after = resident.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
