"""Loading a base model, and the adapter that is copied in and out of it."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from oblivion.config import LoraConfig, ModelConfig
from oblivion.errors import ConfigError, InputError, IntegrityError, OblivionError
from oblivion.models.adapter_folder import CONFIG, WEIGHTS, read_adapter_folder
from oblivion.models.loading import load_base, load_tokenizer, locate, model_digest, resolve_dtype
from oblivion.models.resident import ResidentModel, load_resident

LORA = LoraConfig(rank=4, alpha=8)
IDS = torch.tensor([[1, 10, 20, 30, 40, 50]])


@pytest.fixture(scope="module")
def resident(micro_model: Path) -> ResidentModel:
    return ResidentModel(load_base(ModelConfig(name=str(micro_model))), LORA)


def random_adapter(resident: ResidentModel, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(p.shape, generator=generator) for name, p in resident.parameters.items()}


def base_weights(resident: ResidentModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in resident.model.named_parameters() if "lora" not in n}


def copy_without(micro_model: Path, to: Path, pattern: str) -> Path:
    shutil.copytree(micro_model, to)
    for path in to.glob(pattern):
        path.unlink()
    return to


@pytest.mark.parametrize(
    ("pattern", "missing"),
    [("*.safetensors", "weights"), ("tokenizer.json", "tokenizer"), ("config.json", "config.json")],
)
def test_incomplete_folder_is_named(micro_model: Path, tmp_path: Path, pattern: str, missing: str) -> None:
    folder = copy_without(micro_model, tmp_path / "model", pattern)
    with pytest.raises(InputError, match=missing) as caught:
        locate(ModelConfig(name=str(folder)))
    assert str(folder) in str(caught.value) and caught.value.exit_code == 3


def test_names_that_are_no_model(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "./nowhere", "just-a-name", "a/b/c"):
        with pytest.raises(InputError, match="no such folder"):
            locate(ModelConfig(name=name))


def test_hub_id_needs_a_revision() -> None:
    with pytest.raises(ConfigError, match=r"model\.revision"):
        locate(ModelConfig(name="owner/name"))
    pinned = ModelConfig(name="owner/name", revision="abc")
    assert locate(pinned) == "owner/name" and model_digest(pinned) == "owner/name@abc"


def test_folder_is_found_and_loaded_frozen(micro_model: Path) -> None:
    base = load_base(ModelConfig(name=str(micro_model)))
    assert locate(ModelConfig(name=str(micro_model))) == str(micro_model)
    assert base.max_length == 256 and base.dtype == "float32" and not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.tokenizer.eos_token_id == 2 and base.tokenizer.pad_token_id == 0


def test_max_length_only_shortens(micro_model: Path) -> None:
    config = ModelConfig(name=str(micro_model))
    assert load_base(config, 64).max_length == 64
    assert load_base(config, 10_000).max_length == 256


@pytest.mark.parametrize(
    ("width", "flags", "dtype"),
    [
        (512, "fpu avx512f avx512_bf16", "bfloat16"),
        (512, "fpu amx_bf16 amx_tile", "bfloat16"),
        (512, "fpu avx2 avx512f", "float32"),
        (256, "fpu avx512_bf16 amx_bf16", "float32"),
    ],
)
def test_dtype_auto_goes_by_width_and_processor(
    micro_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, flags: str, dtype: str
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is fast at bfloat16 whatever the processor")
    wide = shutil.copytree(micro_model, tmp_path / "wide")
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**config, "hidden_size": width}))
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr("oblivion.models.loading._CPU", tmp_path / "cpuinfo")
    assert resolve_dtype(ModelConfig(name=str(wide))) == dtype


def test_dtype_auto_is_float32_on_a_narrow_model(micro_model: Path) -> None:
    assert resolve_dtype(ModelConfig(name=str(micro_model))) == "float32"
    assert resolve_dtype(ModelConfig(name=str(micro_model), dtype="bfloat16")) == "bfloat16"


def test_garbled_weights_are_an_input_error(micro_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(micro_model, folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="could not be loaded"):
        load_base(ModelConfig(name=str(folder)))


def test_tokenizer_without_eos_is_refused_and_padding_falls_back(micro_model: Path, tmp_path: Path) -> None:
    for name, gone in (("no-eos", "eos_token"), ("no-pad", "pad_token")):
        shutil.copytree(micro_model, tmp_path / name)
        path = tmp_path / name / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        settings.pop(gone)
        path.write_text(json.dumps(settings))
        (tmp_path / name / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(InputError, match="no EOS token"):
        load_tokenizer(ModelConfig(name=str(tmp_path / "no-eos")))
    tokenizer = load_tokenizer(ModelConfig(name=str(tmp_path / "no-pad")))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_digest_changes_with_any_byte(micro_model: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(micro_model, folder)
    config = ModelConfig(name=str(folder))
    before = model_digest(config)
    assert before == model_digest(ModelConfig(name=str(micro_model)))
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(bytes(data))
    assert model_digest(config) != before


def test_unknown_targets_are_a_config_error(micro_model: Path) -> None:
    base = load_base(ModelConfig(name=str(micro_model)))
    with pytest.raises(ConfigError, match=r"lora\.targets = \('nonsense',\)"):
        ResidentModel(base, LoraConfig(targets=("nonsense",)))


def test_write_then_read_is_exact(resident: ResidentModel) -> None:
    adapter = random_adapter(resident)
    resident.write(adapter)
    back = resident.read()
    assert list(back) == sorted(adapter)
    assert all(torch.equal(back[n], adapter[n]) and back[n].dtype == torch.float32 for n in adapter)
    back[next(iter(back))].zero_()
    assert all(torch.equal(t, adapter[n]) for n, t in resident.read().items()), "read gives copies"


def test_write_refuses_other_names_and_shapes_and_changes_nothing(resident: ResidentModel) -> None:
    adapter = random_adapter(resident)
    resident.write(adapter)
    first = min(adapter)
    other = {n: t + 1 for n, t in adapter.items()}
    bad = [
        ({n: t for n, t in other.items() if n != first}, "is missing"),
        ({**other, "surplus": torch.zeros(1)}, "'surplus' is unknown"),
        ({**other, first: torch.zeros(1)}, r"has shape \(1,\)"),
    ]
    for values, message in bad:
        with pytest.raises(IntegrityError, match=message):
            resident.write(values)
    assert all(torch.equal(t, adapter[n]) for n, t in resident.read().items())


def test_initial_adapter_is_a_function_of_seed_and_name(resident: ResidentModel) -> None:
    torch.manual_seed(1)
    first = resident.initial_adapter(3)
    resident.write(random_adapter(resident))
    torch.manual_seed(2)
    again, other = resident.initial_adapter(3), resident.initial_adapter(4)
    names_a = [n for n in first if ".lora_A." in n]
    assert list(first) == list(resident.parameters) and len(names_a) * 2 == len(first)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in names_a)
    for name in first:
        # Kaiming uniform with a = sqrt(5): bound = sqrt(6 / ((1 + 5) * fan_in)) = 1 / sqrt(fan_in)
        bound = 1 / math.sqrt(first[name].shape[1])
        assert float(first[name].abs().max()) <= bound if ".lora_A." in name else not first[name].any()
    keys = [tuple(first[n].flatten().tolist()) for n in names_a]
    assert len(set(keys)) == len(keys), "each tensor has its own stream"


def test_initial_adapter_does_not_depend_on_other_tensors(micro_model: Path, resident: ResidentModel) -> None:
    base = load_base(ModelConfig(name=str(micro_model)))
    small = ResidentModel(base, LoraConfig(rank=4, alpha=8, targets=("v_proj",))).initial_adapter(3)
    whole = resident.initial_adapter(3)
    assert 0 < len(small) < len(whole)
    assert all(torch.equal(small[n], whole[n]) for n in small)


def test_initial_adapter_changes_no_output(resident: ResidentModel) -> None:
    resident.write(resident.initial_adapter(0))
    with torch.no_grad(), resident.model.disable_adapter():
        plain = resident.model(input_ids=IDS).logits
    with torch.no_grad():
        assert torch.equal(resident.model(input_ids=IDS).logits, plain)


def test_merged_gives_the_adapters_logits_and_restores_the_base(resident: ResidentModel) -> None:
    resident.write(random_adapter(resident))
    before = base_weights(resident)
    with torch.no_grad():
        expected = resident.model(input_ids=IDS).logits
        with resident.merged() as model:
            torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)
            changed = [n for n, p in base_weights(resident).items() if not torch.equal(p, before[n])]
            assert len(changed) == len(resident.parameters) // 2
        assert torch.equal(resident.model(input_ids=IDS).logits, expected)
    assert all(torch.equal(p, before[n]) for n, p in base_weights(resident).items())


def test_merged_restores_the_base_after_an_exception(resident: ResidentModel) -> None:
    resident.write(random_adapter(resident))
    before, adapter = base_weights(resident), resident.read()
    with pytest.raises(ZeroDivisionError), resident.merged():
        raise ZeroDivisionError
    assert all(torch.equal(p, before[n]) for n, p in base_weights(resident).items())
    assert all(torch.equal(t, adapter[n]) for n, t in resident.read().items())
    assert not any(getattr(m, "merged", False) for m in resident.model.modules())


def test_saved_adapter_loads_in_peft(resident: ResidentModel, micro_model: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    adapter = random_adapter(resident)
    resident.write(adapter)
    resident.save(adapter, tmp_path / "a" / "final", str(micro_model))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["final"], "no partial folder stays behind"
    loaded = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(micro_model, trust_remote_code=False), tmp_path / "a/final"
    )
    loaded.eval()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS).logits, resident.model(input_ids=IDS).logits)
    stored = read_adapter_folder(tmp_path / "a/final")
    back, lora = stored.tensors, stored.settings.to_peft()
    assert all(torch.equal(back[n], adapter[n]) for n in adapter) and list(back) == sorted(adapter)
    assert (lora.r, lora.lora_alpha, stored.base) == (4, 8, str(micro_model))
    again = ResidentModel(load_base(ModelConfig(name=str(micro_model))), stored.settings)
    again.write(back)
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=IDS).logits, resident.model(input_ids=IDS).logits)


def test_save_is_all_or_nothing(resident: ResidentModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        monkeypatch.setattr(os, step, full)
        with pytest.raises(OblivionError, match="No space left on device; free some space"):
            resident.save(random_adapter(resident), tmp_path / "final", "base")
        assert not list(tmp_path.iterdir())
        monkeypatch.undo()
    resident.save(random_adapter(resident), tmp_path / "final", "base")
    assert sorted(p.name for p in (tmp_path / "final").iterdir()) == [CONFIG, WEIGHTS]


def test_save_refuses_what_is_not_this_models_adapter(resident: ResidentModel, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        resident.save({"other": torch.zeros(1)}, tmp_path / "final", "base")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(resident: ResidentModel, tmp_path: Path) -> Path:
    resident.save(random_adapter(resident), tmp_path / "final", "base")
    return tmp_path / "final"


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_adapter_folder_that_lacks_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        read_adapter_folder(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [(CONFIG, b"{"), (CONFIG, b"[]"), (CONFIG, b"{}"), (CONFIG, b"\xff\xfe"), (WEIGHTS, b""), (WEIGHTS, b"x" * 99)],
)
def test_malformed_adapter_folder(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"not a LoRA adapter in PEFT format|expected the settings that PEFT writes"):
        read_adapter_folder(folder)


def test_adapter_without_any_effect_is_refused(folder: Path) -> None:
    tensors = {n: t * 0 if ".lora_B." in n else t for n, t in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(InputError, match="every B of this adapter is zero"):
        read_adapter_folder(folder)


def test_one_resident_model_is_kept_per_process(micro_model: Path) -> None:
    config = ModelConfig(name=str(micro_model))
    first = load_resident(config, LORA)
    assert load_resident(ModelConfig(name=str(micro_model)), LoraConfig(rank=4, alpha=8)) is first
    assert load_resident(config, LoraConfig(rank=2)) is not first
