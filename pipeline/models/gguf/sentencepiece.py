"""The sentencepiece vocabulary of a GGUF file: `tokenizer.ggml.model` is `llama`, with a score a token.

Source of every rule: llama.cpp's `src/llama-vocab.cpp`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.models.gguf import vocabulary
from pipeline.models.tokenizer.sentencepiece import bpe, merges, parts
from pipeline.types import UserError

log = logging.getLogger(__name__)


def refuse_odd(file: Path, fields: Mapping[str, Any]) -> None:
    """Refuses scores that BPE cannot have been trained with, before anything is made of them.

    Raises:
        UserError: a token has no score, or the scores are those of a unigram model or of none.
    """
    scores = _scores(file, fields)
    _, types = vocabulary.tokens(file, fields)
    normal = [s for s, type_ in zip(scores, types, strict=True) if type_ == vocabulary.NORMAL]
    advice = "take the safetensors checkpoint of this model, with its tokenizer.json"
    if any(not float(score).is_integer() for score in normal):
        raise UserError(
            f"{file}: tokenizer.ggml.scores has logarithms of probabilities, as a unigram model of "
            f"sentencepiece's; llama.cpp merges by them as if they were of BPE. {advice}"
        )
    if len(normal) > 1 and len(set(normal)) == 1:
        raise UserError(f"{file}: tokenizer.ggml.scores says {normal[0]:g} of every token; {advice}")
    doubles = sum(count - 1 for count in Counter(normal).values())
    if doubles:
        log.warning(
            "%s: %d tokens share their score with another; llama.cpp merges the first of two in the text, "
            "tokenizer.json the first in the vocabulary",
            file,
            doubles,
        )


def tokenizer(file: Path, fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer, from the vocabulary and its scores; without added tokens.

    A space is put before a text, and before what follows an added token, unless the file says otherwise.
    """
    tokens, _ = vocabulary.tokens(file, fields)
    unknown = vocabulary.token_id(file, fields, "unknown")
    pairs = merges(tokens, _scores(file, fields))
    words = bpe(tokens, pairs, None if unknown is None else tokens[unknown])
    has_prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    words.normalizer, words.decoder = parts(has_prefix)
    return words


def _scores(file: Path, fields: Mapping[str, Any]) -> list[float]:
    scores = fields.get("tokenizer.ggml.scores")
    if not (vocabulary.are(scores, float) or vocabulary.are(scores, int)):
        raise UserError(f"{file} has no list tokenizer.ggml.scores")
    if len(scores) != len(fields["tokenizer.ggml.tokens"]) or not all(map(math.isfinite, scores)):
        raise UserError(f"{file}: tokenizer.ggml.scores has not one number for each token")
    return scores
