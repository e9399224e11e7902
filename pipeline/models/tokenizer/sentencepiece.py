"""sentencepiece's BPE as a tokenizer.json has it, from tokens and scores: of a GGUF or of a tokenizer.model.

sentencepiece merges the neighbours whose union has the highest score. A tokenizer.json has a list of pairs
instead. It is made as in published conversions: every way to cut a token into two tokens, by the token's
score (transformers' `convert_slow_tokenizer.generate_merges`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

SPACE = "▁"
"""What stands for a space in a vocabulary of sentencepiece's."""


def bpe(
    tokens: Sequence[str],
    pairs: list[tuple[str, str]],
    unknown: str | None,
    byte_fallback: bool = True,
) -> Tokenizer:
    """A tokenizer without normalizer, decoder and added tokens.

    Args:
        tokens: in the vocabulary's order.
        pairs: what `merges` gives.
        unknown: the token of what the vocabulary lacks.
        byte_fallback: what the vocabulary lacks is read as bytes.
    """
    model = models.BPE(
        {token: i for i, token in enumerate(tokens)},
        pairs,
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=byte_fallback,
    )
    return Tokenizer(model)


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


def parts(add_prefix_space: bool) -> tuple[normalizers.Normalizer, decoders.Decoder]:
    """What makes a text of sentencepiece's pieces, with a space before it or not, and the text of pieces."""
    prepend = [normalizers.Prepend(SPACE)] if add_prefix_space else []
    strip = [decoders.Strip(" ", 1, 0)] if add_prefix_space else []
    return (
        normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)]),
        decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]),
    )
