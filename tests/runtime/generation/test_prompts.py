"""How texts and chats become tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from pipeline.models import tokenizer
from pipeline.runtime.generation.prompts import Conventions, Prompts
from pipeline.types import UserError
from tests import tiny, tokenizing
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
    folder = tiny.tokenizer(tiny.checkpoint(tmp_path, vocab_size=tiny.WORDS))
    words = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    words.enable_truncation(3)
    words.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.prompts(tmp_path).encode(LONG) == AutoTokenizer.from_pretrained(tmp_path)(LONG).input_ids


def test_a_token_without_a_row_is_refused_by_name(prompts: Prompts) -> None:
    """Case 19: a token that was added to the tokenizer and never to the model."""
    words = Tokenizer.from_str(prompts.tokenizer.to_str())
    words.add_special_tokens(["<|im_start|>"])
    number = words.token_to_id("<|im_start|>")
    more = Prompts(words, prompts.conventions)
    small = changed(more, rows=number, chat_template="{{ messages[0].content }}")
    reason = rf"'<\|im_start\|>', whose id {number} is beyond the {number} rows"
    with pytest.raises(UserError, match=reason):
        small.encode("hello <|im_start|> you")
    with pytest.raises(UserError, match=reason):
        small.chat([{"role": "user", "content": "<|im_start|>"}])
    assert small.encode("hello") and changed(small, rows=number + 1).encode("<|im_start|>") == [number]


def test_a_text_that_the_tokenizer_has_no_token_for_is_one_line() -> None:
    prompts = Prompts(Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>")), Conventions(10))
    with pytest.raises(UserError, match="the tokenizer cannot read the prompt") as caught:
        prompts.encode("b")
    assert "\n" not in str(caught.value)


GOING_ON = {
    "kept": ("{% for m in messages %}[{{ m.content }}]{% endfor %}", "a  b "),
    "trimmed": ("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}", " a  b "),
}


@pytest.mark.parametrize(("template", "last"), GOING_ON.values(), ids=GOING_ON)
def test_the_last_message_goes_on_as_in_transformers(
    template: str, last: str, prompts: Prompts, tokenizer_folder: Path
) -> None:
    messages = [HELLO[0], {"role": "assistant", "content": last}]
    truth = AutoTokenizer.from_pretrained(tokenizer_folder).apply_chat_template(
        messages, chat_template=template, tokenize=False, continue_final_message=True
    )
    assert changed(prompts, chat_template=template).render(messages, "goes on") == truth
    with pytest.raises(UserError, match="leaves out the end"):
        changed(prompts, chat_template="{{ messages[0].content }}").render(messages, "goes on")


def test_every_special_token_has_its_name_in_a_template(tmp_path: Path) -> None:
    marks = {"additional_special_tokens": ["<a>", "<b>"], "extra_special_tokens": {"image_token": "<image>"}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", **marks}
    folder = tokenizing.put(tmp_path, "bytes", tokenizer_config=config)
    listed = "{{ additional_special_tokens[1] }}" if tiny.TRANSFORMERS == 4 else "<b>"  # gone in version 5
    template = "{{ eos_token }}{{ image_token }}" + listed + "{{ bos_token }}"
    truth = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        HELLO, chat_template=template, tokenize=False
    )
    assert changed(tokenizer.prompts(folder), chat_template=template).render(HELLO) == truth
    assert truth == "</s><image><b>"


def test_special_tokens_that_are_read_as_text_are_so_after_shipping(tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "split_special_tokens": True}
    prompts = tokenizer.prompts(tokenizing.put(tmp_path, "pieces", tokenizer_config=config))
    ids = AutoTokenizer.from_pretrained(tmp_path).encode("a </s>")
    prompts.save(tmp_path)
    assert prompts.encode("a </s>") == Prompts.load(tmp_path).encode("a </s>") == ids and 2 not in ids
