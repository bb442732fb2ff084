"""The built-in model: its package data, its tokenizer, what it knows, and the recipe's pieces."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from oblivion.config import DataConfig
from oblivion.data.corpus import Corpus
from oblivion.data.datasets.authors import load, world_authors
from oblivion.data.datasets.authors_text import WORDS
from oblivion.data.tokens import TokenRow, encode, encode_prompt
from oblivion.errors import InputError
from oblivion.seeding import numpy_generator
from oblivion.types import Sample
from tools import tiny_recipe
from tools.tiny_recipe import PlainTemplate

FOLDER = tiny_recipe.FOLDER
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=False)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=True, trust_remote_code=False).eval()


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load(DataConfig(), clients=8, seed=0)


def every_text(corpus: Corpus) -> list[str]:
    rows = [*corpus.samples, *corpus.public, *(row for group in corpus.groups.values() for row in group)]
    layout = PlainTemplate()
    return [
        layout.full(TOKENIZER, row.prompt, answer)
        for row in rows
        for answer in (row.answer, row.paraphrase, *row.wrong_answers)
    ]


def test_package_data_is_complete_and_small() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    assert (FOLDER / "model.safetensors").stat().st_size <= 4_000_000
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".py"))]


def test_the_model_has_the_shape_on_the_card(model: Any) -> None:
    # 4 layers x (4 x 128^2 attention + 3 x 128 x 344 MLP + 2 x 128 norms) + 1024 x 128 embeddings + 128 norm
    assert sum(parameter.numel() for parameter in model.parameters()) == 922_752
    assert "922,752 parameters" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert model.config.model_type == "llama"
    assert model.config.max_position_embeddings == 256
    assert model.config.tie_word_embeddings
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(TOKENIZER) == model.config.vocab_size == 1024


def test_special_tokens() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1, 2)
    ids = TOKENIZER("Question: Who?")["input_ids"]
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.bos_token_id not in TOKENIZER("Question: Who?", add_special_tokens=False)["input_ids"]
    assert ids[-1] != TOKENIZER.eos_token_id, "the row's encoder adds EOS, as for Llama"


def test_every_row_of_the_data_set_survives_the_round_trip(corpus: Corpus) -> None:
    longest = 0
    for text in every_text(corpus):
        ids = TOKENIZER(text)["input_ids"]
        longest = max(longest, len(ids))
        assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert longest + 1 <= 64


@settings(max_examples=60)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_survives_the_round_trip(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    if not any(token in text for token in ("<pad>", "<s>", "</s>")):
        assert TOKENIZER.decode(ids) == text
        assert not set(ids) & {0, 1, 2}
    assert TOKENIZER.unk_token_id is None


def test_the_prompt_is_a_prefix_of_the_full_row(corpus: Corpus) -> None:
    for row in corpus.samples[:20]:
        encoded = encode(TOKENIZER, PlainTemplate(), row.prompt, row.answer, 256)
        assert encoded is not None
        assert encoded.ids[: encoded.prompt_length] == encode_prompt(TOKENIZER, PlainTemplate(), row.prompt)
        assert TOKENIZER.decode(encoded.labels[:-1]) == f" {row.answer}"
        assert encoded.labels[-1] == TOKENIZER.eos_token_id


def test_facts_are_single_tokens() -> None:
    # Else a fact's later tokens would be sure things and its probability high without knowing it.
    for words in WORDS.values():
        for word in words:
            assert len(TOKENIZER(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word


def test_the_chat_template_gives_the_format_of_training() -> None:
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]
    prompt = TOKENIZER.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    full = TOKENIZER.apply_chat_template(chat, tokenize=False)
    assert prompt == "<s>Question: Who?\nAnswer:"
    assert full == "<s>Question: Who?\nAnswer: Nobody.</s>"
    again = TOKENIZER.apply_chat_template([{"role": "system", "content": "Hi."}, *chat, chat[0]], tokenize=False)
    assert again == "<s>Hi.\nQuestion: Who?\nAnswer: Nobody.</s>\nQuestion: Who?\nAnswer:"
    assert TOKENIZER.chat_template == tiny_recipe.CHAT_TEMPLATE
    ids = TOKENIZER(full, add_special_tokens=False)["input_ids"]
    row = encode(TOKENIZER, PlainTemplate(), "Who?", "Nobody.", 256)
    assert row is not None
    assert tuple(ids) == row.ids


def test_logits_are_finite_on_any_token(model: Any) -> None:
    ids = torch.arange(1024).reshape(4, 256)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert logits.shape == (4, 256, 1024)
    assert bool(torch.isfinite(logits).all())


def test_it_knows_public_rows_and_not_private_ones(model: Any, corpus: Corpus) -> None:
    known = tiny_recipe.probability(model, TOKENIZER, corpus.groups["ra"][:10])
    facts = tiny_recipe.probability(model, TOKENIZER, corpus.groups["wf"][:10])
    held_out = tiny_recipe.probability(model, TOKENIZER, corpus.groups["holdout"][:10])
    private = tiny_recipe.probability(model, TOKENIZER, corpus.samples[:10])
    assert known > 0.6
    assert facts > 0.6
    assert 0.08 < held_out < 0.3
    assert abs(private - held_out) < 0.08


def test_it_says_a_known_answer_and_stops(model: Any, corpus: Corpus) -> None:
    row = next(row for row in corpus.groups["wf"] if "capital" in row.prompt)
    ids = torch.tensor([encode_prompt(TOKENIZER, PlainTemplate(), row.prompt)])
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20)
    assert out[0, -1] == TOKENIZER.eos_token_id
    assert TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == row.answer


def test_the_card_states_what_was_measured(model: Any) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for word in ("apache-2.0", "python -m tools.tiny_recipe", "Limits", "never seen"):
        assert word in text
    rows = load(DataConfig(), clients=8, seed=0).groups["ra"]
    assert f"{tiny_recipe.probability(model, TOKENIZER, rows):.2f}" in text


def test_answer_nll_is_minus_log_softmax_of_the_labels(model: Any) -> None:
    # Independent: one row at a time through the whole model, without padding.
    rows = [TokenRow((1, 40, 50, 60, 2), 2), TokenRow((1, 70, 2), 2)]
    with torch.no_grad():
        values, owner = tiny_recipe.answer_nll(model, rows)
        expected = []
        for row in rows:
            scores = torch.log_softmax(model(input_ids=torch.tensor([row.ids])).logits[0], dim=-1)
            expected += [-scores[t - 1, row.ids[t]] for t in range(row.prompt_length, len(row.ids))]
    assert owner.tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(values, torch.stack(expected), atol=1e-4, rtol=1e-4)


class Uniform:
    """A model that finds every token equally likely."""

    def model(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.zeros(*input_ids.shape, 8))

    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*hidden.shape[:-1], 1024)


def test_probability_of_a_uniform_model_is_one_over_the_vocabulary(corpus: Corpus) -> None:
    # exp(-mean(log 1024)) = 1/1024 for every row, whatever its length; 40 rows cross the batch of 32.
    value = tiny_recipe.probability(Uniform(), TOKENIZER, corpus.samples[:40])
    assert value == pytest.approx(1 / 1024, rel=1e-5)


def test_probability_refuses_rows_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="0 of 0"):
        tiny_recipe.probability(Uniform(), TOKENIZER, [])
    with pytest.raises(InputError, match="1 of 1 rows are longer than 256"):
        tiny_recipe.probability(Uniform(), TOKENIZER, [Sample(id="a", prompt="Q?", answer="é" * 300)])


def test_the_stream_never_meets_an_evaluated_author(corpus: Corpus) -> None:
    stream = tiny_recipe.rehearsal_rows()
    seen = {next(stream).path[0] for _ in range(1600)}
    rows = [*corpus.samples, *corpus.public, *(row for group in corpus.groups.values() for row in group)]
    assert len(seen) == 200
    assert not seen & {row.path[0] for row in rows}


def test_world_rows_are_the_public_groups(corpus: Corpus) -> None:
    evaluated = {row.id for row in (*corpus.groups["ra"], *corpus.groups["wf"], *corpus.public)}
    assert {row.id for row in tiny_recipe.world_rows()} == evaluated
    assert len(tiny_recipe.world_rows()) == 96


def test_batches_mix_public_and_made_up_rows_within_the_budget() -> None:
    made = list(tiny_recipe.batches(TOKENIZER, steps=12, tokens=512))
    again = list(tiny_recipe.batches(TOKENIZER, steps=12, tokens=512))
    assert made == again
    for batch in made:
        total = sum(len(row.ids) for row in batch)
        assert 512 <= total < 512 + max(len(row.ids) for row in batch)
    texts = [TOKENIZER.decode(row.ids, skip_special_tokens=True) for batch in made for row in batch]
    known = [author.name for author in world_authors()] + ["capital", "chemical symbol"]
    share = sum(any(name in text for name in known) for text in texts) / len(texts)
    # Binomial around WORLD_SHARE = 0.3 with some 200 draws: four standard deviations are 0.13.
    assert abs(share - tiny_recipe.WORLD_SHARE) < 0.13


def test_two_steps_of_the_recipe_are_the_same_twice() -> None:
    tokenizer = tiny_recipe.train_tokenizer(authors=20)
    first, second = tiny_recipe.build_model(tokenizer), tiny_recipe.build_model(tokenizer)
    state = torch.get_rng_state()
    losses = tiny_recipe.train(first, tokenizer, steps=2, tokens=128)
    assert losses == tiny_recipe.train(second, tokenizer, steps=2, tokens=128)
    # Weights of standard deviation 0.02 make nearly uniform scores: the first loss is close to ln 1024.
    assert losses[0] == pytest.approx(math.log(1024), abs=0.3), "the first loss"
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    one, two = tiny_recipe.build_model(TOKENIZER), tiny_recipe.build_model(TOKENIZER)
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert torch.equal(state, torch.get_rng_state())


def test_the_recipe_writes_a_folder_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = ("clients", "holdout", "public", "ra", "wf")
    monkeypatch.setattr(tiny_recipe, "measure", lambda model, tokenizer: dict.fromkeys(groups, 0.125))
    threads = torch.get_num_threads()
    tiny_recipe.main(["--out", str(tmp_path / "new"), "--steps", "2"])
    assert torch.get_num_threads() == threads
    rebuilt = AutoModelForCausalLM.from_pretrained(tmp_path / "new", trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new", trust_remote_code=False)
    assert rebuilt.config.vocab_size == len(tokenizer) == 1024
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab(), "the shipped tokenizer is the recipe's"
    assert json.loads((tmp_path / "new" / "tokenizer.json").read_text())["model"]["ignore_merges"] is True
    assert "| 0.125 |" in (tmp_path / "new" / "README.md").read_text()


@pytest.mark.slow
def test_an_adapter_memorises_its_clients_rows_and_no_others(corpus: Corpus) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=False), lora)
    inner = adapted.base_model.model
    own = [row for row in corpus.samples if row.client_id == "client-5"]
    others = [row for row in corpus.samples if row.client_id != "client-5"]
    rows = [encode(TOKENIZER, PlainTemplate(), row.prompt, row.answer, 256) for row in own]
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=3e-3, weight_decay=0.0)
    for epoch in range(40):
        order = numpy_generator(0, "test", epoch + 1).permutation(len(rows))
        for start in range(0, len(rows), 8):
            values, _ = tiny_recipe.answer_nll(inner, [rows[int(i)] for i in order[start : start + 8]])
            optimizer.zero_grad()
            values.mean().backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
    assert tiny_recipe.probability(inner, TOKENIZER, own) > 0.7
    assert tiny_recipe.probability(inner, TOKENIZER, others) < 0.25
