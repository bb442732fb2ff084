"""The two passes over a model: scores against a loop over rows and tokens, generation against batches of one."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oblivion.data.tokens import TokenRow
from oblivion.errors import InputError
from oblivion.metrics.engine import scoring
from oblivion.metrics.engine.context import AnswerScore
from oblivion.metrics.engine.generation import generate
from oblivion.metrics.engine.scoring import score_rows
from oblivion.metrics.engine.trees import plant, takes_trees
from oblivion.seeding import numpy_generator

VOCABULARY = 259


@pytest.fixture(scope="module", params=["llama", "gpt2", "peft"])
def model(request: pytest.FixtureRequest, micro_model: Path) -> Any:
    """A model with rotary positions, one with learned positions, and one with an adapter that is not merged."""
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(1)
        if request.param == "gpt2":
            settings = GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=2)
            return GPT2LMHeadModel(settings).eval()
        llama = AutoModelForCausalLM.from_pretrained(micro_model, trust_remote_code=False).eval()
        if request.param == "llama":
            return llama
        import peft

        config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        return peft.get_peft_model(llama, config).eval()


@pytest.fixture(scope="module")
def tokenizer(micro_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(micro_model, trust_remote_code=False)


def random_rows(count: int, longest: int = 40) -> list[TokenRow]:
    generator = numpy_generator(0, "rows")
    rows = []
    for _ in range(count):
        length = int(generator.integers(4, longest))
        ids = (*generator.integers(3, VOCABULARY, length - 1).tolist(), 2)
        rows.append(TokenRow(ids, int(generator.integers(1, length))))
    return rows


def by_loop(model: Any, row: TokenRow) -> AnswerScore:
    """One row, one token at a time, in fp64 from the logits on."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].double()
    own, matches, means, variances = [], [], [], []
    for position in range(row.prompt_length, len(row.ids)):
        p = torch.softmax(logits[position - 1], -1)
        own.append(float(p[row.ids[position]].log()))
        matches.append(int(p.argmax()) == row.ids[position])
        means.append(float((p * p.log()).sum()))
        variances.append(float((p * p.log() ** 2).sum()) - means[-1] ** 2)
    return AnswerScore(np.array(own), np.array(matches), np.array(means), np.array(variances))


def test_scores_equal_a_loop_over_rows_and_tokens(model: Any) -> None:
    rows = random_rows(9)
    for score, row in zip(score_rows(model, rows, pad_id=0, max_tokens=90, moments=range(9)), rows, strict=True):
        expected = by_loop(model, row)
        assert score.log_probs.shape == (len(row.labels),)
        np.testing.assert_allclose(score.log_probs, expected.log_probs, atol=2e-6)
        np.testing.assert_array_equal(score.matches, expected.matches)
        np.testing.assert_allclose(score.mean, expected.mean, atol=1e-5)
        np.testing.assert_allclose(score.variance, expected.variance, atol=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 100, 10_000])
def test_the_batch_does_not_matter(model: Any, max_tokens: int) -> None:
    rows = random_rows(12)
    together = score_rows(model, rows, pad_id=0, max_tokens=max_tokens)
    for index, row in enumerate(rows):
        (alone,) = score_rows(model, [row], pad_id=0)
        np.testing.assert_allclose(together[index].log_probs, alone.log_probs, atol=2e-6)


def same_prompts(groups: int, answers: int) -> list[TokenRow]:
    """Prompts with several answers each, in mixed order."""
    generator = numpy_generator(0, "trees")
    prompts = [(1, *generator.integers(3, VOCABULARY, 5 + 3 * i).tolist()) for i in range(groups)]
    rows = []
    for index in range(groups * answers):
        prompt = prompts[index % groups]
        answer = (*generator.integers(3, VOCABULARY, int(generator.integers(0, 9))).tolist(), 2)
        rows.append(TokenRow(prompt + answer, len(prompt)))
    return rows


