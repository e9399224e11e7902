"""What a vocabulary's keys mean, whatever splits a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from pipeline.models.gguf import vocabulary
from pipeline.types import UserError

FILE = Path("m.gguf")
WORDS = ["<unk>", "<s>", "</s>", "a", "<tool>", "<end_of_turn>", ""]


def fields(**changes: Any) -> dict[str, Any]:
    said = {"model": "llama", "tokens": WORDS, "token_type": [2, 3, 3, 1, 4, 1, 5], **changes}
    return {f"tokenizer.ggml.{key}": value for key, value in said.items() if value is not None}


def test_tokens_and_their_types() -> None:
    tokens, types = vocabulary.tokens(FILE, fields())
    assert tokens == [*WORDS[:-1], "[EMPTY_6]"] and types[4] == vocabulary.USER_DEFINED
    assert vocabulary.tokens(FILE, fields(token_type=None))[1] == [vocabulary.NORMAL] * 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "has no list tokenizer.ggml.tokens"),
        ({"tokens": [1, 2]}, "has no list tokenizer.ggml.tokens"),
        ({"tokens": ["a", "a"], "token_type": None}, "has 'a' twice"),
        ({"token_type": [1]}, "has not one type for each token"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vocabulary.tokens(FILE, fields(**changes))


def test_special_tokens_have_llama_cpps_defaults() -> None:
    usual = {name: vocabulary.token_id(FILE, fields(), name) for name in ("unknown", "bos", "eos", "padding")}
    assert usual == {"unknown": 0, "bos": 1, "eos": 2, "padding": None}
    assert vocabulary.token_id(FILE, fields(bos_token_id=3), "bos") == 3
    assert vocabulary.token_id(FILE, fields(model="gpt2"), "bos") is None
    assert vocabulary.token_id(FILE, fields(tokens=["a"]), "bos") is None
    for value in (7, -1, "1", True):
        with pytest.raises(UserError, match=r"tokenizer\.ggml\.bos_token_id is .*, and there are 7 tokens"):
            vocabulary.token_id(FILE, fields(bos_token_id=value), "bos")


def test_what_ends_a_text() -> None:
    assert vocabulary.end_tokens(FILE, fields(eot_token_id=4)) == [2, 4, 5]


def test_added_tokens() -> None:
    words = Tokenizer(
        models.BPE({token: i for i, token in enumerate(vocabulary.tokens(FILE, fields())[0])}, [])
    )
    vocabulary.add_tokens(words, FILE, fields())
    added = {token.content: token.special for token in words.get_added_tokens_decoder().values()}
    assert added == {"<unk>": True, "<s>": True, "</s>": True, "<tool>": False, "<end_of_turn>": True}
    assert words.encode("a<tool>a").ids == [3, 4, 3]
