"""What a tokenizer.json says of its kind; scores and types of sentencepiece's tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.models.gguf import vocabulary
from pipeline.models.tokenizer.sentencepiece import SPACE
from pipeline.types import UserError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BYTE_TYPE = 6
"""llama.cpp's type of a token that is a byte."""
_LAST = -1e6
"""Score of a token that the model has not."""


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


def is_first_only(described: Mapping[str, Any]) -> bool:
    """Whether a space is put only before a text that does not begin with one (`legacy` of Llama is false)."""
    return has_prefix(described) and '"Metaspace"' in _text(described.get("pre_tokenizer"))


@dataclass(frozen=True, slots=True)
class Pieces:
    """sentencepiece's own model, as far as it is there.

    Attributes:
        scores: of its pieces.
        whole: pieces that are never split.
    """

    scores: Mapping[str, float]
    whole: frozenset[str]

    def named(self, token: str) -> tuple[str, int]:
        """(a token as llama.cpp has it, its type), of one that is not added."""
        if token in self.whole:
            return token.replace(SPACE, " "), vocabulary.USER_DEFINED
        return token, _BYTE_TYPE if _BYTE.fullmatch(token) else vocabulary.NORMAL

    def scored(self, tokens: Sequence[str], merges: Sequence[Any]) -> list[float]:
        """A number for each token, of which the highest is merged first.

        Without a model it is the place of the first merge that makes a token.

        Args:
            tokens: of the vocabulary.
            merges: of tokenizer.json.
        """
        if self.scores:
            return [self.scores.get(token, _LAST - i) for i, token in enumerate(tokens)]
        ranks: dict[str, int] = {}
        for place, merge in enumerate(merges):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            ranks.setdefault(left + right, place)
        return [-float(ranks.get(token, len(merges) + i)) for i, token in enumerate(tokens)]


def read(folder: Path) -> Pieces:
    """What tokenizer.model says, where it is there and is one of BPE.

    Args:
        folder: of the checkpoint.
    """
    file = folder / "tokenizer.model"
    if file.is_file() and all(map(store.is_installed, ("sentencepiece", "google.protobuf"))):
        from pipeline.models.tokenizer import model_file

        model = model_file.read(file)
        if model.trainer_spec.model_type == model_file.BPE:
            scores = {piece.piece: float(piece.score) for piece in model.pieces}
            whole = [piece.piece for piece in model.pieces if piece.type == model_file.USER_DEFINED]
            return Pieces(scores, frozenset(whole))
    return Pieces({}, frozenset())


def _text(part: object) -> str:
    return json.dumps(part)