@pytest.mark.parametrize("max_tokens", [1, 70, 4096])
def test_answers_that_share_a_prompt_share_a_sequence(model: Any, max_tokens: int) -> None:
    rows = same_prompts(3, 6)
    assert takes_trees(model, plant(rows, share=True), 0)
    assert len(plant(rows, share=True)) == 3
    for score, row in zip(
        score_rows(model, rows, pad_id=0, max_tokens=max_tokens, moments=range(18)), rows, strict=True
    ):
        expected = by_loop(model, row)
        np.testing.assert_allclose(score.log_probs, expected.log_probs, atol=1e-5)
        np.testing.assert_array_equal(score.matches, expected.matches)
        np.testing.assert_allclose(score.mean, expected.mean, atol=1e-5)


def test_a_tree_has_a_longest_length_and_every_row_once() -> None:
    rows = same_prompts(3, 6)
    planted = plant(rows, share=True, longest=30)
    assert len(planted) > 3
    assert sorted(row for tree in planted for row in tree.rows) == list(range(18))
    assert all(len(tree.rows) == 1 or tree.length <= 30 for tree in planted)
    for tree in planted:
        assert [tree.prompt + answer for answer in tree.answers] == [rows[row].ids for row in tree.rows]


def test_a_model_that_does_not_heed_masks_scores_rows_one_by_one(micro_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    deaf = AutoModelForCausalLM.from_pretrained(micro_model, trust_remote_code=False).eval()
    decoder, forward = deaf.get_decoder(), deaf.get_decoder().forward

    def ignoring(**inputs: Any) -> Any:
        return forward(**{**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])})

    decoder.forward = ignoring
    rows = same_prompts(2, 3)
    assert not takes_trees(deaf, plant(rows, share=True), 0)
    for score, row in zip(score_rows(deaf, rows, pad_id=0), rows, strict=True):
        np.testing.assert_allclose(score.log_probs, by_loop(deaf, row).log_probs, atol=1e-5)


def test_batches_hold_both_budgets_and_every_row_once() -> None:
    planted = plant(random_rows(50) + same_prompts(5, 3), share=True)
    batches = list(scoring._batches(planted, max_tokens=120, max_answers=60))
    assert sorted(index for batch in batches for tree in batch for index in tree.rows) == list(range(65))
    for batch in batches:
        longest, answers = max(tree.length for tree in batch), sum(len(a) for tree in batch for a in tree.answers)
        assert len(batch) == 1 or (len(batch) * longest <= 120 and answers <= 60)
        assert len({len(tree.answers) > 1 for tree in batch}) == 1
    assert len(batches) < 30


def test_small_chunks_give_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(6)
    whole = score_rows(model, rows, pad_id=0, moments=[0, 5])
    monkeypatch.setattr(scoring, "_CHUNK", 3 * VOCABULARY)
    for a, b in zip(whole, score_rows(model, rows, pad_id=0, moments=[0, 5]), strict=True):
        np.testing.assert_array_equal(a.log_probs, b.log_probs)
        assert (a.variance is None) == (b.variance is None)
    assert [score.variance is not None for score in whole] == [True, False, False, False, False, True]


def test_no_rows() -> None:
    assert score_rows(None, [], pad_id=0) == []


