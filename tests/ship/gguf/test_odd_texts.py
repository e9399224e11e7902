"""Texts that trouble tokenizers."""

from __future__ import annotations

from pipeline.ship.gguf import odd_texts


def test_texts_hold_none_of_the_special_tokens_or_all() -> None:
    assert not any("<0x0A>" in text for text in odd_texts.plain(["<0x0A>"], first_only=False))
    assert not any(text.startswith(" ") for text in odd_texts.plain([], first_only=True))
    assert "a <s> b" in list(odd_texts.rare(["<s>"]))


def test_nfc_is_seen_within_a_sequence() -> None:
    described = {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}}
    assert odd_texts.normal_form(described)("e\u0301") == "é" and odd_texts.normal_form({}) is str
