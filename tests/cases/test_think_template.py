"""Case think-template: a chat format that writes an empty block of thoughts before the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oblivion.config import ModelConfig
from oblivion.data.templates import templates
from oblivion.data.tokens import encode, encode_prompt
from oblivion.metrics.engine.one_pass import evaluate_model
from oblivion.metrics.suites import make_suite
from oblivion.models.loading import TINY, load_base
from oblivion.tasks.causal_lm import CausalLM
from oblivion.types import Sample

STORIES = Path(__file__).parents[2].parent / "shared/models/stories260k"
FORMAT = (Path(__file__).parent / "think-template/chat_template.jinja").read_text("utf-8")
# The same format, which writes the block when it asks for an answer, too.
ASKING = FORMAT.replace("enable_thinking is defined and not enable_thinking", "true")
SHORT = FORMAT.replace("<think>\n\n</think>\n\n", "")
ROWS = [Sample(id=str(i), prompt=f"Where is mill {i}?", answer=f"Behind orchard {i}.") for i in range(3)]


@pytest.mark.parametrize("model", [TINY, STORIES], ids=["tiny", "stories260k"])
def test_what_the_format_writes_before_an_answer_is_prompt(model: Path) -> None:
    if not model.is_dir():
        pytest.skip("the public model is not here")
    base = load_base(ModelConfig(name=str(model)))
    tokenizer = base.tokenizer

    def encoded(chat_template: str) -> Any:
        tokenizer.chat_template = chat_template
        return [encode(tokenizer, templates.get("chat")(), row.prompt, row.answer, 256) for row in ROWS]

    rows = encoded(FORMAT)
    assert encoded(ASKING) == rows
    assert [row.labels for row in encoded(SHORT)] == [row.labels for row in rows]
    tokenizer.chat_template = FORMAT
    for row, sample in zip(rows, ROWS, strict=True):
        assert tokenizer.decode(row.labels).strip() == f"{sample.answer}</s>"
        prompt = encode_prompt(tokenizer, templates.get("chat")(), sample.prompt)
        assert row.ids[: row.prompt_length] == prompt
        assert tokenizer.decode(prompt).endswith("[assistant]\n<think>\n\n</think>\n\n")

    results = []
    for chat_template in (FORMAT, ASKING):
        tokenizer.chat_template = chat_template
        task = CausalLM(tokenizer, 256, templates.get("chat")())
        sizes = {"max_new_tokens": 8, "batch_size": 4}
        found = evaluate_model(base.model, task, {"forget": ROWS}, suite=make_suite("tofu"), **sizes)
        results.append(found.results)
        assert not any("think" in text["generation"] for text in found.texts["forget"].values())
    assert results[0] == results[1]
    assert results[0]["exact_memorization"].n == 3
