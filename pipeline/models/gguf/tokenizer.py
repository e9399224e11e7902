"""The tokenizer inside a GGUF file, as llama.cpp runs it: byte-level BPE.

Source of every rule: llama.cpp's `src/llama-vocab.cpp`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

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
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""llama.cpp's types of tokens that a text is searched for before it is split."""
_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "</s>", "<EOT>",
    "<|end_of_text|>", "<end_of_utterance>", "[EOT]", "[EOS]", "<｜end▁of▁sentence｜>",
}  # fmt: skip
"""Tokens that end a text whatever their type and without a key that says so."""


def refuse_odd(file: Path, fields: Mapping[str, Any]) -> None:
    """Refuses a tokenizer that is not read here, before anything is made of it.

    Args:
        file: for messages.
        fields: the GGUF's metadata.

    Raises:
        UserError: it is not byte-level BPE, its pre-tokenizer is not known here, or it contradicts itself.
    """
    if fields.get("tokenizer.ggml.model") != "gpt2":
        raise UserError(
            f"{file}: only byte-level BPE tokenizers are read from GGUF; "
            "take the safetensors checkpoint of this model"
        )
    _splitter(file, fields.get("tokenizer.ggml.pre"))
    _vocabulary(file, fields)
    _merges(file, fields)


def tokenizer(file: Path, fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer, from the GGUF's vocabulary, its merges and the name of its pre-tokenizer.

    Args:
        file: for messages.
        fields: the GGUF's metadata, not refused.
    """
    name = fields.get("tokenizer.ggml.pre")
    tokens, kinds = _vocabulary(file, fields)
    vocabulary, merges = {token: i for i, token in enumerate(tokens)}, _merges(file, fields)
    words = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name in _WITH_MERGES_IGNORED))
    words.pre_tokenizer = _splitter(file, name)
    words.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (UNKNOWN, CONTROL) or token in _ENDS:
            words.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED:  # found in a text like a special one, and shown by decode
            words.add_tokens([AddedToken(token, special=False, normalized=False)])
    words.post_processor = _post_processor(file, fields, tokens)
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
    numbers = {f"{short}_token_id": token_id(file, fields, name) for short, name in names.items()}
    return {key: value for key, value in numbers.items() if value is not None}


def end_tokens(file: Path, fields: Mapping[str, Any]) -> list[int]:
    """Tokens that end a text: EOS first, of a turn, of a message, and what llama.cpp knows by its text."""
    keyed = [token_id(file, fields, name) for name in ("eos", "eot", "eom")]
    known = [i for i, token in enumerate(fields["tokenizer.ggml.tokens"]) if token in _ENDS]
    return list(dict.fromkeys(i for i in (*keyed, *known) if i is not None))


def token_id(file: Path, fields: Mapping[str, Any], name: str) -> int | None:
    """The id of a special token, by llama.cpp's word for it.

    Raises:
        UserError: it is none of the vocabulary's.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    value, words = fields.get(key), len(fields["tokenizer.ggml.tokens"])
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < words:
        raise UserError(f"{file}: {key} is {value!r:.40}, and there are {words} tokens")
    return value


def _vocabulary(file: Path, fields: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """(tokens, their types); an empty token has the name that llama.cpp gives it."""
    tokens = fields.get("tokenizer.ggml.tokens")
    if not _are(tokens, str):
        raise UserError(f"{file} has no list tokenizer.ggml.tokens")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    if len(set(tokens)) != len(tokens):
        double = Counter(tokens).most_common(1)[0][0]
        raise UserError(f"{file}: tokenizer.ggml.tokens has {double!r:.60} twice")
    kinds = fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if not _are(kinds, int) or len(kinds) != len(tokens):
        raise UserError(f"{file}: tokenizer.ggml.token_type has not one type for each token")
    return tokens, kinds


def _merges(file: Path, fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs that are merged, each of two tokens that make a third."""
    merges, words = fields.get("tokenizer.ggml.merges"), set(fields["tokenizer.ggml.tokens"])
    if not _are(merges, str):
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


def _are(values: Any, kind: type) -> TypeGuard[list[Any]]:
    """Whether these are a list of one type."""
    return isinstance(values, list) and all(type(value) is kind for value in values)


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


def _post_processor(file: Path, fields: Mapping[str, Any], tokens: list[str]) -> processors.PostProcessor:
    """What puts a BOS before a text and an EOS after it, where the file says so, or by default."""
    adds_bos = fields.get("tokenizer.ggml.pre") in _WITH_MERGES_IGNORED
    wanted = {
        "bos": fields.get("tokenizer.ggml.add_bos_token", adds_bos),
        "eos": fields.get("tokenizer.ggml.add_eos_token", False),
    }
    ends: dict[str, int] = {}
    for name in (name for name, is_added in wanted.items() if is_added):
        number = token_id(file, fields, name)
        if number is None:
            raise UserError(
                f"{file}: tokenizer.ggml.add_{name}_token is true, and there is no {name}_token_id"
            )
        ends[name] = number
    if not ends:
        return processors.ByteLevel(trim_offsets=False)
    before, after = ([tokens[ends[name]]] if name in ends else [] for name in ("bos", "eos"))
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{t}:1" for t in after)],
        special_tokens=[(tokens[number], number) for number in ends.values()],
    )


def _special_tokens(file: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … as tokenizer_config.json has them."""
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    numbers = {short: token_id(file, fields, name) for name, short in names.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    return {f"{short}_token": tokens[i] for short, i in numbers.items() if i is not None}


def _named_templates(fields: Mapping[str, Any]) -> dict[str, str]:
    """`tokenizer.chat_template.NAME`: further templates, for tools say."""
    prefix = "tokenizer.chat_template."
    return {key.removeprefix(prefix): text for key, text in fields.items() if key.startswith(prefix)}
