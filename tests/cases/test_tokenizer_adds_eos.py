"""Case tokenizer-adds-eos: a tokenizer that ends every text with EOS by itself."""

from __future__ import annotations

import json
import shutil
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
ROWS = [
    Sample(id=str(i), prompt=q, answer=a, paraphrase=f"Well: {a}", wrong_answers=(f"{a} No.", "Perhaps."))
    for i, (q, a) in enumerate(
        [("Where is the mill?", "Behind the old orchard."), ("Who sells maps?", "Ada, in 1912.")]
    )
]


def adding_eos(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    values = json.loads((folder / "tokenizer.json").read_text())
    post = values["post_processor"]
    post["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    post["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("model", [TINY, STORIES], ids=["tiny", "stories260k"])
def test_rows_and_numbers_are_those_of_the_plain_tokenizer(model: Path, tmp_path: Path) -> None:
    if not model.is_dir():
        pytest.skip("the public model is not here")
    plain, adds = (load_base(ModelConfig(name=str(f))) for f in (model, adding_eos(model, tmp_path / "model")))
    assert adds.tokenizer("Who?")["input_ids"][-1] == 2 != plain.tokenizer("Who?")["input_ids"][-1]
    template = templates.get("plain")()
    for row in ROWS:
        prompt = encode_prompt(adds.tokenizer, template, row.prompt)
        found = encode(adds.tokenizer, template, row.prompt, row.answer, 256)
        assert prompt == encode_prompt(plain.tokenizer, template, row.prompt) and prompt[-1] != 2
        assert found == encode(plain.tokenizer, template, row.prompt, row.answer, 256)
        assert found is not None and found.labels.count(2) == 1 and found.labels[-1] == 2
    groups = {"forget": ROWS, "holdout": ROWS[:1]}
    options: Any = {"suite": make_suite("tofu"), "max_new_tokens": 6, "batch_size": 4}
    tasks = [(base.model, CausalLM(base.tokenizer, 128, template)) for base in (plain, adds)]
    one, other = (evaluate_model(model, task, groups, **options) for model, task in tasks)
    assert one == other and any(text["generation"] for text in one.texts["forget"].values())
