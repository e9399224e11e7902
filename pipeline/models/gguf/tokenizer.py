"""The tokenizer inside a GGUF file, as llama.cpp runs it.

Source of every rule: llama.cpp's `src/llama-vocab.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from pipeline.models.gguf import byte_level, sentencepiece, vocabulary
from pipeline.types import UserError

_KINDS = {vocabulary.BYTE_LEVEL: byte_level, vocabulary.SENTENCEPIECE: sentencepiece}


def refuse_odd(file: Path, fields: Mapping[str, Any]) -> None:
    """Refuses a tokenizer that is not read here, before anything is made of it.

    Args:
        file: for messages.
        fields: the GGUF's metadata.

    Raises:
        UserError: it is neither byte-level BPE nor sentencepiece's, or it contradicts itself.
    """
    if vocabulary.kind(fields) not in _KINDS:
        raise UserError(
            f"{file}: tokenizer.ggml.model is {vocabulary.kind(fields)!r:.40}; only byte-level BPE (gpt2) "
            "and sentencepiece's BPE (llama) are read from GGUF; take the safetensors checkpoint"
        )
    vocabulary.tokens(file, fields)
    _KINDS[fields["tokenizer.ggml.model"]].refuse_odd(file, fields)


def tokenizer(file: Path, fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer.

    Args:
        file: for messages.
        fields: the GGUF's metadata, not refused.
    """
    words: Tokenizer = _KINDS[fields["tokenizer.ggml.model"]].tokenizer(file, fields)
    vocabulary.add_tokens(words, file, fields)
    if frame := _frame(file, fields):
        words.post_processor = frame
    return words


def settings(file: Path, fields: Mapping[str, Any], context: int) -> dict[str, Any]:
    """tokenizer_config.json: class, context, special tokens and the chat templates."""
    template, named = fields.get("tokenizer.chat_template"), _named_templates(fields)
    if named:
        named = {**({"default": template} if template is not None else {}), **named}
        template = [{"name": name, "template": text} for name, text in named.items()]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **_special_tokens(file, fields),
        **({"chat_template": template} if template is not None else {}),
    }


def ids(file: Path, fields: Mapping[str, Any]) -> dict[str, int]:
    """bos_token_id, eos_token_id and pad_token_id of config.json."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    numbers = {f"{short}_token_id": vocabulary.token_id(file, fields, name) for short, name in names.items()}
    return {key: value for key, value in numbers.items() if value is not None}


def _frame(file: Path, fields: Mapping[str, Any]) -> processors.PostProcessor | None:
    """What puts a BOS before a text and an EOS after it, where the file says so, or by default."""
    adds_bos = vocabulary.kind(fields) == vocabulary.SENTENCEPIECE or byte_level.adds_bos(fields)
    wanted = {
        "bos": fields.get("tokenizer.ggml.add_bos_token", adds_bos),
        "eos": fields.get("tokenizer.ggml.add_eos_token", False),
    }
    ends: dict[str, int] = {}
    for name in (name for name, is_added in wanted.items() if is_added):
        number = vocabulary.token_id(file, fields, name)
        if number is None:
            raise UserError(
                f"{file}: tokenizer.ggml.add_{name}_token is true, and there is no {name}_token_id"
            )
        ends[name] = number
    if not ends:
        return None
    tokens, _ = vocabulary.tokens(file, fields)
    before, after = ([tokens[ends[name]]] if name in ends else [] for name in ("bos", "eos"))
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{t}:1" for t in after)],
        special_tokens=[(tokens[number], number) for number in ends.values()],
    )


def _special_tokens(file: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … as tokenizer_config.json has them."""
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    numbers = {short: vocabulary.token_id(file, fields, name) for name, short in names.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    return {f"{short}_token": tokens[i] for short, i in numbers.items() if i is not None}


def _named_templates(fields: Mapping[str, Any]) -> dict[str, str]:
    """`tokenizer.chat_template.NAME`: further templates, for tools say."""
    prefix = "tokenizer.chat_template."
    return {key.removeprefix(prefix): text for key, text in fields.items() if key.startswith(prefix)}
