"""Vocabularies of sentencepiece's, trained on CPython's English: Llama 2's kind, and Gemma's."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece

from pipeline.models import texts

WORDS = 700
SPACE = "▁"
PIECES = {True: ["<tool>", "</tool>"], False: ["<tool>", "</tool>", "\n\n", SPACE * 2, SPACE * 3]}
"""Whether a space is put before a text, as in Llama 2 → user-defined pieces, which are never split."""


def train(folder: Path, kind: str = "bpe", prefix: bool = True, **changes: Any) -> Path:
    """Writes tokenizer.model and tokenizer_config.json into `folder`."""
    model = io.BytesIO()
    settings = {
        "vocab_size": WORDS, "model_type": kind, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "add_dummy_prefix": prefix, "character_coverage": 0.99,
        "user_defined_symbols": PIECES[prefix], "control_symbols": ["<|endoftext|>"],
        "split_digits": True, "allow_whitespace_only_pieces": True, "minloglevel": 2, **changes,
    }  # fmt: skip
    lines = texts.text()[:60_000].splitlines()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_prefix_space": prefix}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def processor(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """sentencepiece's own tokenizer."""
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def keys(folder: Path, prefix: bool = True) -> dict[str, Any]:
    """The keys of a GGUF's tokenizer, as `_create_vocab_sentencepiece` of conversion/base.py writes them."""
    words = processor(folder)
    pieces = [words.id_to_piece(i) for i in range(words.get_piece_size())]
    types = [
        2 if words.is_unknown(i) else 3 if words.is_control(i) else 6 if words.is_byte(i)
        else 4 if piece in PIECES[prefix] else 1
        for i, piece in enumerate(pieces)
    ]  # fmt: skip
    tokens = [
        piece.replace(SPACE, " ") if type_ == 4 else piece for piece, type_ in zip(pieces, types, strict=True)
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(words.get_score(i)) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.unknown_token_id": 0,
        **({} if prefix else {"tokenizer.ggml.add_space_prefix": False}),
    }
