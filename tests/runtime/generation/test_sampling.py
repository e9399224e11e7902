"""How tokens are drawn, how text comes out of them, and how prompts go in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers import models as models_of_words
from transformers import AutoTokenizer
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipeline.models import tokenizer
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampler, Sampling, kept
from pipeline.runtime.generation.writer import Piece, TextStream, Writer
from pipeline.types import UserError
from tests import tiny

LONG = "The following sections describe the standard types that are built into the interpreter."


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tokenizer(tiny.checkpoint(tmp_path_factory.mktemp("words"), vocab_size=tiny.WORDS))


@pytest.fixture(scope="module")
def prompts(tokenizer_folder: Path) -> Prompts:
    return changed(tokenizer.prompts(tokenizer_folder), ends=(2,))


def changed(prompts: Prompts, **conventions: Any) -> Prompts:
    return Prompts(prompts.tokenizer, replace(prompts.conventions, **conventions))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 50), st.integers(0, 60), st.floats(0.05, 1))
def test_kept_is_what_transformers_keeps(seed: int, size: int, top_k: int, top_p: float) -> None:
    scores = np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)
    assume(
        np.abs(kept(scores, top_k, 1)[1].cumsum() - top_p)[:-1].min(initial=1) > 1e-5
    )  # nearer, rounding decides
    warped = torch.tensor(scores)[None]
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    (ids, chances), found = kept(scores, top_k, top_p), np.zeros(size)
    found[ids] = chances
    np.testing.assert_allclose(found, warped[0].double().softmax(0).numpy(), rtol=0, atol=1e-6)
    assert chances.tolist() == sorted(chances, reverse=True)


@pytest.mark.parametrize(
    ("repetition", "presence", "frequency"),
    [(1.5, 0, 0), (0.6, 0, 0), (1, 0.7, 0), (1, 0, 0.4), (2, -1, 0.9)],
)
def test_penalties_are_those_of_transformers_and_openai(
    repetition: float, presence: float, frequency: float
) -> None:
    rng, ids, differ = np.random.default_rng(0), [3, 3, 7], 0
    asked = Sampling(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    sampler, processor = Sampler(asked, ids), RepetitionPenaltyLogitsProcessor(float(repetition))
    for _ in range(60):
        logits = rng.normal(size=40).astype(np.float32)
        counts = np.bincount(ids[3:], minlength=40)
        scores = (
            processor(torch.tensor([ids]), torch.tensor(logits[None]))[0].numpy()
            - frequency * counts
            - presence * (counts > 0)
        )
        ids.append(int(scores.argmax()))
        differ += ids[-1] != logits.argmax()
        assert sampler.pick(logits) == ids[-1]
    assert differ > 3


def test_draws_have_the_probabilities_that_were_asked_for() -> None:
    logits = np.array([1.0, -2, 0.5, 2, -0.3, 1.9], np.float16)
    sampler = Sampler(Sampling(temperature=0.7, top_k=5, top_p=0.95, seed=1), [])
    ids, chances = kept(logits.astype(np.float32) / np.float32(0.7), 5, 0.95)
    counts = np.bincount([sampler.pick(logits) for _ in range(5000)], minlength=6)
    assert (
        len(ids) == 4 and counts[ids].sum() == 5000 and chisquare(counts[ids], 5000 * chances).pvalue > 0.01
    )


@pytest.mark.parametrize("temperature", [0, 1e-3, 1e-38, 1e-45])
def test_a_temperature_of_0_or_near_it_is_the_likeliest_token(temperature: float) -> None:
    assert (
        Sampler(Sampling(temperature=temperature, seed=0), []).pick(np.array([1, 20, 3, -4], np.float32)) == 1
    )


@pytest.mark.parametrize(("bad", "temperature"), [(np.nan, 0), (np.nan, 1), (np.inf, 1)])
def test_an_overflow_is_refused(bad: float, temperature: float) -> None:
    with pytest.raises(UserError, match="no numbers"):
        Sampler(Sampling(temperature=temperature, seed=0), []).pick(np.array([0, bad, 1, 2], np.float32))


@pytest.mark.parametrize(("name", "value"), [
    ("max_tokens", -1), ("max_tokens", 0), ("temperature", np.nan), ("temperature", -0.1), ("top_k", -1), ("top_p", 0.0),
    ("top_p", 1.1), ("top_p", np.nan), ("seed", -1), ("stop", ("a", "")), ("repetition_penalty", 0.0),
    ("repetition_penalty", np.inf), ("presence_penalty", np.inf), ("frequency_penalty", -np.inf),
])  # fmt: skip
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        Sampling(**{name: value})


def streamed(prompts: Prompts, before: str, tokens: list[int], stop: tuple[str, ...] = ()) -> str:
    stream = TextStream(prompts, prompts.encode(before), stop)
    return "".join(stream.push(token) for token in tokens if not stream.stopped) + stream.rest()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["a", LONG, "so 😀"]), st.lists(st.integers(0, tiny.WORDS - 1)), st.text())
def test_pieces_are_the_decoded_continuation(
    prompts: Prompts, before: str, tokens: list[int], text: str
) -> None:
    """Of whole texts, and of tokens at random: halves of characters and special tokens among them."""
    for chosen in (
        tokens,
        prompts.tokenizer.encode(text).ids,
        tokens + prompts.tokenizer.encode("😀 é").ids[:-1],
    ):
        assert streamed(prompts, before, chosen) == prompts.tokenizer.decode(chosen, skip_special_tokens=True)


def test_bytes_that_make_no_character_do_not_end_a_text(prompts: Prompts) -> None:
    """In Llama 2's form a line break is a byte too, and its decoder takes a run of bytes as a whole."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁": 257, "▁so": 258}
    words = Tokenizer(models_of_words.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    llama = Prompts(words, prompts.conventions)
    assert streamed(llama, "a", [*llama.encode("\n😀"), 258]) == "\n😀 so"
    made = streamed(llama, "a", [0x0A + 1, 0xE2 + 1, 258])
    assert made.startswith("\n") and made.endswith("\ufffd so")


def test_a_prompt_that_ends_in_a_replacement_character_is_not_said_again(prompts: Prompts) -> None:
    assert streamed(prompts, "What is \ufffd", prompts.encode(" for?")) == " for?"


@settings(max_examples=200, deadline=None)
@given(st.text("ae 😀é"), st.lists(st.text("ae 😀é", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_string_comes_out(prompts: Prompts, text: str, stop: list[str]) -> None:
    made = streamed(prompts, "so", prompts.tokenizer.encode(text).ids, tuple(stop))
    assert made == text.partition(stop[0])[0] or len(stop) > 1
    assert text.startswith(made) and not any(one in made for one in stop)
    assert made == text or any(text.startswith(one, len(made)) for one in stop)


@pytest.mark.parametrize(("says", "less", "asked", "text", "finish"), [
    ("an exception</s> more", 0, {"stop": ("ion!",)}, "an exception", "stop"),
    ("an exception</s>!", 0, {"ignore_eos": True}, "an exception!", "length"),
    ("an exception here", 0, {"stop": ("tion h",)}, "an excep", "stop"),
    ("an exception", 0, {"stop": ("ion!",)}, "an exception", "length"),
    ("ab😀", 1, {}, "ab\ufffd", "length"),
    ("ab\ufffd", 0, {"stop": ("b\ufffd",)}, "a", "stop"),
])  # fmt: skip
def test_a_text_ends_for_its_reason(
    says: str, less: int, asked: Any, text: str, finish: str, prompts: Prompts
) -> None:
    """Held back and released: what only began like a stop string, and half a character."""
    tokens, made = prompts.encode(says), list[Piece]()
    writer = Writer(prompts.encode("so"), Sampling(len(tokens) - less, **asked), prompts, made.append)
    taken = [writer.take(np.eye(tiny.WORDS)[token]) for token in tokens if not (made and made[-1].finish)]
    assert taken == [*tokens[: len(taken) - 1], None]
    assert "".join(piece.text for piece in made) == text and [p.finish for p in made if p.finish] == [finish]


HELLO = [
    {"role": role, "content": text}
    for role, text in (("user", 'Is "1 < 2"? 😀'), ("assistant", "yes"), ("user", " é "))
]
TEMPLATES = {
    "loops": """{%- for message in messages %}
        {%- if loop.index0 == 3 %}{% break %}{% elif message.role == "tool" %}{{ raise_exception("no tools") }}{% endif %}
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


@pytest.mark.parametrize("messages", [
    [], "hi", None, [None], [{}], [{"role": "user"}], [{"role": "king", "content": "x"}], [{"role": "user", "content": ["x"]}],
], ids=str)  # fmt: skip
def test_malformed_messages_are_refused(messages: Any, prompts: Prompts) -> None:
    with pytest.raises(UserError, match="messages"):
        changed(prompts, chat_template="{{ messages }}").render(messages)


@pytest.mark.parametrize(("template", "words"), [
    (None, "no chat template"), ("{{ messages", "unexpected end"), (TEMPLATES["loops"], "no tools"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"), ("{{ lipsum.__globals__['os'].popen('id').read() }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe"), ("{{ range(1000000000) }}", "too big"), ("{{ 1 // 0 }}", "by zero"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"), ("{{ 'x'.index('y') }}", "not found"),
])  # fmt: skip
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
