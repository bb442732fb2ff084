"""Models that keep more than keys and values, or know no position ids, continue every prompt as it would be alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build

from oblivion.config import ModelConfig
from oblivion.metrics.engine.generation import generate
from oblivion.models.loading import load_base

PROMPTS = [(1, 50, 60, 70), (1, 80), (1, 90, 100, 110), (1, *range(200, 230))]


def greedy(model: Any, tokenizer: Any, prompt: tuple[int, ...], limit: int) -> str:
    """By the forward pass alone, the text read again for every token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(limit):
            new = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if new == tokenizer.eos_token_id:
                break
            ids.append(new)
    return str(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "bart", "lfm2", "openai-gpt"])
def test_every_prompt_is_continued_as_it_would_be_alone(kind: str, tmp_path: Path) -> None:
    base = load_base(ModelConfig(name=str(build(kind, tmp_path)), dtype="float32"))
    base.model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=3.0, forced_eos_token_id=2)
    expected = [greedy(base.model, base.tokenizer, prompt, 8) for prompt in PROMPTS]
    settings = base.model.generation_config
    found = generate(base.model, base.tokenizer, PROMPTS, max_new_tokens=8, max_length=256, batch_size=4)
    assert found == expected
    assert base.model.generation_config is settings


def test_a_prompt_that_fills_the_context_has_no_continuation(tmp_path: Path) -> None:
    base = load_base(ModelConfig(name=str(build("mamba", tmp_path)), dtype="float32"))
    assert generate(base.model, base.tokenizer, PROMPTS[:1], max_new_tokens=8, max_length=4, batch_size=4) == [""]
