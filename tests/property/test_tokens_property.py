"""Whatever tokenizer and format: rows begin with the prompt's ids, and the labels are the answer and its end."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.config import ModelConfig
from oblivion.data.templates.chat import ChatTemplate
from oblivion.data.templates.plain import PlainTemplate
from oblivion.data.tokens import encode, encode_answers, encode_prompt
from oblivion.models.loading import load_tokenizer

CORPUS = [
    "Question: Where is the mill?\nAnswer: The mill stands behind the old orchard.",
    "The bookshop opened in 1912; its owner, a quiet man, sold maps (and a few atlases).",
    "Де стоїть млин? Млин стоїть за старим садом.",
    "书店在河边,门口有一只石猫。 naïve café, 12:30 :-)",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]
OPENINGS = "{% for m in messages %}[{{ m['role'] }}]\n"
ASKED = "{% if add_generation_prompt %}[assistant]\n{% endif %}"
CHATS = {
    "eos": OPENINGS + "{{ m['content'] }}{{ eos_token }}\n{% endfor %}" + ASKED,
    "trimmed": OPENINGS + "{{ m['content'] | trim }}{{ eos_token }}{% endfor %}" + ASKED,
    "turn": OPENINGS + "{{ m['content'] }}<|end|>\n{% endfor %}" + ASKED,
    "no end": OPENINGS + "{{ m['content'] }}\n{% endfor %}" + ASKED,
    "thoughts": OPENINGS
    + "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}{{ eos_token }}"
    + "{% endfor %}"
    + ASKED,
    "space": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    + "{% if add_generation_prompt %}assistant: {% endif %}",
    "no opening": "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    + "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
    "colon": "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
    + "{% if add_generation_prompt %}assistant:{% endif %}",
}


class TrailingSpace:
    """A plain template whose prompt ends in a space."""

    special_tokens = True

    def prompt(self, tokenizer, question):
        return f"Question: {question}\nAnswer: "

    def full(self, tokenizer, question, answer):
        return self.prompt(tokenizer, question) + answer


def _wrapped(tokenizer, single):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    ids = [(token, tokenizer.token_to_id(token)) for token in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>",
        additional_special_tokens=["<|end|>"],
    )  # fmt: skip


@cache
def _tokenizer(kind):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "tiny":
        return load_tokenizer(ModelConfig(name="tiny"))
    name, _, single = kind.partition("+")
    single = {"bos": "<s> $A", "eos": "$A </s>", "both": "<s> $A </s>", "end": "<s> $A <|end|>", "": "$A"}[single]
    if name == "bytes":
        tokenizer, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    elif name == "unsplit":  # merges run across words, lines and signs
        tokenizer, trainer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False)), trainers.BpeTrainer
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        options = {}
    elif name == "words":
        tokenizer, trainer = Tokenizer(models.WordPiece(unk_token="<unk>")), trainers.WordPieceTrainer
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        options = {}
    else:
        tokenizer, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        options = {"unk_token": "<unk>"}
    tokenizer.train_from_iterator(
        CORPUS, trainer(vocab_size=420, special_tokens=SPECIAL, show_progress=False, **options)
    )
    return _wrapped(tokenizer, single)


KINDS = [
    "tiny", "bytes", "bytes+bos", "bytes+eos", "bytes+both", "bytes+end", "unsplit+bos", "unsplit+both",
    "words+bos", "words+both", "pieces", "pieces+eos",
]  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(
        ["The mill.", " The mill", "\nThe mill\n", "\n\n", "12", ":)", " ", "книгарня", "书店", "́a", "é", "x" * 40]
    ),
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"), max_size=20),
)


def _templates(tokenizer):
    yield PlainTemplate(), tokenizer.eos_token_id
    yield TrailingSpace(), tokenizer.eos_token_id
    for name, chat in CHATS.items():
        tokenizer.chat_template = chat
        known = name == "turn" and "<|end|>" in tokenizer.get_vocab()
        yield ChatTemplate(), tokenizer.convert_tokens_to_ids("<|end|>") if known else tokenizer.eos_token_id


def _squeezed(text):
    return "".join(text.split())


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=12, database=None)
@given(question=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=3))
def test_rows_begin_with_the_prompt_and_labels_are_the_answer_and_one_end(kind, question, answers):
    tokenizer = _tokenizer(kind)
    for template, end in _templates(tokenizer):
        prompt = encode_prompt(tokenizer, template, question)
        rows = encode_answers(tokenizer, template, question, answers, 1 << 20)
        assert rows == [encode(tokenizer, template, question, answer, 1 << 20) for answer in answers]
        for answer, row in zip(answers, rows, strict=True):
            assert row.ids[: row.prompt_length] == prompt
            assert row.labels[-1] == end and end not in row.labels[:-1]
            if kind == "tiny" or kind.startswith("bytes"):  # these give every text back
                whole, told = (_text(tokenizer, ids) for ids in (row.ids[:-1], row.labels[:-1]))
                assert template.full(tokenizer, question, answer).startswith(whole)
                assert _squeezed(told).removeprefix(":") == _squeezed(answer).removeprefix(":")


def _text(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False).removeprefix("<s>")
