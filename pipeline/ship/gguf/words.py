"""The tokenizer of a file that is made of a checkpoint's, and proved.

llama.cpp knows pre-tokenizers by name; every name that is known here is tried.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.models import tokenizer as tokenizers
from pipeline.models.config import Config
from pipeline.models.gguf import vocabulary
from pipeline.models.tokenizer import CheckpointTokenizer
from pipeline.ship.gguf import pieces, proof
from pipeline.types import UserError

Fields = dict[str, Any]
_PRE = ("llama-bpe", "qwen2", "smollm", "gpt-2")
"""Pre-tokenizers that differ, by llama.cpp's names."""
_UNUSED = 5
"""llama.cpp's type of a token that no text has."""
_PHI3_TOKENS = {"</s>", "<unk>", "<s>", "<|endoftext|>"}
_ENDS = ("eos", "eot", "eom")
"""llama.cpp's words for tokens that end something."""


@dataclass(frozen=True, slots=True)
class Words:
    """A tokenizer as a GGUF file has it.

    Attributes:
        fields: key → value.
        notes: what a person should know of it.
    """

    fields: Fields
    notes: tuple[str, ...] = ()


def of_checkpoint(folder: Path, config: Config, name: str) -> Words:
    """The tokenizer in a checkpoint's folder, and the name of the model, by which llama.cpp knows Phi-3's.

    Args:
        folder: of the checkpoint.
        config: of the model.
        name: of the model.

    Raises:
        UserError: it has none, or one that llama.cpp would read other ids with; names the first text.
    """
    words, rows = tokenizers.load(folder), config["vocab_size"]
    if beyond := words.beyond(rows):
        raise UserError(
            f"{folder}: the tokenizer has {len(beyond)} tokens beyond the {rows} rows of the embedding "
            f"({next(iter(beyond))!r:.60}), and llama.cpp needs one row for each"
        )
    described = json.loads(words.backend.to_str())
    is_bytes = pieces.is_byte_level(described, folder)
    own = None if is_bytes else pieces.read(folder)
    fields = {
        "general.name": _name(name, config, words),
        "tokenizer.ggml.model": vocabulary.BYTE_LEVEL if is_bytes else vocabulary.SENTENCEPIECE,
        **_tokens(words, described, rows, own),
        **_frame(words, folder),
        **_templates(words),
    }
    merges = described["model"]["merges"]
    if own is None:
        pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        candidates = [{**fields, "tokenizer.ggml.merges": pairs, "tokenizer.ggml.pre": pre} for pre in _PRE]
    else:
        scores = {
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": own.scored(fields["tokenizer.ggml.tokens"], merges),
            "tokenizer.ggml.add_space_prefix": pieces.has_prefix(described),
        }
        candidates = [fields | scores]
    chosen, notes = proof.chosen(folder, words, candidates, described)
    return Words({**chosen, **ends(folder, chosen)}, notes)


def _name(name: str, config: Config, words: CheckpointTokenizer) -> str:
    """The model's name. llama.cpp knows Phi-3's tokenizer by it, and then looks for tokens of Phi-3's."""
    has_tokens = set(words.backend.get_vocab(with_added_tokens=True)) >= _PHI3_TOKENS
    is_named = any(part in name.lower() for part in ("phi-3", "phi3"))
    if config["model_type"] == "phi3" and has_tokens:
        return name if is_named else f"Phi-3 {name}"
    return "model" if is_named and not has_tokens else name


def ends(folder: Path, fields: Fields) -> Fields:
    """The keys of tokens that end a text, where llama.cpp does not end it with one of them by itself.

    Args:
        folder: of the checkpoint.
        fields: of its tokenizer.

    Raises:
        UserError: there are more of them than llama.cpp has keys.
    """
    wanted = tokenizers.prompts(folder).conventions.ends
    missing = [end for end in wanted if end not in vocabulary.end_tokens(folder, fields)]
    free = [name for name in _ENDS if vocabulary.token_id(folder, fields, name) is None]
    if len(missing) > len(free):
        raise UserError(
            f"{folder}: texts end with the tokens {', '.join(map(str, wanted))}, and llama.cpp has three "
            "keys for such tokens"
        )
    return {f"tokenizer.ggml.{name}_token_id": end for name, end in zip(free, missing, strict=False)}


def _tokens(
    words: CheckpointTokenizer, described: Mapping[str, Any], rows: int, own: pieces.Pieces | None
) -> Fields:
    """The tokens and their types; rows of the embedding without a token have one that no text has."""
    ids = words.backend.get_vocab(with_added_tokens=True)
    tokens = {number: token for token, number in ids.items()}
    added = {token["id"]: token for token in described["added_tokens"]}
    unknown = described["model"].get("unk_token")
    names, types = [], []
    for number in range(rows):
        token = tokens.get(number)
        names.append(f"[PAD{number}]" if token is None else token)
        if token is None:
            types.append(_UNUSED)
        elif token == unknown and own:
            types.append(vocabulary.UNKNOWN)
        elif number in added:
            types.append(vocabulary.CONTROL if added[number]["special"] else vocabulary.USER_DEFINED)
        elif own:
            names[-1], kind = own.named(token)
            types.append(kind)
        else:
            types.append(vocabulary.NORMAL)
    fields: Fields = {"tokenizer.ggml.tokens": names, "tokenizer.ggml.token_type": types}
    for ours, theirs in (("unk_token", "unknown"), ("pad_token", "padding")):
        named = words.special.get(ours)
        if isinstance(named, str) and named in ids:
            fields[f"tokenizer.ggml.{theirs}_token_id"] = ids[named]
    return fields


def _frame(words: CheckpointTokenizer, folder: Path) -> Fields:
    """BOS and EOS, and whether they stand around every text."""
    bos, eos = words.bos_token_id, words.eos_token_id
    around = words.encode("")
    for before in ([], [bos]):
        for behind in ([], [eos]):
            if around == [*before, *behind] and None not in around:
                fields: Fields = {
                    "tokenizer.ggml.add_bos_token": bool(before),
                    "tokenizer.ggml.add_eos_token": bool(behind),
                }
                named = {"bos": bos, "eos": eos}
                return fields | {f"tokenizer.ggml.{k}_token_id": i for k, i in named.items() if i is not None}
    raise UserError(
        f"{folder}: the tokenizer puts the tokens {around} around a text; llama.cpp has a BOS and an "
        "EOS alone"
    )


def _templates(words: CheckpointTokenizer) -> Fields:
    template = words.chat_template
    if template is None:
        return {}
    named = template if isinstance(template, dict) else {"default": template}
    others = {name: text for name, text in named.items() if name != "default"}
    return {
        **({"tokenizer.chat_template": named["default"]} if "default" in named else {}),
        **{f"tokenizer.chat_template.{name}": text for name, text in others.items()},
        **({"tokenizer.chat_templates": sorted(others)} if others else {}),
    }
