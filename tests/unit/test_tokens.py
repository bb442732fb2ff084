from pathlib import Path

import pytest

from oblivion.data.template_plain import PlainTemplate
from oblivion.data.tofu import evaluation_groups
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


def test_answer_without_a_token_of_its_own():
    class Swallowing:
        """Merges everything into one token, so that nothing is left for the answer."""

        eos_token_id = 5

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [5]}

    assert encode(Swallowing(), PlainTemplate(), "Who?", "Ada", 100) is None


@pytest.fixture(scope="module")
def stories():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHARED / "models/stories260k")


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
def test_parity_with_the_trailing_space_template(stories, rows):
    # Known from the reference values: both give the same ids, and the prompt with the space hides exactly one
    # label more, because its last piece (410, a lone space) is not what the full text has there.
    for question, answer in rows:
        ours = encode(stories, PlainTemplate(), question, answer, 512)
        theirs = encode(stories, TrailingSpace(), question, answer, 512)
        assert ours.ids == theirs.ids
        assert len(ours.labels) == len(theirs.labels) + 1
        assert theirs.prompt_length == len(encode_prompt(stories, TrailingSpace(), question))
        assert encode_prompt(stories, TrailingSpace(), question)[-1] == 410


@needs_shared
def test_public_facts_of_the_evaluation_rows(stories, rows):
    encoded = [encode(stories, PlainTemplate(), question, answer, 512) for question, answer in rows]
    assert max(len(row.ids) for row in encoded) == 322
    for (question, answer), row in zip(rows, encoded, strict=True):
        assert row.ids[0] == 1 and row.ids[-1] == 2 and row.ids.count(2) == 1
        assert row.ids[: row.prompt_length] == encode_prompt(stories, PlainTemplate(), question)
        assert stories.decode(list(row.labels), skip_special_tokens=True).strip() == answer.strip()
