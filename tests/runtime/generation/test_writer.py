"""How text comes out of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast, StopStringCriteria

from pipeline.models import tokenizer
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.generation.writer import Piece, TextStream, Writer
from tests import tiny, tokenizing
from tests.prompting import LONG, changed, words_of_bytes


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
    llama = words_of_bytes(prompts)
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


ENDED = "<|eot_id|>"


@pytest.fixture(scope="module")
def special(prompts: Prompts) -> Prompts:
    """The tokenizer with special tokens that do not end a text, one of them in DeepSeek's letters."""
    words = Tokenizer.from_str(prompts.tokenizer.to_str())
    words.add_special_tokens([ENDED, "<｜Assistant｜>", "<|im_end|>"])
    words.add_tokens(["[tool]"])
    return Prompts(words, prompts.conventions)


STOPS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "a special token": (f"an exception{ENDED} here", (ENDED,), "an exception"),
    "of letters of its own": ("an exception<｜Assistant｜> here", ("<｜Assistant｜>",), "an exception"),
    "at once": (f"{ENDED} here", (ENDED,), ""),
    "the second of two": (f"an <|im_end|>exception{ENDED}{ENDED}", (ENDED,), "an exception"),
    "text before it": (f"an exception{ENDED} here", (f"tion{ENDED}",), "an excep"),
    "text behind it": (f"an exception{ENDED} here", (f"{ENDED} her",), "an exception"),
    "text around it": (f"an exception{ENDED} here", (f"n{ENDED} h",), "an exceptio"),
    "two in a row": (f"so <|im_end|>{ENDED} here", (f"<|im_end|>{ENDED}",), "so "),
    "part of one": (f"an exception{ENDED} here", ("eot_id",), "an exception"),
    "several, the first that comes": (f"so {ENDED} a list", ("list", "<|im_end|>", ENDED), "so "),
    "several, the text first": (f"so a list {ENDED}", (ENDED, "list"), "so a "),
    "only the beginning came": (f"so <|im_end|> a {ENDED}", (f"<|im_end|>{ENDED}",), "so  a "),
    "text on both sides of one that is not shown": (f"an excep{ENDED}tion here", ("ption",), "an exce"),
    "a token that is shown": ("so [tool] here", ("[tool]",), "so "),
    "behind half a character": (f"so ◐{ENDED} here", (ENDED,), "so \ufffd"),
    "a half before one that does not stop": (f"so ◐{ENDED}◑ here", (" here",), "so 😀"),
    "none": (f"an exception{ENDED} here", ("there",), "an exception here"),
}
"""What is said, the stop strings, what comes out."""


def said(prompts: Prompts, text: str) -> list[int]:
    """The tokens of a text; ◐ and ◑ are the two halves of the bytes of 😀."""
    halves = prompts.tokenizer.encode("😀", add_special_tokens=False).ids
    known = {"◐": halves[:-1], "◑": halves[-1:]}
    tokens, plain = list[int](), ""
    for character in [*text, ""]:
        if character in known or not character:
            tokens += prompts.tokenizer.encode(plain, add_special_tokens=False).ids
            tokens += known.get(character, [])
            plain = ""
        else:
            plain += character
    return tokens


@pytest.mark.parametrize("case", STOPS)
def test_stop_strings_see_special_tokens(case: str, special: Prompts) -> None:
    text, stop, expected = STOPS[case]
    tokens, written = said(special, text), list[Piece]()
    writer = Writer([5], Sampling(len(tokens), stop=stop), special, written.append)
    width = special.tokenizer.get_vocab_size()
    for token in tokens:
        if writer.take(np.eye(width)[token]) is None:
            break
    assert "".join(piece.text for piece in written) == expected
    assert written[-1].finish == ("length" if case in ("none", "only the beginning came") else "stop")


@pytest.mark.parametrize("case", [case for case in STOPS if "half" not in case])
def test_a_text_stops_where_transformers_stops(case: str, special: Prompts) -> None:
    """StopStringCriteria sees special tokens, and stops with the token that completes the string."""
    text, stop, _ = STOPS[case]
    if "not shown" in case:  # of the text that comes out, which is ours (and OpenAI's) alone
        return
    fast = PreTrainedTokenizerFast(tokenizer_object=special.tokenizer)
    criteria = StopStringCriteria(fast, list(stop))
    tokens, written = said(special, text), list[Piece]()
    writer = Writer([5], Sampling(len(tokens) + 1, stop=stop), special, written.append)
    width = special.tokenizer.get_vocab_size()
    for count, token in enumerate(tokens, 1):
        ours = writer.take(np.eye(width)[token]) is None
        theirs = bool(criteria(torch.tensor([tokens[:count]]), torch.empty(0))[0])
        assert ours == theirs, (case, count)
        if ours:
            break


def test_the_end_token_completes_a_stop_string(special: Prompts) -> None:
    """The token that ends a text is no part of it, be it special or not; a stop string may span it."""
    words = special.tokenizer
    for end, stop, text in (
        ("</s>", "tion</s>", "an excep"),
        ("[tool]", "tion[tool]", "an excep"),
        ("</s>", "more", "an exception"),
        ("[tool]", "more", "an exception"),
    ):
        written, ending = list[Piece](), changed(special, ends=(words.token_to_id(end),))
        tokens = said(special, f"an exception{end} more")
        writer = Writer([5], Sampling(20, stop=(stop,)), ending, written.append)
        for token in tokens:
            if writer.take(np.eye(words.get_vocab_size())[token]) is None:
                break
        assert "".join(piece.text for piece in written) == text, (end, stop)
        assert written[-1].finish == "stop" and written[-1].token == words.token_to_id(end)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["an ", "exception", ENDED, "<|im_end|>", "e", " here"]), max_size=8),
    st.lists(st.sampled_from([ENDED, "e" + ENDED, "exc", ENDED + "<", "e e", "nh"]), min_size=1, max_size=3),
)
def test_nothing_of_a_stop_string_comes_out_with_special_tokens(
    special: Prompts, parts: list[str], stop: list[str]
) -> None:
    text = "".join(parts)
    written = streamed(special, "so", said(special, text), tuple(stop))
    shown = text.replace(ENDED, "").replace("<|im_end|>", "")
    assert shown.startswith(written) and not any(one in written for one in stop)
    assert written == shown or any(one in text or one in shown for one in stop)


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


@pytest.mark.parametrize("kind", tokenizing.KINDS)
def test_a_stream_is_transformers_text_of_the_whole(kind: str, tmp_path: Path) -> None:
    """Decoders that strip a leading space are not fooled by special tokens in the middle."""
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
    folder = tokenizing.put(tmp_path, kind, tokenizer_config=config)
    prompts, truth = tokenizer.prompts(folder), AutoTokenizer.from_pretrained(folder)
    before = truth.encode("a", add_special_tokens=False)
    begun = truth.decode(before)
    for text in filter(None, tokenizing.ODD):
        tokens = prompts.encode(text)
        whole = truth.decode(before + tokens, skip_special_tokens=True)
        assert begun + streamed(prompts, "a", tokens) == whole


def test_special_tokens_without_end_do_not_pile_up(prompts: Prompts) -> None:
    stream = TextStream(prompts, prompts.encode("a"), ())
    assert not any(stream.push(0) for _ in range(1000)) and len(stream.window) < 10
