"""The bytes of single tokens, also of those that are no whole character."""

from __future__ import annotations

import re

from tokenizers import Tokenizer

from pipeline.runtime.generation.stops import special_tokens

_BYTE = re.compile("<0x([0-9A-F]{2})>")


class Spelling:
    """What the tokens of a vocabulary stand for.

    Args:
        tokenizer: its decoder says how its words spell bytes.

    Attributes:
        special: token id → text of the tokens that no text shows.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.special = tokenizer, special_tokens(tokenizer)
        decoder = b"" if tokenizer.decoder is None else tokenizer.decoder.__getstate__()
        self.is_byte_level, self.has_byte_words = b'"ByteLevel"' in decoder, b'"ByteFallback"' in decoder

    def raw(self, token: int) -> bytes | None:
        """The bytes of a token by itself; None where its word does not tell them."""
        word = self.tokenizer.id_to_token(token) or ""
        if self.is_byte_level and all(character in BYTES for character in word):
            return bytes(BYTES[character] for character in word)
        byte = _BYTE.fullmatch(word) if self.has_byte_words else None
        return bytes([int(byte[1], 16)]) if byte else None


def readable(content: bytes) -> str:
    r"""Bytes as text; those of no whole characters as the API writes them, `\xf0\x9f`."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in content)


def _byte_level() -> dict[str, int]:
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}


BYTES = _byte_level()
"""Character in the words of a byte-level vocabulary → byte: GPT-2's table (`bytes_to_unicode`, encoder.py of
openai/gpt-2), which tokenizers does not give out."""
