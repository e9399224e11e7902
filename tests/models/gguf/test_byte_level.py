"""The byte-level kind of a vocabulary; test_tokenizer.py holds its ids to llama.cpp's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.models.gguf import byte_level
from pipeline.types import UserError

FILE = Path("m.gguf")


def fields(**changes: Any) -> dict[str, Any]:
    said = {"pre": "gpt-2", "tokens": ["a", "b", "ab", "Ġ", "Ġab"], "merges": ["a b", "Ġ ab"], **changes}
    return {f"tokenizer.ggml.{key}": value for key, value in said.items() if value is not None}


def test_merges_are_applied() -> None:
    words = byte_level.tokenizer(FILE, fields())
    assert words.encode("ab ab a").tokens == ["ab", "Ġab", "Ġ", "a"]
    assert words.decode(words.encode("ab ab a").ids) == "ab ab a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "nobodys"}, "pre-tokenizer 'nobodys' is not known"),
        ({"pre": None}, "pre-tokenizer None is not known"),
        ({"merges": None}, r"has no list tokenizer\.ggml\.merges"),
        ({"merges": ["a c"]}, "has 'a c', which is no pair of its tokens"),
        ({"merges": ["b a"]}, "has 'b a', which is no pair of its tokens"),
    ],
)
def test_what_is_odd_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        byte_level.refuse_odd(FILE, fields(**changes))


def test_llama_3s_kind_has_a_bos_by_default() -> None:
    assert byte_level.adds_bos(fields(pre="llama-bpe")) and not byte_level.adds_bos(fields())
