"""What a tokenizer.json says of its kind; scores and types of sentencepiece's tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.models.gguf import vocabulary
from pipeline.models.tokenizer.sentencepiece import SPACE
from pipeline.types import UserError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BYTE_TYPE = 6
"""llama.cpp's type of a token that is a byte."""


def is_byte_level(described: Mapping[str, Any], folder: Path) -> bool:
    """Whether the tokens are bytes in GPT-2's letters; else they are sentencepiece's, by BPE.

    Args:
        described: tokenizer.json.
        folder: for messages.

    Raises:
        UserError: another kind of tokenizer.
    """
    model = described["model"]
    if model["type"] != "BPE":
        raise UserError(
            f"{folder}: the tokenizer is of the kind {model['type']}; byte-level BPE and "
            "sentencepiece's BPE are written as GGUF"
        )
    return not model.get("byte_fallback") and '"ByteLevel"' in _text(described.get("pre_tokenizer"))


def has_prefix(described: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    splitter = described.get("pre_tokenizer") or {}
    schemes = [part.get("prepend_scheme") for part in splitter.get("pretokenizers", [splitter])]
    return '"Prepend"' in _text(described.get("normalizer")) or any(
        one in ("first", "always") for one in schemes
    )


def type_of(token: str) -> int:
    """llama.cpp's type of one of sentencepiece's tokens."""
    return _BYTE_TYPE if _BYTE.fullmatch(token) else vocabulary.NORMAL


def scores(tokens: Sequence[str], described: Mapping[str, Any], folder: Path) -> list[float]:
    """A number for each token, of which the highest is merged first.

    Those of tokenizer.model where it is there; else the place of the first merge that makes a token.

    Args:
        tokens: of the vocabulary.
        described: tokenizer.json.
        folder: of the checkpoint.
    """
    file = folder / "tokenizer.model"
    if file.is_file() and all(map(store.is_installed, ("sentencepiece", "google.protobuf"))):
        from pipeline.models.tokenizer import model_file

        own = {piece.piece: float(piece.score) for piece in model_file.read(file).pieces}
        if all(score.is_integer() for score in own.values()):
            return [own.get(token, -1e6) for token in tokens]
    ranks: dict[str, int] = {}
    for place, merge in enumerate(described["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, place)
    first = len(described["model"]["merges"])
    return [-float(ranks.get(token, first + i)) for i, token in enumerate(tokens)]


def shown(token: str) -> str:
    """A token that is always taken whole, as llama.cpp has it in a text."""
    return token.replace(SPACE, " ")


def _text(part: object) -> str:
    import json

    return json.dumps(part)
