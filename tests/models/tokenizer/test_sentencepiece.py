"""Merges of scores, and what stands around them."""

from __future__ import annotations

from tokenizers import Tokenizer

from pipeline.models.tokenizer import sentencepiece

TOKENS = ["a", "aa", "aaa", "aaaa", "b", "ab", "aab", "ba", "bab", "▁", "▁a", "<unk>"]
SCORES = [-10.0, -2.0, -1.0, -0.0, -11.0, -1.0, -3.0, -4.0, -5.0, -12.0, -6.0, 0.0]


def words() -> Tokenizer:
    return sentencepiece.bpe(TOKENS, sentencepiece.merges(TOKENS, SCORES), "<unk>", byte_fallback=False)


def test_merges_are_those_of_transformers() -> None:
    from transformers.convert_slow_tokenizer import generate_merges

    pairs = list(zip(TOKENS, SCORES, strict=True))
    expected = generate_merges({token: i for i, token in enumerate(TOKENS)}, pairs)
    assert sentencepiece.merges(TOKENS, SCORES) == expected and len(expected) > 10


def test_the_highest_score_is_merged_first_and_unknown_letters_are_one_token() -> None:
    assert words().encode("abab").tokens == ["ab", "ab"]
    assert words().encode("baa").tokens == ["b", "aa"]
    assert words().encode("axyb").tokens == ["a", "<unk>", "b"]


def test_a_space_before_a_text_is_put_there_and_taken_away() -> None:
    for prefix, normal in ((True, "▁▁a▁b"), (False, "▁a▁b")):
        normalizer, decoder = sentencepiece.parts(prefix)
        assert normalizer.normalize_str(" a b") == normal
        assert decoder.decode(list(normal)) == " a b"
