"""Ids of a tokenizer.model are sentencepiece's own, on odd texts and on any."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from pipeline.models import tokenizer
from pipeline.models.tokenizer import CheckpointTokenizer, model_file
from pipeline.types import UserError
from tests import tiny, tiny_sentencepiece
from tests.models.gguf.test_sentencepiece import PLAIN, odd_texts
from tests.tokenizing import ODD, token

CHOSEN = ["ab", "abc", "bcd", "▁the", "①", "<tool>"]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"user_defined_symbols": []},
    "gemma": {"prefix": False},
    "no bytes": {"byte_fallback": False, "vocab_size": 400},
    "digits together": {"split_digits": False},
    "user-defined": {"user_defined_symbols": CHOSEN},
    "no extra spaces": {"remove_extra_whitespaces": True},
    "no extra spaces, no prefix": {"remove_extra_whitespaces": True, "prefix": False},
    "nmt_nfkc": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "nfkc": {"normalization_rule_name": "nfkc", "prefix": False},
    "nmt_nfkc_cf": {"normalization_rule_name": "nmt_nfkc_cf"},
    "unigram": {"kind": "unigram"},
    "unigram, nmt_nfkc": {
        "kind": "unigram", "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True,
    },
}  # fmt: skip
"""Settings of a training that models have."""
TEXTS = [
    *PLAIN,
    *ODD,
    *odd_texts(300),
    "x\u0001y",
    "\u0300a",
    "ﾊﾞ ｈａ ① ﬁ ½ e\u0301",
    "<0x0A>",
    "abcd ab<tool>the",
]
LETTERS = st.characters(exclude_categories=["Cs", "Cn", "Co", "Mn", "Mc", "Me"])
"""Without marks, which nfkc's table and the library put in another order where there are several."""


def train(folder: Path, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A folder with nothing but tokenizer.model and tokenizer_config.json."""
    tiny_sentencepiece.train(folder, **changes)
    written = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **(config or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 700}))
    return folder


@cache
def loaded(name: str) -> tuple[CheckpointTokenizer, SentencePieceProcessor]:
    """Ours and sentencepiece's."""
    folder = train(Path(mkdtemp()) / "graphs" / "m", **MODELS[name])
    return tokenizer.load(folder), tiny_sentencepiece.processor(folder)


def plain_texts(words: CheckpointTokenizer, texts: list[str]) -> list[str]:
    """Those without a special token."""
    added = [token.content for token in words.backend.get_added_tokens_decoder().values()]
    return [text for text in texts if not any(token in text for token in added)]


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_sentencepieces(name: str) -> None:
    words, theirs = loaded(name)
    texts = plain_texts(words, TEXTS)
    assert len(texts) > 330
    for text in texts:
        assert words.encode(text, add_special_tokens=False) == theirs.encode(text), text
        assert words.encode(text) == [1, *theirs.encode(text)]
    saved = Tokenizer.from_str(words.backend.to_str())  # what a shipped model reads
    assert [saved.encode(text).ids for text in texts] == [words.encode(text) for text in texts]


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=150)
@given(text=st.text(st.one_of(LETTERS, st.sampled_from(" \n\t▁ab1é🙂"))))
def test_ids_of_any_text_are_sentencepieces(name: str, text: str) -> None:
    words, theirs = loaded(name)
    if plain_texts(words, [text]):
        assert words.encode(text, add_special_tokens=False) == theirs.encode(text)


def test_a_text_comes_back() -> None:
    for name in ("llama", "gemma", "user-defined", "unigram"):
        words, _ = loaded(name)
        for text in plain_texts(words, PLAIN):
            if "▁" not in text:
                assert words.decode(words.encode(text, add_special_tokens=False)) == text


def test_a_special_token_is_followed_by_a_space_and_a_user_defined_one_is_not(workdir: Path) -> None:
    """Llama's legacy: each part of a text is sentencepiece's text; without it the first part only."""
    words, theirs = loaded("user-defined")
    assert words.encode("<s>the</s>the", False) == [1, *theirs.encode("the"), 2, *theirs.encode("the")]
    assert words.encode("a<tool>the", False) == theirs.encode("a<tool>the")
    new = tokenizer.load(train(workdir / "graphs" / "n", {"legacy": False}, **MODELS["user-defined"]))
    behind = new.encode("<s>x</s>x", False)
    assert behind[0] == 1 and behind[-2:] == [2, theirs.piece_to_id("x")]
    assert new.encode(" x", False) == theirs.encode("x")


@pytest.mark.skipif(tiny.TRANSFORMERS > 4, reason="version 4's conversion is what models were published with")
@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("prefix", [None, True, False])
def test_ids_are_those_of_transformers_4(legacy: bool | None, prefix: bool | None, workdir: Path) -> None:
    """Its fast form takes an add_prefix_space of null for false; sentencepiece and its slow form do not."""
    added = {str(i): token(text) for i, text in enumerate(("<unk>", "<s>", "</s>"))}
    config = {"legacy": legacy, "added_tokens_decoder": added, "pad_token": "</s>"}
    if prefix is not None:
        config["add_prefix_space"] = prefix
    folder = train(workdir / "graphs" / "m", config, **MODELS["llama"])
    truth, words = AutoTokenizer.from_pretrained(folder), tokenizer.load(folder)
    assert words.special == truth.special_tokens_map
    for text in TEXTS:
        ids = truth.encode(text)
        assert words.encode(text) == ids and words.decode(ids) == truth.decode(ids), text


