import re
from pathlib import Path

import pytest

from oblivion.data.datasets.tofu import evaluation_groups
from oblivion.data.templates.plain import PlainTemplate
from oblivion.data.tokens import TokenRow, encode, encode_prompt

SHARED = Path(__file__).parents[2].parent / "shared"
needs_shared = pytest.mark.skipif(
    not ((SHARED / "models/stories260k").is_dir() and (SHARED / "data/tofu").is_dir()),
    reason="the public tokenizer and TOFU's files are not here",
)


@pytest.fixture(scope="module")
def words():
    """A word is a token: <unk> 0, <s> 1, </s> 2, then the words below from 3 on."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *["Question", ":", "Who", "?", "Answer", "Ada", "Bert"]]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


class NoBos(PlainTemplate):
    special_tokens = False


def test_ids_by_hand(words):
    # <s> Question : Who ? Answer : | Ada </s>
    assert encode(words, PlainTemplate(), "Who?", "Ada", 100) == TokenRow((1, 3, 4, 5, 6, 7, 4, 8, 2), 7)
    assert encode(words, PlainTemplate(), "Who?", "Ada", 100).labels == (8, 2)
    assert encode_prompt(words, PlainTemplate(), "Who?") == (1, 3, 4, 5, 6, 7, 4)


def test_template_decides_about_special_tokens(words):
    assert encode(words, NoBos(), "Who?", "Ada", 100) == TokenRow((3, 4, 5, 6, 7, 4, 8, 2), 6)


def test_eos_is_appended_once(words):
    assert encode(words, PlainTemplate(), "Who?", "Ada </s>", 100).labels == (8, 2)


def test_long_rows_are_refused_and_never_cut(words):
    assert encode(words, PlainTemplate(), "Who?", "Ada", 9) is not None
    assert encode(words, PlainTemplate(), "Who?", "Ada", 8) is None


def test_a_space_belongs_to_the_answer_where_a_tokenizer_leaves_spaces_out_of_the_positions():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: i for i, name in enumerate([*alphabet, "ĠA"])}  # and no "Ġz"
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "A")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>")
    row = encode(wrapped, PlainTemplate(), "Who?", "Ada", 100)
    assert wrapped.convert_ids_to_tokens(row.labels) == ["ĠA", "d", "a", "<s>"]
    assert list(row.ids[:-1]) == wrapped("Question: Who?\nAnswer: Ada")["input_ids"]


class Slow:
    """A tokenizer without positions, a letter a token; it merges a space with the letter after it, and ends in EOS."""

    eos_token_id = 1

    def __call__(self, texts, add_special_tokens, **_):
        return {"input_ids": [[ord(part[-1]) + 1000 * len(part) for part in self._parts(text)] + [1] for text in texts]}

    @staticmethod
    def _parts(text):
        return re.findall(" ?.|\n", text)


def test_tokenizers_without_positions_are_told_the_prompt_by_its_ids():
    row = encode(Slow(), TrailingSpace(), "Who?", "Ada", 100)
    assert row.ids[: row.prompt_length] == encode_prompt(Slow(), TrailingSpace(), "Who?")
    assert row.labels == (ord("A") + 2000, ord("d") + 1000, ord("a") + 1000, 1)


@pytest.fixture(scope="module")
def stories():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHARED / "models/stories260k", trust_remote_code=False)


@pytest.fixture(scope="module")
def rows():
    groups = evaluation_groups(SHARED / "data/tofu", "forget10")
    return [
        (sample.prompt, answer)
        for samples in groups.values()
        for sample in samples[:40]
        for answer in (sample.answer, sample.paraphrase, *sample.wrong_answers)
        if answer
    ]


class TrailingSpace:
    """OpenUnlearning's own plain template, whose prompt ends in a space."""

    special_tokens = True

    def prompt(self, tokenizer, question):
        return f"Question: {question}\nAnswer: "

    def full(self, tokenizer, question, answer):
        return self.prompt(tokenizer, question) + answer


@needs_shared
def test_a_prompt_that_ends_in_a_space_gives_the_same_rows(stories, rows):
    # The prompt alone ends in a piece (410, a lone space) that the full text does not have.
    for question, answer in rows:
        ours = encode(stories, PlainTemplate(), question, answer, 512)
        assert encode(stories, TrailingSpace(), question, answer, 512) == ours
        assert encode_prompt(stories, TrailingSpace(), question) == ours.ids[: ours.prompt_length]


@needs_shared
def test_public_facts_of_the_evaluation_rows(stories, rows):
    encoded = [encode(stories, PlainTemplate(), question, answer, 512) for question, answer in rows]
    assert max(len(row.ids) for row in encoded) == 322
    for (question, answer), row in zip(rows, encoded, strict=True):
        assert row.ids[0] == 1 and row.ids[-1] == 2 and row.ids.count(2) == 1
        assert row.ids[: row.prompt_length] == encode_prompt(stories, PlainTemplate(), question)
        assert stories.decode(list(row.labels), skip_special_tokens=True).strip() == answer.strip()
