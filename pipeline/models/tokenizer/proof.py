"""A tokenizer made of a tokenizer.model, held to sentencepiece itself on texts without special tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from pipeline.models.tokenizer.sentencepiece import SPACE
from pipeline.types import UserError

TEXTS = (
    "", " ", "a", " a b", "  two  spaces ", "   four   blanks    ", "The quick brown fox, 12345.67!",
    "naïve café\n", "\ttab\r\n\r\nCRLF", "def f(x):\n        return x\n", "日本語 テスト", "북한 שלום مرحبا",
    "🙂👩‍👩‍👧‍👦 x",
    "e\u0301 n\u0303 ﾊﾞ ｈａ ① ﬁ ½", "x\u00a0y\u2003z\u200b\u200d", "▁a▁▁b", "<0x0A><0xE2>", "\x01\x7f",
    "xx" * 70, "\n" * 20,
)  # fmt: skip
"""Texts that trouble tokenizers."""
_NORMAL, _USER_DEFINED = 1, 4
_PIECES = 2000
"""So many pieces of a vocabulary, evenly spaced, are read side by side: scores that are equal show there."""


def refuse_other_ids(file: Path, words: Tokenizer, model: Any, first_only: bool = False) -> None:
    """Compares the ids of odd texts, of the vocabulary's pieces and of its user-defined pieces.

    Args:
        file: the tokenizer.model, for messages.
        words: what was made of it, with its added tokens; a text that holds one is not compared.
        model: the ModelProto.
        first_only: a space at the beginning of a text stands for the one that sentencepiece puts before it.

    Raises:
        UserError: a text gets other ids than sentencepiece gives it.
    """
    own = SentencePieceProcessor(model_proto=model.SerializeToString())
    added = [token.content for token in words.get_added_tokens_decoder().values()]
    for text in [*TEXTS, *_pieces(model), *_between_user_defined(model)]:
        if any(token in text for token in added) or (first_only and text == " "):
            continue
        shown = text[1:] if first_only and _begins_with_space(text, model) else text
        ids, expected = words.encode(text, add_special_tokens=False).ids, own.encode(shown)
        if ids != expected:
            raise UserError(
                f"{file}: the tokenizer that is made of it reads {text!r:.60} as {_beginning(ids)}, and "
                f"sentencepiece as {_beginning(expected)}; copy the model's tokenizer.json beside it"
            )


def _begins_with_space(text: str, model: Any) -> bool:
    return bool(model.normalizer_spec.add_dummy_prefix) and text.startswith((" ", SPACE))


def _pieces(model: Any) -> Iterator[str]:
    normal = [piece.piece.replace(SPACE, " ") for piece in model.pieces if piece.type == _NORMAL]
    some = normal[:: max(1, len(normal) // _PIECES)]
    for start in range(0, len(some), 5):
        yield "".join(some[start : start + 5])


def _between_user_defined(model: Any) -> Iterator[str]:
    """User-defined pieces with what is a piece by its letters alone between them."""
    whole = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
    texts = [piece.replace(SPACE, " ") for piece in whole[:200]]
    for text, other in zip(texts, [*texts[1:], *texts[:1]], strict=True):
        yield from (text, f"a{text}b", f" {text}  {text}", f"{text}<0x0A>{text}of{text} of")
        for times in (1, 2, 3, 7):  # a piece that overlaps itself may be found in two places of a run
            run = text * times + text[:1]
            yield from (run, f"4{run}b", f"4{run}{other}", f"{other}{run} ")


def _beginning(ids: list[int]) -> str:
    return f"{ids[:8]}{'…' if len(ids) > 8 else ''}"
