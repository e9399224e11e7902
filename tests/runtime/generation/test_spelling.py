"""The bytes that single tokens stand for."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers import models as models_of_words

from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.spelling import Spelling, readable


def test_every_byte_of_a_byte_level_vocabulary(prompts: Prompts) -> None:
    """What the tokens of a text spell is that text, whatever its characters."""
    spelling, text = Spelling(prompts.tokenizer), "".join(map(chr, range(1, 0x250))) + "😀\ufffd"
    ids = prompts.tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(spelling.raw(one) or b"" for one in ids) == text.encode()
    assert readable(b"ab") == "ab" and readable(b"\xf0\x9f") == "\\xf0\\x9f"


@pytest.mark.parametrize(
    ("content", "text"), [(b"ab", "ab"), ("é".encode(), "é"), (b"\xf0\x9f", "\\xf0\\x9f"), (b"", "")]
)
def test_halves_of_characters_are_spelled_out(content: bytes, text: str) -> None:
    assert readable(content) == text


def test_a_vocabulary_without_bytes_tells_none() -> None:
    words = Tokenizer(models_of_words.WordLevel({"<unk>": 0, "<0x41>": 1}, unk_token="<unk>"))
    assert Spelling(words).raw(1) is None
    words.decoder = decoders.ByteFallback()
    assert Spelling(words).raw(1) == b"A" and Spelling(words).raw(0) is None
