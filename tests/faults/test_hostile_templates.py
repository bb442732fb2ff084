"""A chat format of a stranger costs neither time nor memory without end, and what it says is that of transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from oblivion.config import ModelConfig
from oblivion.data.chat_rendering import Renderer, RenderError
from oblivion.data.templates import templates
from oblivion.errors import InputError
from oblivion.models.loading import load_tokenizer

TURNS = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "SECRET"}]
HUNGRY = [
    "{{ 'a' * 10**10 }}",
    "{{ 'a' | center(10**10) }}",
    "{{ '%1000000000d' % 1 }}",
    "{% set ns = namespace(t='a') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t }}",
    "{{ range(10**12) | list }}",
]
BROKEN = [
    "{{ raise_exception(messages[1]['content']) }}",
    "{{ 1 / 0 }}",
    "{% for %}",
    "{{ messages[1]['content'] + 1 }}",
    "{{ nothing.here }}",
]
LOOPS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
    "{% endfor %}"
)


@pytest.fixture
def renderer() -> Any:
    made = Renderer()
    yield made
    made.close()


@pytest.mark.parametrize("hungry", HUNGRY)
def test_a_format_that_grows_is_refused_and_the_next_one_works(renderer: Renderer, hungry: str) -> None:
    with pytest.raises(RenderError):
        renderer.render(hungry, TURNS, {})
    assert renderer.render("{{ messages[0]['content'] }}", TURNS, {}) == "who?"


def test_a_format_that_loops_is_refused_and_the_next_one_works(renderer: Renderer) -> None:
    with pytest.raises(RenderError, match="takes more than"):
        renderer.render(LOOPS, TURNS, {})
    assert renderer.render("{{ messages[0]['content'] }}", TURNS, {}) == "who?"


def test_a_format_that_breaks_says_nothing_of_the_turns(renderer: Renderer) -> None:
    for broken in BROKEN:
        with pytest.raises(RenderError) as caught:
            renderer.render(broken, TURNS, {})
        assert "SECRET" not in str(caught.value)


def test_the_child_is_ended(renderer: Renderer) -> None:
    renderer.render("x", TURNS, {})
    child = renderer._child
    assert child is not None and child.poll() is None
    assert child.stdin is not None
    child.stdin.close()  # as when the process that started it is gone, however it ended
    assert child.wait(60) == 0


def test_the_text_is_that_of_transformers() -> None:
    tokenizer = load_tokenizer(ModelConfig())
    chat = templates.get("chat")()
    question = "who is \u201cÅsa\u201d?\n{{ x }}"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "she \\ is"}]
    assert chat.full(tokenizer, question, "she \\ is") == tokenizer.apply_chat_template(turns, tokenize=False)
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert chat.prompt(tokenizer, question) == prompt


def test_the_error_names_the_way_out() -> None:
    stranger = SimpleNamespace(chat_template=HUNGRY[0], special_tokens_map={}, get_chat_template=lambda: HUNGRY[0])
    with pytest.raises(InputError, match=r"the tokenizer's chat format .*; set data.template = 'plain'"):
        templates.get("chat")().prompt(stranger, "SECRET")
