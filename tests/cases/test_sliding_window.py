"""Case sliding-window: what a model sees depends on the text's length, and a short probe does not show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from oblivion.config import LoraConfig, ModelConfig
from oblivion.data.tokens import TokenRow
from oblivion.errors import InputError
from oblivion.metrics.engine.generation import generate
from oblivion.metrics.engine.scoring import score_rows
from oblivion.metrics.engine.trees import plant, takes_trees
from oblivion.models.attention import sees_all_before
from oblivion.models.loading import Base, load_base
from oblivion.models.resident import ResidentModel
from oblivion.seeding import numpy_generator
from oblivion.tasks.forward import head_is_linear, outputs_at
from oblivion.training.fused import fusible

WINDOWS = ("mistral", "gemma3", "qwen2-window", "gpt-neo", "gpt-oss", "llama4", "modernbert-decoder")
STATES = ("mamba2", "jamba", "lfm2")
OTHER = ("bloom", "mpt", "openai-gpt", "gpt2", "llama")
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
    },
    "original_max_position_embeddings": 32,
    "sliding_window": None,
}


def base_of(kind: str, folder: Path, **changes: Any) -> Base:
    return load_base(ModelConfig(name=str(tiny_models.build(kind, folder, **changes))))


def rows_with(prompts: int, answers: int, longest: int = 20) -> list[TokenRow]:
    """Prompts of 3 to 40 tokens with several answers each."""
    generator = numpy_generator(0, "windows")
    rows = []
    for number in range(prompts):
        prompt = (1, *generator.integers(3, 1000, 3 + number * 36 // max(1, prompts - 1)).tolist())
        for _ in range(answers):
            answer = (*generator.integers(3, 1000, int(generator.integers(1, longest))).tolist(), 2)
            rows.append(TokenRow(prompt + answer, len(prompt)))
    return rows


def alone(model: Any, row: TokenRow) -> np.ndarray[Any, Any]:
    """Log-probabilities of a row's labels by the plain model on that row alone."""
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
    return np.array([float(logs[place - 1, row.ids[place]]) for place in range(row.prompt_length, len(row.ids))])


@pytest.mark.parametrize("kind", WINDOWS + STATES + OTHER)
def test_every_row_is_scored_as_the_plain_model_scores_it(kind: str, tmp_path: Path) -> None:
    base = base_of(kind, tmp_path)
    rows = rows_with(4, 3)
    for score, row in zip(score_rows(base.model, rows, pad_id=0), rows, strict=True):
        np.testing.assert_allclose(score.log_probs, alone(base.model, row), atol=1e-4)


@pytest.mark.parametrize("kind", WINDOWS + STATES + OTHER)
def test_every_text_is_the_one_that_transformers_generates(kind: str, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    base = base_of(kind, tmp_path)
    prompts = [row.ids[: row.prompt_length] for row in rows_with(4, 1)]
    prompts.append((1, *prompts[1][1:][::-1]))  # another of the same length
    texts = generate(base.model, base.tokenizer, prompts, max_new_tokens=20, max_length=256, batch_size=3)
    settings = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=2, pad_token_id=0)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([prompt])
        written = base.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        assert text == base.tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True).strip()


def test_rows_within_the_window_still_share_their_prompt(tmp_path: Path) -> None:
    short = [TokenRow((1, 5, 6, 7, answer, 2), 4) for answer in (8, 9)]
    for kind, rows, shared in (("mistral", short, True), ("mistral", rows_with(2, 3), False), ("llama", short, True)):
        base = base_of(kind, tmp_path / f"{kind}{shared}")
        assert takes_trees(base.model, plant(rows, share=True), 0) is shared
    assert takes_trees(base.model, plant(rows_with(3, 9), share=True), 0)


@pytest.mark.parametrize("kind", ["gemma3", "mamba", "jamba", "bamba", "falcon-alibi", "qwen3-next", "recurrent-gemma"])
def test_the_config_alone_tells(kind: str, tmp_path: Path) -> None:
    """In bfloat16 a window is smaller than what rounding allows, so no try may be needed to see it."""
    assert not sees_all_before(base_of(kind, tmp_path).model, 60)


def test_a_tree_may_be_longer_than_the_context(tmp_path: Path) -> None:
    """GPT-J has a mask for as many tokens as its context, and a dozen answers together have more."""
    base = base_of("gptj", tmp_path, max_position_embeddings=64)
    rows = rows_with(1, 12, longest=40)
    assert sum(len(row.labels) for row in rows) > 64
    for score, row in zip(score_rows(base.model, rows, pad_id=0), rows, strict=True):
        np.testing.assert_allclose(score.log_probs, alone(base.model, row), atol=1e-4)


def test_positions_that_turn_otherwise_in_long_texts(tmp_path: Path) -> None:
    base = base_of("phi3", tmp_path, **LONGROPE)
    rows = rows_with(4, 3) + [TokenRow((1, *range(40, 40 + length - 2), 2), 3) for length in (31, 32, 33, 34)]
    assert min(len(row.ids) for row in rows) < 32 < max(len(row.ids) for row in rows)
    expected = [alone(base.model, row) for row in rows]
    for score, right in zip(score_rows(base.model, rows, pad_id=0), expected, strict=True):
        np.testing.assert_allclose(score.log_probs, right, atol=1e-4)


class Capped(torch.nn.Module):
    """A model that caps its logits where they are large, as those of a short text are not."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    @property
    def device(self) -> Any:
        return self.inner.device

    def get_decoder(self) -> Any:
        return self.inner.get_decoder()

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, **inputs: Any) -> Any:
        output = self.inner(**inputs)
        output.logits = output.logits.clamp(-100, 100)
        return output


def test_a_cap_that_small_logits_do_not_reach_is_seen(tmp_path: Path) -> None:
    model = base_of("llama", tmp_path).model
    assert head_is_linear(model)
    capped = Capped(model)
    assert not head_is_linear(capped)
    ids = torch.tensor([[1, 10, 20, 30]])
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
        chosen = outputs_at(capped, ids, torch.tensor([0]), torch.tensor([2]))["logits"]
    assert float(chosen.abs().max()) == 100


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="depends on tokens that come later"):
        base_of("bert", tmp_path)


def test_clients_of_a_model_whose_positions_depend_on_the_batch_are_not_trained_together(tmp_path: Path) -> None:
    folder = tiny_models.build("phi3", tmp_path, **LONGROPE)
    config = ModelConfig(name=str(folder))
    original = LONGROPE["original_max_position_embeddings"]
    assert isinstance(original, int)
    within, beyond = (
        ResidentModel(load_base(config, length), LoraConfig(rank=2)) for length in (original, original + 1)
    )
    assert fusible(within) is None
    assert "positions depend on the longest text" in str(fusible(beyond))
