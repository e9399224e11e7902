"""The byte-level BPE of a GGUF file: `tokenizer.ggml.model` is `gpt2`, with merges and a pre-tokenizer.

Source of every rule: llama.cpp's `src/llama-vocab.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from pipeline.models.gguf import vocabulary
from pipeline.types import UserError

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WITH_MERGES_IGNORED = {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"}
"""Pre-tokenizers of Llama 3's kind: a word of the vocabulary is taken whole, and a BOS is the default."""
_SAME = {
    "llama-bpe": {*_WITH_MERGES_IGNORED, "smaug-bpe", "dbrx"},
    "qwen2": {"qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"},
    "gpt-2": {"gpt-2", "phi-2", "olmo", "mpt", "mellum"},
    "smollm": {"smollm", "starcoder", "refact", "command-r", "minerva-7b", "exaone", "codeshell"},
}
"""What splits a text, by its first user → llama.cpp's names of it."""


def refuse_odd(file: Path, fields: Mapping[str, Any]) -> None:
    """Refuses what is not read here, before anything is made of it.

    Raises:
        UserError: its pre-tokenizer is not known here, or its merges are not of its tokens.
    """
    _splitter(file, fields.get("tokenizer.ggml.pre"))
    _merges(file, fields)


def tokenizer(file: Path, fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer, from the vocabulary, its merges and the name of its pre-tokenizer; no added tokens."""
    name = fields.get("tokenizer.ggml.pre")
    tokens, _ = vocabulary.tokens(file, fields)
    numbers, merges = {token: i for i, token in enumerate(tokens)}, _merges(file, fields)
    words = Tokenizer(models.BPE(numbers, merges, ignore_merges=name in _WITH_MERGES_IGNORED))
    words.pre_tokenizer = _splitter(file, name)
    words.decoder = decoders.ByteLevel()
    words.post_processor = processors.ByteLevel(trim_offsets=False)
    return words


def adds_bos(fields: Mapping[str, Any]) -> bool:
    """Whether a BOS stands before a text where no key says so."""
    return fields.get("tokenizer.ggml.pre") in _WITH_MERGES_IGNORED


def _merges(file: Path, fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs that are merged, each of two tokens that make a third."""
    merges, words = fields.get("tokenizer.ggml.merges"), set(fields["tokenizer.ggml.tokens"])
    if not vocabulary.are(merges, str):
        raise UserError(f"{file} has no list tokenizer.ggml.merges")
    pairs = []
    for merge in merges:
        blank = max(merge.find(" ", 1), 0)  # the first token may begin with a blank, not be empty
        left, right = merge[:blank], merge[blank + 1 :]
        if not {left, right, left + right} <= words:
            raise UserError(
                f"{file}: tokenizer.ggml.merges has {merge!r:.60}, which is no pair of its tokens"
            )
        pairs.append((left, right))
    return pairs


def _splitter(file: Path, name: object) -> pre_tokenizers.PreTokenizer:
    """What splits a text into words, by llama.cpp's name of it."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts: dict[str, list[pre_tokenizers.PreTokenizer]] = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "gpt-2": [gpt2],
        "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT % "1,3"), "isolated"), level],
        "qwen2": [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT % "1"), "isolated"), level],
    }
    for first, names in _SAME.items():
        if name in names:
            chosen = parts[first]
            return chosen[0] if len(chosen) == 1 else pre_tokenizers.Sequence(chosen)
    known = ", ".join(sorted(name for names in _SAME.values() for name in names))
    raise UserError(
        f"{file}: tokenizer.ggml.pre: pre-tokenizer {name!r:.40} is not known here ({known} are); "
        "take the safetensors checkpoint"
    )
