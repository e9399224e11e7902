"""How texts and chats become tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.models import tokenizer
from pipeline.runtime.generation.prompts import Prompts
from pipeline.types import UserError
from tests import tiny
from tests.prompting import LONG, changed

HELLO = [
    {"role": role, "content": text}
    for role, text in (("user", 'Is "1 < 2"? 😀'), ("assistant", "yes"), ("user", " é "))
]


TEMPLATES = {
    "loops": """{%- for message in messages %}
        {%- if loop.index0 == 3 %}{% break %}
        {%- elif message.role == "tool" %}{{ raise_exception("no tools") }}{% endif %}
        {% if message.role == "assistant" %}{% continue %}{% endif %}
        {{ bos_token }}{{ message.content | trim | tojson }} {{ message | tojson(indent=2) }}{{ eos_token }}
    {%- endfor %}
    {% if add_generation_prompt %}ASSISTANT:{% endif %}""",
    "tools": "{% if tools is none and documents is none %}none{% endif %}",
    "tojson": "{{ messages | tojson(ensure_ascii=False, separators=(',', ':'), sort_keys=True) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_reads_as_transformers_renders_it(
    template: str, prompts: Prompts, tokenizer_folder: Path
) -> None:
    words = AutoTokenizer.from_pretrained(tokenizer_folder)
    truth = words.apply_chat_template(
        HELLO, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert changed(prompts, chat_template=template).render(HELLO) == truth != ""


def test_prompts_come_back_as_they_were_saved(prompts: Prompts, tmp_path: Path) -> None:
    saved = changed(prompts, chat_template=TEMPLATES["loops"])
    saved.save(tmp_path)
    read = Prompts.load(tmp_path)
    assert (read.conventions, read.ends, read.chat(HELLO)) == (
        saved.conventions,
        {2},
        saved.encode(saved.render(HELLO)),
    )
    assert read.tokenizer.to_str() == prompts.tokenizer.to_str()


MALFORMED: list[Any] = [
    [],
    "hi",
    None,
    [None],
    [{}],
    [{"role": "user"}],
    [{"role": "king", "content": "x"}],
    [{"role": "user", "content": ["x"]}],
]


@pytest.mark.parametrize("messages", MALFORMED, ids=str)
def test_malformed_messages_are_refused(messages: Any, prompts: Prompts) -> None:
    with pytest.raises(UserError, match="messages"):
        changed(prompts, chat_template="{{ messages }}").render(messages)


HOSTILE = {
    None: "no chat template",
    "{{ messages": "unexpected end",
    TEMPLATES["loops"]: "no tools",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ lipsum.__globals__['os'].popen('id').read() }}": "unsafe",
    "{{ messages.append(1) }}": "unsafe",
    "{{ range(1000000000) }}": "too big",
    "{{ 1 // 0 }}": "by zero",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "recursion",
    "{{ 'x'.index('y') }}": "not found",
}


@pytest.mark.parametrize(("template", "words"), HOSTILE.items())
def test_a_template_that_fails_or_is_hostile_is_refused(
    template: str | None, words: str, prompts: Prompts
) -> None:
    with pytest.raises(UserError, match=words):
        changed(prompts, chat_template=template).chat([*HELLO[:2], {"role": "tool", "content": "x"}])


def test_a_bos_is_not_put_twice(tmp_path: Path) -> None:
    tiny.tokenizer(tiny.checkpoint(tmp_path), bos=True)
    prompts = changed(tokenizer.prompts(tmp_path), chat_template="{{ bos_token }}{{ messages[0].content }}")
    assert (
        prompts.encode("hi") == prompts.encode("<s>hi") == prompts.chat([{"role": "user", "content": "hi"}])
    )
    assert [token == 1 for token in prompts.encode("hi")] == [True, False, False]


@pytest.mark.parametrize(("text", "words"), [("", "empty"), ("a" * 10_000_000, "10,000,000 bytes")], ids=len)
def test_no_prompt_and_a_vast_one_are_refused_before_the_tokenizer_sees_them(
    text: str, words: str, prompts: Prompts
) -> None:
    with pytest.raises(UserError, match=words):
        Prompts(SimpleNamespace(get_vocab=prompts.tokenizer.get_vocab), prompts.conventions).encode(text)


def test_half_a_surrogate_pair_is_wrong_input(prompts: Prompts) -> None:
    """JSON can say it, and a command line of wrong bytes."""
    with pytest.raises(UserError):
        prompts.encode("a\ud800")


def test_a_tokenizer_that_cuts_texts_does_not_cut_prompts(tmp_path: Path) -> None:
    """transformers, too, puts the truncation aside that a tokenizer.json was saved with."""
    words = AutoTokenizer.from_pretrained(tiny.tokenizer(tiny.checkpoint(tmp_path))).backend_tokenizer
    words.enable_truncation(3)
    words.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.prompts(tmp_path).encode(LONG) == AutoTokenizer.from_pretrained(tmp_path)(LONG).input_ids
