"""Prompts of tests of generation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers
from tokenizers import models as models_of_words

from pipeline.runtime.generation.prompts import Prompts

LONG = "The following sections describe the standard types that are built into the interpreter."


def changed(prompts: Prompts, **conventions: Any) -> Prompts:
    return Prompts(prompts.tokenizer, replace(prompts.conventions, **conventions))


def words_of_bytes(prompts: Prompts) -> Prompts:
    """With a vocabulary in Llama 2's form: byte b is the word b + 1, a space 257, " so" 258."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁": 257, "▁so": 258}
    words = Tokenizer(models_of_words.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return Prompts(words, prompts.conventions)
