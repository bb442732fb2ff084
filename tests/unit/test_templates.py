from types import SimpleNamespace

import pytest

from oblivion.data import templates
from oblivion.data.template_chat import ChatTemplate
from oblivion.data.template_plain import PlainTemplate
from oblivion.data.tokens import encode
from oblivion.errors import InputError

CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
DATED = "Today is {{ date_string }}.\n" + CHATML


@pytest.fixture(scope="module")
def byte_tokenizer():
    """Every byte is a token, so that lengths can be counted by hand."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|start|>", special=True), AddedToken("<|end|>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>")


def _with(tokenizer, chat_template):
    from copy import deepcopy

    other = deepcopy(tokenizer)
    other.chat_template = chat_template
    return other


def test_registry_makes_both_without_arguments():
    assert templates.names() == ["chat", "plain"]
    assert isinstance(templates.get("plain")(), PlainTemplate) and isinstance(templates.get("chat")(), ChatTemplate)


def test_plain_text_by_hand():
    template = PlainTemplate()
    assert template.special_tokens is True
    assert template.prompt(None, "Who?") == "Question: Who?\nAnswer:"
    assert template.full(None, "Who?", "Ada.") == "Question: Who?\nAnswer: Ada."


def test_plain_labels_by_hand(byte_tokenizer):
    row = encode(byte_tokenizer, PlainTemplate(), "Who?", "Ada.", 100)
    # One BOS and 22 bytes of prompt; then " Ada." and EOS are labelled.
    assert row.prompt_length == 23
    assert byte_tokenizer.decode(list(row.labels)) == " Ada.<|end|>"


def test_chat_text_and_labels_by_hand(byte_tokenizer):
    tokenizer, template = _with(byte_tokenizer, CHATML), ChatTemplate()
    assert template.special_tokens is False
    prompt = "<|start|>user\nWho?<|end|>\n<|start|>assistant\n"
    assert template.prompt(tokenizer, "Who?") == prompt
    # The line break that ChatML writes after the end is left out.
    assert template.full(tokenizer, "Who?", "Ada.") == prompt + "Ada.<|end|>"
    row = encode(tokenizer, template, "Who?", "Ada.", 100)
    assert tokenizer.decode(list(row.labels)) == "Ada.<|end|>"
    assert row.ids.count(tokenizer.bos_token_id) == 0 and row.ids.count(tokenizer.eos_token_id) == 2


def test_chat_date_is_fixed(byte_tokenizer):
    tokenizer = _with(byte_tokenizer, DATED)
    assert ChatTemplate().prompt(tokenizer, "q").startswith("Today is 10 Apr 2025.\n<|start|>user")


def test_chat_keeps_an_answer_without_end_as_it_is(byte_tokenizer):
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    bare = turns + "{% if add_generation_prompt %}assistant: {% endif %}"
    text = ChatTemplate().full(_with(byte_tokenizer, bare), "q", "a")
    assert text == "user: q\nassistant: a\n"


def test_chat_that_opens_otherwise_when_asked_is_refused(byte_tokenizer):
    thinking = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    with pytest.raises(InputError, match=r"opens an assistant's turn differently.*data\.template = 'plain'"):
        ChatTemplate().full(_with(byte_tokenizer, thinking), "q", "a")


def test_no_chat_format_is_an_input_error(byte_tokenizer):
    for tokenizer in (byte_tokenizer, SimpleNamespace()):
        with pytest.raises(InputError, match=r"no chat format; set data\.template = 'plain'"):
            ChatTemplate().prompt(tokenizer, "q")


def test_chat_format_that_refuses_is_an_input_error(byte_tokenizer):
    tokenizer = _with(byte_tokenizer, "{{ raise_exception('only images') }}")
    with pytest.raises(InputError, match="refuses the turns: only images"):
        ChatTemplate().prompt(tokenizer, "q")
