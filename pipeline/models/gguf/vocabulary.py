"""The vocabulary of a GGUF file: tokens, their types and scores, and which of them mean something.

Source of every rule: llama.cpp's `src/llama-vocab.cpp`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from tokenizers import AddedToken, Tokenizer

from pipeline.types import UserError

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
"""llama.cpp's names of the kinds of tokenizer that are read: byte-level BPE, and sentencepiece's BPE."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""llama.cpp's types of tokens; a text is searched for all but the first before it is split."""
_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "</s>", "<EOT>",
    "<|end_of_text|>", "<end_of_utterance>", "[EOT]", "[EOS]", "<｜end▁of▁sentence｜>",
}  # fmt: skip
"""Tokens that end a text whatever their type and without a key that says so."""
_DEFAULT_IDS = {SENTENCEPIECE: {"bos": 1, "eos": 2, "unknown": 0}}
"""Of a kind of tokenizer: the special tokens without a key, where the vocabulary has so many tokens."""
_STRIP_BEHIND = ("phi-3", "phi3")
"""Parts of `general.name` of models whose added tokens take the spaces behind them."""
_KEEP_BEHIND = {"<unk>", "<s>", "<|endoftext|>"}


def kind(fields: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of the kind of tokenizer."""
    return fields.get("tokenizer.ggml.model")


def tokens(file: Path, fields: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """(tokens, their types); an empty token has the name that llama.cpp gives it.

    Raises:
        UserError: there is no list, a token is there twice, or one has no type.
    """
    texts = fields.get("tokenizer.ggml.tokens")
    if not are(texts, str):
        raise UserError(f"{file} has no list tokenizer.ggml.tokens")
    texts = [token or f"[EMPTY_{i}]" for i, token in enumerate(texts)]
    if len(set(texts)) != len(texts):
        double = Counter(texts).most_common(1)[0][0]
        raise UserError(f"{file}: tokenizer.ggml.tokens has {double!r:.60} twice")
    types = fields.get("tokenizer.ggml.token_type", [NORMAL] * len(texts))
    if not are(types, int) or len(types) != len(texts):
        raise UserError(f"{file}: tokenizer.ggml.token_type has not one type for each token")
    return texts, types


def token_id(file: Path, fields: Mapping[str, Any], name: str) -> int | None:
    """The id of a special token, by llama.cpp's word for it.

    Raises:
        UserError: it is none of the vocabulary's.
    """
    key, words = f"tokenizer.ggml.{name}_token_id", len(fields["tokenizer.ggml.tokens"])
    value = fields.get(key)
    if value is None:
        usual: int | None = _DEFAULT_IDS.get(kind(fields) or "", {}).get(name)
        return usual if usual is not None and usual < words else None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < words:
        raise UserError(f"{file}: {key} is {value!r:.40}, and there are {words} tokens")
    return value


def end_tokens(file: Path, fields: Mapping[str, Any]) -> list[int]:
    """Tokens that end a text: EOS first, of a turn, of a message, and what llama.cpp knows by its text."""
    keyed = [token_id(file, fields, name) for name in ("eos", "eot", "eom")]
    known = [i for i, token in enumerate(fields["tokenizer.ggml.tokens"]) if token in _ENDS]
    return list(dict.fromkeys(i for i in (*keyed, *known) if i is not None))


def add_tokens(words: Tokenizer, file: Path, fields: Mapping[str, Any]) -> None:
    """Tells a tokenizer which tokens a text is searched for: special ones, and those that decode shows."""
    name = str(fields.get("general.name", "")).lower()
    strips = any(part in name for part in _STRIP_BEHIND)
    special: list[AddedToken] = []
    shown: list[AddedToken] = []
    for token, type_ in zip(*tokens(file, fields), strict=True):
        is_special = type_ in (UNKNOWN, CONTROL) or token in _ENDS
        if is_special or type_ == USER_DEFINED:
            behind = strips and token not in _KEEP_BEHIND
            added = AddedToken(token, special=is_special, normalized=False, rstrip=behind)
            (special if is_special else shown).append(added)
    words.add_special_tokens(special)
    words.add_tokens(shown)


def are(values: Any, kind: type) -> TypeGuard[list[Any]]:
    """Whether these are a list of one type."""
    return isinstance(values, list) and all(type(value) is kind for value in values)
