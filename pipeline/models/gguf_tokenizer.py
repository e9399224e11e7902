"""The tokenizer inside a GGUF file, as its authors published it: byte-level BPE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from pipeline.types import UserError

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL, USER_DEFINED = 3, 4
"""llama.cpp's types of tokens that stand outside the vocabulary of words."""


def tokenizer(file: Path, fields: dict[str, Any]) -> Tokenizer:
    """The tokenizer, from the GGUF's vocabulary, its merges and the name of its pre-tokenizer.

    Args:
        file: for messages.
        fields: the GGUF's metadata.

    Raises:
        UserError: it is not byte-level BPE, or its pre-tokenizer is not known here.
    """
    if fields.get("tokenizer.ggml.model") != "gpt2":
        raise UserError(
            f"{file}: only byte-level BPE tokenizers are read from GGUF; "
            "take the safetensors checkpoint of this model"
        )
    name = fields.get("tokenizer.ggml.pre")
    splitter = _splitter(file, name)
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    words = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name == "llama-bpe"))
    words.pre_tokenizer = splitter
    words.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    special = [token for token, kind in kinds if kind in (CONTROL, USER_DEFINED)]
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    words.post_processor = _post_processor(fields, tokens)
    return words


def settings(fields: dict[str, Any], context: int) -> dict[str, Any]:
    """tokenizer_config.json: class, context, special tokens and the chat template."""
    template = fields.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **_special_tokens(fields),
        **({"chat_template": template} if template is not None else {}),
    }


def _splitter(file: Path, name: str | None) -> pre_tokenizers.PreTokenizer:
    """What splits a text into words, by llama.cpp's name of it."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    known: dict[str, list[pre_tokenizers.PreTokenizer]] = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "gpt-2": [gpt2],
        "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT % "1,3"), "isolated"), level],
        "qwen2": [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT % "1"), "isolated"), level],
    }
    if name not in known:
        raise UserError(
            f"{file}: pre-tokenizer {name!r} is not known here ({', '.join(known)} are); "
            "take the safetensors checkpoint"
        )
    parts = known[name]
    return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)


def _post_processor(fields: dict[str, Any], tokens: list[str]) -> processors.PostProcessor:
    """What puts a BOS before a text, where the file says so."""
    if not fields.get("tokenizer.ggml.add_bos_token"):
        return processors.ByteLevel(trim_offsets=False)
    bos = tokens[fields["tokenizer.ggml.bos_token_id"]]
    special = [(bos, tokens.index(bos))]
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=special
    )


def _special_tokens(fields: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … as tokenizer_config.json has them."""
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    ids = {short: fields.get(f"tokenizer.ggml.{name}_token_id") for name, short in names.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    return {f"{short}_token": tokens[i] for short, i in ids.items() if i is not None}
