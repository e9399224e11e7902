"""qwen.tiktoken: ids are those of tiktoken's algorithm, written out here; no program beside it is run."""

from __future__ import annotations

import base64
import itertools
import json
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models import texts, tokenizer
from pipeline.models.checkpoint_files import files_of
from pipeline.models.tokenizer import conversion, qwen
from pipeline.types import UserError
from tests import tiny
from tests.tokenizing import ODD

WORDS = 400


def trained() -> dict[bytes, int]:
    """Token → rank of a byte-level BPE: the commonest pair is merged, again and again (Sennrich 2016)."""
    pieces = [
        [bytes([b]) for b in piece.encode()] for piece in regex.findall(qwen.PATTERN, texts.text()[:8000])
    ]
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < WORDS:
        counts: dict[tuple[bytes, bytes], int] = {}
        for piece in pieces:
            for pair in itertools.pairwise(piece):
                counts[pair] = counts.get(pair, 0) + 1
        left, right = max(counts, key=lambda pair: (counts[pair], pair))
        ranks.setdefault(left + right, len(ranks))
        pieces = [merged(piece, left + right) for piece in pieces]
    return ranks


def merged(piece: list[bytes], token: bytes) -> list[bytes]:
    """The piece with neighbours that make the token joined, from the left."""
    joined: list[bytes] = []
    for part in piece:
        if joined and joined[-1] + part == token:
            joined[-1] = token
        else:
            joined.append(part)
    return joined


def ids_of(text: str, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's: the token that a piece is, or its leftmost pair of the lowest rank merged first."""
    ids: list[int] = []
    for part in regex.split(
        f"({'|'.join(map(regex.escape, qwen.SPECIAL))})", unicodedata.normalize("NFC", text)
    ):
        if part in qwen.SPECIAL:
            ids.append(len(ranks) + qwen.SPECIAL.index(part))
            continue
        for piece in regex.findall(qwen.PATTERN, part):
            tokens = [bytes([byte]) for byte in piece.encode()]
            while piece.encode() not in ranks:
                pairs = [ranks.get(a + b, WORDS) for a, b in itertools.pairwise(tokens)]
                if not pairs or min(pairs) == WORDS:
                    break
                i = pairs.index(min(pairs))
                tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
            ids += [ranks[piece.encode()]] if piece.encode() in ranks else [ranks[token] for token in tokens]
    return ids


RANKS = trained()
LAST = max(RANKS, key=RANKS.__getitem__)


def checkpoint(workdir: Path, ranks: dict[bytes, int] = RANKS) -> Path:
    """A checkpoint of the first Qwen as it is published, its class a program beside the weights."""
    folder = tiny.checkpoint(workdir / "graphs" / "m", "qwen", vocab_size=WORDS + len(qwen.SPECIAL))
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (folder / qwen.FILE).write_text("".join(lines))
    (folder / "tokenization_qwen.py").write_text("raise SystemExit(9)")
    code = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    config = {"tokenizer_class": "QWenTokenizer", "auto_map": code, "model_max_length": 200}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_ids_are_tiktokens(workdir: Path) -> None:
    words = tokenizer.load(checkpoint(workdir))
    long = texts.text()[8000:20_000]
    for text in (*ODD, long, "aaaaaaa", "<|im_start|>user\nHi<|im_end|>", "a<|endoftext|>b<|extra_204|>"):
        ids = ids_of(text, RANKS)
        assert words.encode(text) == ids
        assert words.decode(ids) == unicodedata.normalize("NFC", text)
    assert len(ids_of(long, RANKS)) < 0.8 * len(long)  # it did merge

    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(codec="utf-8", max_codepoint=0x2FF), max_size=40))
    def holds(text: str) -> None:
        assert words.encode(text) == ids_of(text, RANKS)

    holds()


def test_it_is_converted_once_and_ends_with_its_own_token(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(workdir)
    words = tokenizer.load(folder)
    assert words.eos_token_id == WORDS and words.bos_token_id is None and tokenizer.concern(folder) is None
    assert WORDS in tokenizer.prompts(folder).conventions.ends
    assert words.decode([WORDS, RANKS[b"a"]], skip_special_tokens=True) == "a"
    with monkeypatch.context() as patch:
        patch.setattr(qwen, "read", None)
        assert tokenizer.load(folder).encode("the end") == words.encode("the end")
    assert folder / qwen.FILE in files_of(folder)  # it is copied with the weights
    other = {**RANKS, LAST: RANKS[b"a"], b"a": WORDS - 1}
    checkpoint(workdir, other)
    assert tokenizer.load(folder).encode("a") == [WORDS - 1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("IQ==\n", "line 1 is not a token in base64 and its rank"),
        ("IQ== 0\nI! 1\n", "line 2 is not a token"),
        ("IQ== zero\n", "line 1 is not a token"),
        ("IQ== 1\n", "ranks are not 0, 1, 2"),
        ("", "ranks are not 0, 1, 2"),
    ],
)
def test_a_file_of_no_ranks_is_one_line(text: str, why: str, workdir: Path) -> None:
    folder = checkpoint(workdir)
    (folder / qwen.FILE).write_text(text)
    with pytest.raises(UserError, match=why):
        tokenizer.load(folder)


def test_further_words_and_other_programs_are_refused(workdir: Path) -> None:
    folder = checkpoint(workdir)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "extra_vocab_file": "more.tiktoken"}))
    with pytest.raises(UserError, match="adds words with extra_vocab_file"):
        tokenizer.load(folder)
    file.write_text(json.dumps({**config, "tokenizer_class": "MyTokenizer"}))
    with pytest.raises(UserError, match="a program of the checkpoint's own"):
        tokenizer.load(folder)
    assert conversion.is_known("QWenTokenizer") is False
