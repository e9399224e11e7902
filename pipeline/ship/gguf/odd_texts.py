"""Texts that trouble tokenizers: two that read these alike read others alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_PLAIN = (
    "", " ", "a", " a b", "  two  spaces ", "   four   blanks    ", "The quick brown fox, 12345.67!",
    "naïve café\n", "\ttab\r\n\r\nCRLF \n\n x\n", "def f(x):\n        return x\n", "日本語 テスト",
    "북한 שלום مرحبا", "🙂👩‍👩‍👧‍👦 x", "e\u0301 n\u0303 ﾊﾞ ｈａ ① ﬁ ½", "x\u00a0y\u2003z\u200b\u200d",
    "<0x0A><0xE2>", "\x01\x7f", "xx" * 70, "\n" * 20, "don't I'm we've SHE'LL they'd O'Brien's",
    "1 12 123 1234 12345 ١٢٣ ²³", "http://a.b/c?d=e&f#g user@host", "!!??..-- ((x)) [y]; {z}=>",
    "CamelCaseWord ABC", "Ünïcödé ÀÉÎ straße", "\u0e01\u0e33 \u0939\u093f\u0928\u094d\u0926\u0940",
    "a\n b\n  c\n\n\nd", "\ufeffbom", "x  \n  y\t\t z", "'s 's'S", "12,345.678e-9 $5 50%",
    "\u3000全角　空白", "___ a_b __init__", "#include <a.h>\n//x",
)  # fmt: skip


def plain(special: Sequence[str], first_only: bool) -> Iterator[str]:
    """Texts that hold none of the special tokens.

    Args:
        special: tokens.
        first_only: a space at the beginning stands for the one before a text; llama.cpp puts one there too.
    """
    texts = (text for text in _PLAIN if not any(token and token in text for token in special))
    return (text for text in texts if not (first_only and text.startswith(" ")))


def rare(special: Sequence[str]) -> Iterator[str]:
    """Texts with special tokens in them, a space at the beginning, or sentencepiece's own space."""
    yield from (" a b", "▁a▁▁b")
    for token in list(special)[:40]:
        yield from (f"{token}user\nhi{token}", f"a {token} b", f"hi{token}.", f"{token}  x {token}{token}\n")


def normal_form(described: Mapping[str, Any]) -> Callable[[str], str]:
    """What llama.cpp leaves out and the tokenizer does: NFC; `str` where it does nothing.

    Args:
        described: tokenizer.json.
    """
    normalizer = described.get("normalizer") or {}
    parts = normalizer.get("normalizers", [normalizer])
    if any(part.get("type") == "NFC" for part in parts):
        return lambda text: unicodedata.normalize("NFC", text)
    return str
