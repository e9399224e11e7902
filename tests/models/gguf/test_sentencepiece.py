"""A sentencepiece vocabulary gives the ids of sentencepiece, of transformers and of llama.cpp."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from pipeline.models import demo, texts
from pipeline.models.gguf import header, sentencepiece, vocabulary
from pipeline.models.gguf.convert import convert
from pipeline.models.gguf.tokenizer import tokenizer
from pipeline.types import UserError
from tests import tiny, tiny_gguf, tiny_sentencepiece
from tests.gemma import needs_gemma
from tests.llamacpp_words import Words
from tests.tiny_gguf import Tiny

FILE = Path("m.gguf")
PLAIN = [
    "The grass is green.", "  naïve café — 北京 🙂\t", "3.14159e-10", "a\r\nb\n\n c", "12345678901234567890",
    "   four   blanks    ", "日本語 テスト", "🙂🏳️‍🌈 é", "\tdef f(x):\n        return x\n", "x\u00a0y\u2003z",
    "½ ² ٣٤ Ⅷ", "", " ", "\n", "\n" * 70, " " * 70 + "x", "▁a▁▁b", "\x00\x01\x7f", "\U0010ffff", "aaaa" * 40,
    "<0x0A><0xE2>", "====****----", texts.text()[60_000:64_000],
]  # fmt: skip
SPACES = re.compile(" {4}|▁")
"""Where pieces are runs of spaces, transformers merges them; sentencepiece takes the sign for a space."""
SPECIAL = ["<s>in</s>text<unk>", "a<tool>b</tool> <tool", "<tool> <tool>\n\n</s>", "<s>", "</s> a"]


def odd_texts(count: int) -> list[str]:
    """Random strings of what tokenizers trip over."""
    chance = random.Random(0)
    parts = [*"ab \n\té北🙂▁1\r'\u0301", "  ", "the ", " of", "ing"]
    return ["".join(chance.choices(parts, k=chance.randint(1, 30))) for _ in range(count)]


def gguf(folder: Path, prefix: bool, **keys: Any) -> Path:
    """A GGUF with a vocabulary that was trained into `folder`."""
    tiny_sentencepiece.train(folder, prefix=prefix)
    source = tiny_gguf.source(folder / "s", vocab_size=tiny_sentencepiece.WORDS)
    how = Tiny(keys={**tiny_sentencepiece.keys(folder, prefix), **keys})
    return tiny_gguf.write(source, folder / "m.gguf", how)


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no-prefix"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf(tmp_path_factory.mktemp("words"), request.param)


def has_prefix(file: Path) -> bool:
    """Whether a space is put before a text: Llama 2's kind, and not Gemma's."""
    return "tokenizer.ggml.add_space_prefix" not in header.read(file).fields


def made(file: Path) -> Tokenizer:
    """The tokenizer that `export` makes."""
    return tokenizer(file, header.read(file).fields)


def test_ids_are_those_of_sentencepiece(file: Path) -> None:
    """Neither knows of special tokens in a text here."""
    words, theirs = made(file), tiny_sentencepiece.processor(file.parent)
    for text in PLAIN + odd_texts(300):
        if has_prefix(file) or "▁" not in text:
            assert words.encode(text, add_special_tokens=False).ids == theirs.encode(text), text


@pytest.mark.skipif(
    tiny.TRANSFORMERS > 4,
    reason="version 5.24 makes another tokenizer of tokenizer.model: 79 of 323 texts are not sentencepiece's",
)
def test_ids_and_texts_are_those_of_transformers(file: Path, tmp_path: Path) -> None:
    """transformers makes its tokenizer of tokenizer.model, without the GGUF."""
    theirs = AutoTokenizer.from_pretrained(file.parent, use_fast=True)
    convert(file, tmp_path / "c")
    ours = AutoTokenizer.from_pretrained(tmp_path / "c")
    for text in PLAIN + SPECIAL[:2] + odd_texts(300):
        if not has_prefix(file) and SPACES.search(text):
            continue
        ids = ours(text, add_special_tokens=False).input_ids
        assert ids == theirs(text, add_special_tokens=False).input_ids, text
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours("x").input_ids[0] == 1 and set(ours("x")) == {"input_ids", "attention_mask"}
    assert (ours.bos_token, ours.eos_token, ours.unk_token) == ("<s>", "</s>", "<unk>")


def test_ids_are_those_of_llama_cpp(file: Path) -> None:
    words = made(file)
    with Words(file) as theirs:
        for text in PLAIN + SPECIAL + odd_texts(100):
            assert words.encode(text).ids == theirs.ids(text), text
            assert words.encode(text, add_special_tokens=False).ids == theirs.ids(text, special=False), text


def test_a_text_comes_back(file: Path) -> None:
    words = made(file)
    for text in PLAIN:
        if "▁" not in text:  # which means a space
            assert words.decode(words.encode(text).ids) == text


@pytest.mark.parametrize(("bos", "eos"), [(None, None), (True, True), (False, True), (False, False)])
def test_what_stands_around_a_text_is_what_the_file_says(
    bos: bool | None, eos: bool | None, tmp_path: Path
) -> None:
    keys = {"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos}
    file = gguf(tmp_path, True, **keys)
    words = made(file)
    ids = words.encode("The grass").ids
    assert (ids[0] == 1, ids[-1] == 2) == (bos is not False, eos is True)
    with Words(file) as theirs:
        assert ids == theirs.ids("The grass")


def test_ids_without_keys_are_llama_cpps(tmp_path: Path) -> None:
    absent = {f"tokenizer.ggml.{name}_token_id": None for name in ("bos", "eos", "unknown")}
    fields = header.read(gguf(tmp_path, True, **absent)).fields
    assert [vocabulary.token_id(FILE, fields, name) for name in ("bos", "eos", "unknown")] == [1, 2, 0]
    assert vocabulary.token_id(FILE, fields, "padding") is None


def test_added_tokens_of_phi_3_take_the_spaces_behind_them(tmp_path: Path) -> None:
    file = gguf(tmp_path, True, **{"general.name": "Phi-3 mini"})
    words, plain = made(file), made(gguf(tmp_path / "plain", True))
    text = "<tool>  in</s>  text<s>  x"
    assert words.encode(text).ids != plain.encode(text).ids
    with Words(file) as theirs:
        assert words.encode(text).ids == theirs.ids(text)


def test_a_vocabulary_without_bytes_has_its_unknown_token(tmp_path: Path) -> None:
    tiny_sentencepiece.train(tmp_path, byte_fallback=False, vocab_size=400)
    fields = tiny_sentencepiece.keys(tmp_path)
    words, theirs = tokenizer(FILE, fields), tiny_sentencepiece.processor(tmp_path)
    for text in ("a 🙂🙂 b", "北京", "The grass"):
        assert words.encode(text, add_special_tokens=False).ids == theirs.encode(text)


def test_scores_that_bpe_cannot_have_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unigram = tiny_sentencepiece.keys(tiny_sentencepiece.train(tmp_path, kind="unigram"))
    with pytest.raises(UserError, match=r"m\.gguf: tokenizer\.ggml\.scores has log.*unigram") as caught:
        sentencepiece.refuse_odd(FILE, unigram)
    assert "\n" not in str(caught.value)
    fields = tiny_sentencepiece.keys(tiny_sentencepiece.train(tmp_path / "bpe"))
    count = len(fields["tokenizer.ggml.tokens"])
    for scores, message in [
        (None, "has no list tokenizer.ggml.scores"),
        ([0.0], "has not one number for each token"),
        ([float("nan")] * count, "has not one number for each token"),
        ([-1000.0] * count, "says -1000 of every token"),
    ]:
        with pytest.raises(UserError, match=message):
            sentencepiece.refuse_odd(FILE, {**fields, "tokenizer.ggml.scores": scores})
    sentencepiece.refuse_odd(FILE, fields)
    assert not caplog.text
    doubled = [*fields["tokenizer.ggml.scores"][:-1], fields["tokenizer.ggml.scores"][-2]]
    sentencepiece.refuse_odd(FILE, {**fields, "tokenizer.ggml.scores": doubled})
    assert "1 tokens share their score" in caplog.text


@needs_gemma
@pytest.mark.slow
def test_ids_of_gemma_are_those_of_llama_cpp() -> None:
    """The real vocabulary of 262,144 tokens, on odd text."""
    file = demo.gguf("gemma")
    words = made(file)
    turns = "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n<bos>x<eos>"
    more = [turns, "<h1>Hi</h1><table>", "<unused5> [multimodal] <mask>", "\t" * 40, "\u200b\u200d𝔘", "ﷺ"]
    with Words(file) as theirs:
        for text in [*PLAIN, *SPECIAL, *more, *odd_texts(300)]:
            assert words.encode(text).ids == theirs.ids(text), text
            if "▁" not in text:
                assert words.decode(words.encode(text).ids, skip_special_tokens=False) == f"<bos>{text}"
