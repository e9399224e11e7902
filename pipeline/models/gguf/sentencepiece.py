"""The sentencepiece vocabulary of a GGUF file: `tokenizer.ggml.model` is `llama`, with a score a token.

sentencepiece's BPE merges the neighbours whose union has the highest score. A tokenizer.json has a list of
pairs instead. It is made as in published conversions: every way to cut a token into two tokens, by the
token's score (transformers' `convert_slow_tokenizer.generate_merges`).

Source of every other rule: llama.cpp's `src/llama-vocab.cpp`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from pipeline.models.gguf import vocabulary
from pipeline.models.tokenizer.classes import sentencepiece_parts
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
    words = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            merges(tokens, _scores(file, fields)),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    has_prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    words.normalizer, words.decoder = sentencepiece_parts(has_prefix)
    return words


def merges(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The pairs that are merged, the first first.

    Args:
        tokens: in the vocabulary's order.
        scores: of the tokens; the highest is merged first. Of the cuts of one token, that with the longest
            left part comes first.
    """
    known = set(tokens)
    pairs = [
        (-score, -cut, cut - len(token), token[:cut], token[cut:])
        for token, score in zip(tokens, scores, strict=True)
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    pairs.sort(key=lambda pair: pair[:3])
    return [(left, right) for *_, left, right in pairs]


def _scores(file: Path, fields: Mapping[str, Any]) -> list[float]:
    scores = fields.get("tokenizer.ggml.scores")
    if not (vocabulary.are(scores, float) or vocabulary.are(scores, int)):
        raise UserError(f"{file} has no list tokenizer.ggml.scores")
    if len(scores) != len(fields["tokenizer.ggml.tokens"]) or not all(map(math.isfinite, scores)):
        raise UserError(f"{file}: tokenizer.ggml.scores has not one number for each token")
    return scores
