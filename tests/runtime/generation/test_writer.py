"""How text comes out of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers import models as models_of_words

from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.generation.writer import Piece, TextStream, Writer
from tests import tiny
from tests.prompting import LONG


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
    written = streamed(llama, "a", [0x0A + 1, 0xE2 + 1, 258])
    assert written.startswith("\n") and written.endswith("\ufffd so")


def test_a_prompt_that_ends_in_a_replacement_character_is_not_said_again(prompts: Prompts) -> None:
    assert streamed(prompts, "What is \ufffd", prompts.encode(" for?")) == " for?"


@settings(max_examples=200, deadline=None)
@given(st.text("ae 😀é"), st.lists(st.text("ae 😀é", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_string_comes_out(prompts: Prompts, text: str, stop: list[str]) -> None:
    written = streamed(prompts, "so", prompts.tokenizer.encode(text).ids, tuple(stop))
    assert written == text.partition(stop[0])[0] or len(stop) > 1
    assert text.startswith(written) and not any(one in written for one in stop)
    assert written == text or any(text.startswith(one, len(written)) for one in stop)


@pytest.mark.parametrize(("says", "less", "options", "text", "finish"), [
    ("an exception</s> more", 0, {"stop": ("ion!",)}, "an exception", "stop"),
    ("an exception</s>!", 0, {"ignore_eos": True}, "an exception!", "length"),
    ("an exception here", 0, {"stop": ("tion h",)}, "an excep", "stop"),
    ("an exception", 0, {"stop": ("ion!",)}, "an exception", "length"),
    ("ab😀", 1, {}, "ab\ufffd", "length"),
    ("ab\ufffd", 0, {"stop": ("b\ufffd",)}, "a", "stop"),
])  # fmt: skip
def test_a_text_ends_for_its_reason(
    says: str, less: int, options: Any, text: str, finish: str, prompts: Prompts
) -> None:
    """Held back and released: what only began like a stop string, and half a character."""
    tokens, written = prompts.encode(says), list[Piece]()
    writer = Writer(prompts.encode("so"), Sampling(len(tokens) - less, **options), prompts, written.append)
    picked = [
        writer.take(np.eye(tiny.WORDS)[token]) for token in tokens if not (written and written[-1].finish)
    ]
    assert picked == [*tokens[: len(picked) - 1], None]
    assert "".join(piece.text for piece in written) == text and [p.finish for p in written if p.finish] == [
        finish
    ]
