from types import SimpleNamespace

import pytest

from oblivion.data.templates import templates
from oblivion.data.templates.chat import ChatTemplate
from oblivion.data.templates.plain import PlainTemplate
from oblivion.data.tokens import encode, encode_prompt
from oblivion.errors import InputError
from oblivion.metrics.engine.encoding import AnswerRows
from oblivion.tasks.causal_lm import CausalLM
from oblivion.training.batches import encode_rows
from oblivion.types import Sample

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


def test_registry_makes_all_without_arguments():
    assert templates.names() == ["chat", "plain", "verbatim"]
    assert isinstance(templates.get("plain")(), PlainTemplate) and isinstance(templates.get("chat")(), ChatTemplate)


def test_a_text_as_it_is_begins_after_a_token_of_the_tokenizers_own(byte_tokenizer):
    from copy import deepcopy

    from tokenizers import processors

    template, end = templates.get("verbatim")(), byte_tokenizer.eos_token_id
    assert template.full(byte_tokenizer, "Once upon", " a time") == "Once upon a time"
    adds = deepcopy(byte_tokenizer)
    adds.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{adds.eos_token} $A", special_tokens=[(adds.eos_token, end)]
    )
    for tokenizer in (byte_tokenizer, adds):  # the second writes its first token by itself
        row = encode(tokenizer, template, "", "Once", 100)
        assert row.ids[0] in (tokenizer.bos_token_id, end) and row.ids[-1] == end and row.prompt_length == 1
        assert tokenizer.decode(row.labels[:-1]) == "Once"


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
    assert template.full(tokenizer, "Who?", "Ada.") == prompt + "Ada.<|end|>\n"
    # The line break that ChatML writes after the end is left out.
    row = encode(tokenizer, template, "Who?", "Ada.", 100)
    assert tokenizer.decode(list(row.labels)) == "Ada.<|end|>"
    assert row.ids.count(tokenizer.bos_token_id) == 0 and row.ids.count(tokenizer.eos_token_id) == 2


def test_chat_date_is_fixed(byte_tokenizer):
    tokenizer = _with(byte_tokenizer, DATED)
    assert ChatTemplate().prompt(tokenizer, "q").startswith("Today is 10 Apr 2025.\n<|start|>user")
    asked = _with(byte_tokenizer, DATED.replace("date_string", "strftime_now('%d %B %Y')"))
    assert ChatTemplate().prompt(asked, "q").startswith("Today is 10 April 2025.\n<|start|>user")


def test_a_chat_format_that_would_write_another_date_every_day_is_refused(byte_tokenizer):
    tokenizer = _with(byte_tokenizer, "{% set form = '%d' %}{{ strftime_now(form) }}" + CHATML)
    with pytest.raises(InputError, match=r"today's date in a way that cannot be replaced"):
        ChatTemplate().prompt(tokenizer, "q")


def test_an_answer_that_a_chat_format_does_not_end_ends_in_eos(byte_tokenizer):
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer = _with(byte_tokenizer, turns + "{% if add_generation_prompt %}assistant: {% endif %}")
    row = encode(tokenizer, ChatTemplate(), "q", "a", 100)
    assert tokenizer.decode(list(row.ids)) == "user: q\nassistant: a<|end|>"
    assert tokenizer.decode(list(row.labels)) == " a<|end|>"  # the space before an answer belongs to it


def test_chat_that_opens_otherwise_when_asked_is_refused(byte_tokenizer):
    tokenizer = _with(byte_tokenizer, CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"))
    for call in (
        lambda: encode(tokenizer, ChatTemplate(), "q", "a", 100),
        lambda: encode_prompt(tokenizer, ChatTemplate(), "q"),
    ):
        with pytest.raises(InputError, match=r"'chat' opens an answer differently.*<think>.*data\.template = 'plain'"):
            call()


REWRITING = {
    "a part is dropped": "{{ m.content.split('</think>')[-1] }}",
    "a part is moved": "{% set parts = m.content.split('</think>') %}<think>{{ parts[0] if parts[1] else '' }}</think>"
    "{{ parts[-1] }}",
}


@pytest.mark.parametrize("content", REWRITING.values(), ids=REWRITING)
def test_an_answer_that_a_chat_format_rewrites_is_refused(byte_tokenizer, content):
    tokenizer = _with(byte_tokenizer, CHATML.replace("{{ m.content }}", content))
    assert encode(tokenizer, ChatTemplate(), "q", "Ada.", 100) is not None
    with pytest.raises(InputError, match=r"'chat' does not write an answer as it is.*data\.template = 'plain'"):
        encode(tokenizer, ChatTemplate(), "q", "Hm.</think>Ada.", 100)
    with pytest.raises(InputError, match=r"'chat' does not write the answer into the text"):
        encode(_with(byte_tokenizer, CHATML.replace("m.content", "m.content | upper")), ChatTemplate(), "q", "a", 100)


def test_the_name_of_a_row_is_in_the_message(byte_tokenizer):
    tokenizer = _with(byte_tokenizer, CHATML.replace("{{ m.content }}", REWRITING["a part is dropped"]))
    samples = [Sample(id="row-7", prompt="q", answer="Hm.</think>Ada.")]
    with pytest.raises(InputError, match=r"row-7: the template 'chat'"):
        encode_rows(CausalLM(tokenizer, 100, ChatTemplate()), samples)
    with pytest.raises(InputError, match=r"row-7: the template 'chat'"):
        AnswerRows().encode(samples, {"answer"}, CausalLM(tokenizer, 100, ChatTemplate()))


def test_no_chat_format_is_an_input_error(byte_tokenizer):
    for tokenizer in (byte_tokenizer, SimpleNamespace()):
        with pytest.raises(InputError, match=r"no chat format; set data\.template = 'plain'"):
            ChatTemplate().prompt(tokenizer, "q")


def test_chat_format_that_refuses_is_an_input_error(byte_tokenizer):
    tokenizer = _with(byte_tokenizer, "{{ raise_exception('only images') }}")
    with pytest.raises(InputError, match="refuses the turns"):
        ChatTemplate().prompt(tokenizer, "q")