def test_gemmas_turns_are_special(workdir: Path) -> None:
    turns = ["<start_of_turn>", "<end_of_turn>"]
    folder = train(
        workdir / "graphs" / "m",
        {"tokenizer_class": "GemmaTokenizer"},
        prefix=False,
        user_defined_symbols=[*turns, "\n\n", "▁▁"],
        unk_id=3, bos_id=2, eos_id=1, pad_id=0,
        bos_piece="<bos>", eos_piece="<eos>",
    )  # fmt: skip
    words, theirs = tokenizer.load(folder), tiny_sentencepiece.processor(folder)
    assert words.special["bos_token"] == "<bos>" and words.prefix == [2]
    text = "<start_of_turn>user\n\nhi  there<end_of_turn>"
    assert words.encode(text) == [2, *theirs.encode(text)]
    decoded = words.decode(words.encode(text), skip_special_tokens=True)
    assert decoded == "user\n\nhi  there"
    for text in plain_texts(words, TEXTS):
        assert words.encode(text, False) == theirs.encode(text)


def test_tokenizer_configs_names_and_ids_of_added_tokens_hold(workdir: Path) -> None:
    added = {"4": token("<|im_start|>"), "700": token("<pad>")}
    symbols = {"user_defined_symbols": ["<unused>", "<other>"]}
    words = tokenizer.load(train(workdir / "graphs" / "m", {"added_tokens_decoder": added}, **symbols))
    assert words.encode("<|im_start|>x<pad>", False)[0] == 4 and words.encode("<pad>", False) == [700]
    added["705"] = token("<far>")
    with pytest.raises(UserError, match=r"'<far>' has the id 705 .* and 701 beside") as caught:
        tokenizer.load(train(workdir / "graphs" / "n", {"added_tokens_decoder": added}, **symbols))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "word", "byte_fallback": False, "vocab_size": 300}, "neither BPE nor unigram"),
        ({"treat_whitespace_as_suffix": True}, "puts the space behind"),
        ({"kind": "unigram", "prefix": False}, "sentencepiece as"),
    ],
)
def test_what_the_library_has_no_form_for_is_refused(
    changes: dict[str, Any], message: str, workdir: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tokenizer.load(train(workdir / "graphs" / "m", **changes))
    assert "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)


def test_equal_scores_of_a_joined_vocabulary_are_refused(workdir: Path) -> None:
    """Of equal scores sentencepiece merges the first in the text, and the library the first in its list."""
    folder = train(workdir / "graphs" / "m", **MODELS["llama"])
    model = model_file.read(folder / "tokenizer.model")
    for piece in model.pieces:
        piece.score = 0.0
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="sentencepiece as"):
        tokenizer.load(folder)


def test_an_unused_piece_and_a_rule_of_its_own_are_refused(workdir: Path) -> None:
    folder = train(workdir / "graphs" / "m", **MODELS["nfkc"])
    file = folder / "tokenizer.model"
    model = model_file.read(file)
    model.normalizer_spec.name = "user_defined"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="rule of its own"):
        tokenizer.load(folder)
    model.normalizer_spec.name = "nfkc"
    model.pieces[500].type = model_file.UNUSED
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="unused pieces"):
        tokenizer.load(folder)


def test_a_piece_that_no_merges_lead_to_is_not_taken_whole_between_user_defined_ones(workdir: Path) -> None:
    folder = train(workdir / "graphs" / "m", **MODELS["user-defined"])
    model = model_file.read(folder / "tokenizer.model")
    rare = next(piece for piece in reversed(model.pieces) if piece.type == model_file.NORMAL)
    rare.piece, rare.score = "qzj", -2.0  # "qz" and "zj" are no pieces
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    words, theirs = tokenizer.load(folder), tiny_sentencepiece.processor(folder)
    for text in ("<tool>qzj<tool>", "<tool><0x0A><tool>", "<tool>the<tool>", "qzj", "<tool>qzj"):
        ids = words.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text) and theirs.piece_to_id("qzj") not in ids


def test_a_unigram_model_that_finds_user_defined_pieces_elsewhere_in_a_run_is_refused(workdir: Path) -> None:
    """Of three line feeds sentencepiece takes the first two or the last two, as its lattice's ties fall."""
    folder = train(workdir / "graphs" / "m", kind="unigram", prefix=False, remove_extra_whitespaces=True)
    theirs = tiny_sentencepiece.processor(folder)
    pair = theirs.piece_to_id("\n\n")
    assert theirs.encode("4\n\n\n<tool>").index(pair) == 1  # before the single one
    with pytest.raises(UserError, match=r"reads .* as .*, and sentencepiece as"):
        tokenizer.load(folder)


def test_neither_torch_nor_transformers_is_imported(workdir: Path) -> None:
    folder = train(workdir / "graphs" / "m")
    script = (
        "import sys; from pathlib import Path; from pipeline.models import tokenizer; "
        f"tokenizer.load(Path({str(folder)!r})).encode('a'); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=tiny.environment()
    )
    assert done.stdout.strip() == "[]"