def test_numbers_that_are_not_finite_are_refused(micro_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    broken = AutoModelForCausalLM.from_pretrained(micro_model, trust_remote_code=False).eval()
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        score_rows(broken, random_rows(2), pad_id=0)


def random_prompts(count: int) -> list[tuple[int, ...]]:
    generator = numpy_generator(0, "prompts")
    return [(1, *generator.integers(3, VOCABULARY, int(generator.integers(2, 30))).tolist()) for _ in range(count)]


def greedy(model: Any, prompt: tuple[int, ...], count: int) -> list[int]:
    """Greedy decoding by the book: the whole text again for each token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_generation_is_greedy_whatever_the_batch(model: Any, tokenizer: Any, batch_size: int) -> None:
    prompts = random_prompts(7)
    prompts.append(prompts[2])
    texts = generate(model, tokenizer, prompts, max_new_tokens=6, max_length=128, batch_size=batch_size)
    for prompt, text in zip(prompts, texts, strict=True):
        new = greedy(model, prompt, 6)
        new = new[: new.index(2)] if 2 in new else new
        assert text == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_generation_stops_at_the_models_own_end(model: Any, tokenizer: Any) -> None:
    (prompt,) = random_prompts(1)
    new = greedy(model, prompt, 5)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = plain.generation_config.eos_token_id
    plain.generation_config.eos_token_id = [new[3]]
    try:
        (text,) = generate(model, tokenizer, [prompt], max_new_tokens=5, max_length=128, batch_size=2)
    finally:
        plain.generation_config.eos_token_id = before
    assert text == tokenizer.decode(new[: new.index(new[3])], skip_special_tokens=True).strip()


def test_sampling_settings_of_the_model_are_ignored_and_kept(model: Any, tokenizer: Any) -> None:
    prompts = random_prompts(3)
    expected = generate(model, tokenizer, prompts, max_new_tokens=6, max_length=128, batch_size=3)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = plain.generation_config
    own.do_sample, own.temperature, own.repetition_penalty = True, 9.0, 5.0
    try:
        assert generate(model, tokenizer, prompts, max_new_tokens=6, max_length=128, batch_size=3) == expected
        assert plain.generation_config is own
        assert own.temperature == 9.0
    finally:
        own.do_sample, own.temperature, own.repetition_penalty = False, None, None


def test_a_prompt_near_the_end_of_the_context_gets_what_is_left(model: Any, tokenizer: Any) -> None:
    short, long = random_prompts(1)[0][:5], tuple([7] * 28)
    texts = generate(model, tokenizer, [short, long], max_new_tokens=8, max_length=30, batch_size=4)
    assert texts[1] == tokenizer.decode(greedy(model, long, 2), skip_special_tokens=True).strip()
    assert texts[0] == tokenizer.decode(greedy(model, short, 8), skip_special_tokens=True).strip()


def test_rows_that_end_leave_the_batch(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prompts(6)
    written = [greedy(model, prompt, 9) for prompt in prompts]
    stop = written[0][4]  # an end that comes at another place in every row, or never
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    widths: list[int] = []
    forward = plain.forward

    def watched(*, input_ids: Any, **inputs: Any) -> Any:
        widths.append(len(input_ids))
        return forward(input_ids=input_ids, **inputs)

    before = plain.generation_config.eos_token_id
    plain.generation_config.eos_token_id = stop
    monkeypatch.setattr(plain, "forward", functools.wraps(forward)(watched))
    try:
        texts = generate(model, tokenizer, prompts, max_new_tokens=9, max_length=128, batch_size=6)
    finally:
        plain.generation_config.eos_token_id = before
    ends = [next((i for i, token in enumerate(new) if token in (stop, 2)), 9) for new in written]
    assert texts == [
        tokenizer.decode(new[:end], skip_special_tokens=True).strip() for new, end in zip(written, ends, strict=True)
    ]
    assert min(ends) < 9
    assert widths == [sum(end >= step for end in ends) for step in range(min(9, max(ends) + 1))]


def test_a_model_without_a_cache_of_this_kind_reads_the_text_again(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = random_prompts(5)
    expected = generate(model, tokenizer, prompts, max_new_tokens=6, max_length=128, batch_size=3)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    monkeypatch.setattr(type(plain), "_supports_default_dynamic_cache", classmethod(lambda cls: False))
    assert generate(model, tokenizer, prompts, max_new_tokens=6, max_length=128, batch_size=3) == expected


def test_the_cache_holds_what_transformers_would_hold(model: Any) -> None:
    from transformers import DynamicCache

    from oblivion.metrics.engine.kv_cache import make_cache

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    ours, other = make_cache(plain, room=2), DynamicCache(config=plain.config)
    generator = torch.Generator().manual_seed(0)
    texts = 5
    for tokens in (7, 1, 1, 1, 3, 1):  # the room is used up at the fourth and at the fifth
        states = [torch.randn(texts, 2, tokens, 4, generator=generator) for _ in range(2)]
        for mine, theirs in zip(ours.update(*states, 0), other.update(*states, 0), strict=True):
            assert torch.equal(mine, theirs)
        if tokens == 1:  # a text ends
            texts -= 1
            chosen = torch.randperm(texts + 1, generator=generator)[:texts].sort().values
            ours.batch_select_indices(chosen)
            other.batch_select_indices(chosen)
        assert ours.get_seq_length() == other.get_seq_length()
    assert texts == 1


def test_no_prompts(model: Any, tokenizer: Any) -> None:
    assert generate(model, tokenizer, [], max_new_tokens=8, max_length=30, batch_size=4) == []
