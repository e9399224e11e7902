"""The first Qwen's tokenizer: qwen.tiktoken, whose class is a program beside the weights and is not run.

Source: the published `tokenization_qwen.py`: tiktoken's byte-level BPE, which merges the pair of the lowest
rank, on the pieces that the pattern finds in the text's normal form C; special tokens follow the ranks.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pipeline.store import records
from pipeline.types import UserError

NAME, FILE = "QWenTokenizer", "qwen.tiktoken"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
END = "<|endoftext|>"
SPECIAL = (END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


def read(folder: Path) -> Tokenizer:
    """The tokenizer that the ranks in a folder make.

    Raises:
        UserError: a line of the file is no token and its rank, or a rank is missing.
    """
    ranks = _ranks(folder / FILE)
    letters = _letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [
        (spelled[pair[0]], spelled[pair[1]])
        for token in sorted(ranks, key=ranks.__getitem__)
        if len(pair := parts(token, ranks)) == 2
    ]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    # A piece that is a token is that token, whichever way its merges would go.
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    return tokenizer


def parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """What a token is merged from: two parts, or more where merges of lower ranks do not lead to it."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    while len(pieces) > 2:
        pairs = [pieces[i] + pieces[i + 1] for i in range(len(pieces) - 1)]
        best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        if ranks.get(pairs[best], len(ranks)) >= ranks[token]:
            break
        pieces[best : best + 2] = [pairs[best]]
    return pieces


def _ranks(file: Path) -> dict[bytes, int]:
    """Token → rank, of lines with a token in base64 and its rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(records.read_bytes(file).splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(f"{file}: line {number} is not a token in base64 and its rank") from None
    singles = {bytes([byte]) for byte in range(256)}
    if sorted(ranks.values()) != list(range(len(ranks))) or not singles <= set(ranks):
        raise UserError(f"{file}: its ranks are not 0, 1, 2, … with every byte among their tokens")
    return ranks


def _letters() -> list[str]:
    """Byte → the letter that stands for it in a byte-level vocabulary (GPT-2): itself where it is visible."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)]
