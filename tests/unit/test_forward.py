"""Logits at chosen positions equal the full logits gathered there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import build
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from oblivion.config import LoraConfig, ModelConfig
from oblivion.models.loading import load_base
from oblivion.models.resident import ResidentModel
from oblivion.tasks.forward import head_is_linear, outputs_at

IDS = torch.tensor([[1, 10, 20, 30, 40, 50], [1, 7, 8, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
ROWS = torch.tensor([0, 0, 0, 1, 1])
POSITIONS = torch.tensor([2, 3, 4, 0, 1])


@pytest.fixture
def resident(micro_model: Path) -> ResidentModel:
    made = ResidentModel(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=4, dropout=0.5))
    generator = torch.Generator().manual_seed(0)
    made.write({n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in made.parameters.items()})
    return made


def test_equals_full_logits_with_padding_and_adapter(resident: ResidentModel) -> None:
    with torch.no_grad():
        full = resident.model(input_ids=IDS, attention_mask=MASK).logits
        chosen = outputs_at(resident.model, IDS, ROWS, POSITIONS)["logits"]
        short = outputs_at(resident.model, IDS[1:, :3], ROWS[3:] * 0, POSITIONS[3:])["logits"]
    assert resident.model.get_base_model()._oblivion_linear_head is True
    torch.testing.assert_close(chosen, full[ROWS, POSITIONS], rtol=0, atol=1e-6)
    torch.testing.assert_close(short, chosen[3:], rtol=0, atol=1e-5)  # padding changes nothing
    assert chosen.shape == (5, full.shape[-1]) and chosen.dtype == torch.float32


def test_gradients_reach_the_adapter_and_equal_those_of_the_full_logits(resident: ResidentModel) -> None:
    def gradients(logits: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(logits.square().sum(), list(resident.parameters.values())))

    chosen = gradients(outputs_at(resident.model, IDS, ROWS, POSITIONS)["logits"])
    full = gradients(resident.model(input_ids=IDS, attention_mask=MASK).logits[ROWS, POSITIONS])
    for one, other in zip(chosen, full, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("kind", ["cohere", "gemma2"])
def test_scaled_or_capped_logits_fall_back(kind: str) -> None:
    """Cohere multiplies its logits, Gemma 2 caps them: the head alone would give other numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "cohere":
            model = CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)).eval()
        else:
            model = Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=0.5)).eval()
    with torch.no_grad():
        full = model(input_ids=IDS, attention_mask=MASK).logits
        chosen = outputs_at(model, IDS, ROWS, POSITIONS)["logits"]
        bare = model.get_output_embeddings()(model.get_decoder()(input_ids=IDS, attention_mask=MASK)[0])
    assert not torch.allclose(bare[ROWS, POSITIONS], full[ROWS, POSITIONS]), "the case is a real one"
    assert model._oblivion_linear_head is False
    torch.testing.assert_close(chosen, full[ROWS, POSITIONS], rtol=0, atol=0)


def test_the_probe_draws_no_randomness_and_keeps_the_mode(resident: ResidentModel) -> None:
    """Else the first visit in a process would see another dropout than the same visit later."""
    resident.model.train()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = outputs_at(resident.model, IDS, ROWS, POSITIONS)["logits"]
        torch.manual_seed(5)
        second = outputs_at(resident.model, IDS, ROWS, POSITIONS)["logits"]
    assert resident.model.get_base_model()._oblivion_linear_head is True
    assert torch.equal(first, second) and all(m.training for m in resident.model.modules())


def test_low_precision_logits_come_out_in_fp32(micro_model: Path) -> None:
    model = load_base(ModelConfig(name=str(micro_model), dtype="bfloat16")).model
    with torch.no_grad():
        chosen = outputs_at(model, IDS, ROWS, POSITIONS)["logits"]
        full = model(input_ids=IDS, attention_mask=MASK).logits
    assert full.dtype == torch.bfloat16 and chosen.dtype == torch.float32
    torch.testing.assert_close(chosen, full[ROWS, POSITIONS].float(), rtol=0, atol=0.02)


def test_fp64_stays_fp64(micro_model: Path) -> None:
    model = load_base(ModelConfig(name=str(micro_model))).model.double()
    with torch.no_grad():
        assert outputs_at(model, IDS, ROWS, POSITIONS)["logits"].dtype == torch.float64


def test_a_model_without_a_decoder_of_its_own_falls_back() -> None:
    """A model whose get_decoder is itself has no head to apply apart."""

    class Whole:
        device = "cpu"
        training = False

        def get_decoder(self) -> Whole:
            return self

        def get_output_embeddings(self) -> torch.nn.Module:
            return torch.nn.Identity()

        def __call__(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids, 64).float())

    chosen = outputs_at(Whole(), IDS, ROWS, POSITIONS)["logits"]
    assert chosen.argmax(-1).tolist() == [20, 30, 40, 1, 7]


def test_a_cap_that_no_small_logit_meets_is_seen(tmp_path: Path) -> None:
    model = load_base(ModelConfig(name=str(build("llama", tmp_path)))).model
    whole = model.forward

    def capped(**inputs: torch.Tensor) -> object:
        output = whole(**inputs)
        output.logits = output.logits.clamp(-9, 9)  # the probe's own logits are far below
        return output

    model.forward = capped
    with torch.no_grad():
        assert float(whole(input_ids=IDS).logits.abs().max()) < 5
    assert not head_is_linear(model)


def test_what_modernbert_calls_its_decoder_is_its_head(tmp_path: Path) -> None:
    model = load_base(ModelConfig(name=str(build("modernbert-decoder", tmp_path)))).model
    with torch.no_grad():
        chosen = outputs_at(model, IDS, ROWS, POSITIONS)["logits"]
        full = model(input_ids=IDS).logits
    torch.testing.assert_close(chosen, full[ROWS, POSITIONS], rtol=0, atol=1e-6)
