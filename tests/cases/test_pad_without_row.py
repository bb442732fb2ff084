"""Case pad-without-row: a tokenizer with tokens that the model's embedding has no row for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import oblivion

from oblivion.config import ModelConfig
from oblivion.data.templates import templates
from oblivion.data.tokens import encode, encode_prompt
from oblivion.errors import InputError
from oblivion.models.loading import load_base

SCENARIO = """
engine = "inline"
simulation.hosts = 1
lora.rank = 2
data.name = "jsonl"
data.path = "{folder}/rows.jsonl"
data.columns = {{ question = "q", answer = "a", client = "c" }}
federation.clients = 2
federation.rounds = 1
federation.clients-per-round = 2
train.local-epochs = 1
evaluate.max-new-tokens = 2
"""


@pytest.fixture
def padded(micro_model: Path, tmp_path: Path) -> Path:
    """A model with rows 0 to 258, and a tokenizer whose padding is token 259."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(micro_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(micro_model, trust_remote_code=False)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    return folder


def run(folder: Path, model: Path, answer: str) -> tuple[int, str, str]:
    rows = [{"q": "Who?", "a": answer, "c": f"c{number}"} for number in (0, 0, 1, 1)]
    rows[1]["a"] = "a longer answer, so that something is padded"
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "scenario.toml").write_text(SCENARIO.format(folder=folder))
    return oblivion("run", folder / "scenario.toml", "--set", f"model.name={model}", "--out", folder / "run")


def test_padding_without_a_row_becomes_an_id_that_has_one(padded: Path, micro_model: Path, tmp_path: Path) -> None:
    base, same = load_base(ModelConfig(name=str(padded))), load_base(ModelConfig(name=str(micro_model)))
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id == 2
    ids = torch.tensor([[1, 10, 20]])
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=ids).logits, same.model(input_ids=ids).logits)
    code, _, err = run(tmp_path, padded, "me")
    assert code == 0, err


@pytest.mark.parametrize("pad", [259, 100_000, -1, None])
def test_padding_that_the_config_has_no_row_for(padded: Path, pad: int | None) -> None:
    settings = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps({**settings, "pad_token_id": pad}))
    base = load_base(ModelConfig(name=str(padded)))
    with torch.no_grad():
        assert bool(base.model(input_ids=torch.tensor([[1, base.tokenizer.pad_token_id]])).logits.isfinite().all())


def test_a_text_that_needs_a_missing_row_is_refused(padded: Path, tmp_path: Path) -> None:
    code, _, err = run(tmp_path, padded, "a [PAD] b")
    assert code == 3
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "a token with id 259" in line and "[PAD]" not in line and "rows 0 to 258 only" in line
    base, plain = load_base(ModelConfig(name=str(padded))), templates.get("plain")()
    with pytest.raises(InputError, match="id 259"):
        encode_prompt(base.tokenizer, plain, "[PAD]?")
    with pytest.raises(InputError, match="id 259"):
        encode(base.tokenizer, plain, "who?", "[PAD]", 100)


def test_an_end_without_a_row_is_refused(micro_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = shutil.copytree(micro_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(micro_model, trust_remote_code=False)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"EOS token has id 259, but the model has rows 0 to 258 only"):
        load_base(ModelConfig(name=str(folder)))
