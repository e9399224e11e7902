"""The tokenizer of a GGUF file gives llama.cpp's ids, and those of the tokenizer that was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from pipeline.models.gguf import tokenizer
from pipeline.models.gguf.convert import convert
from pipeline.types import UserError
from tests import tiny, tiny_gguf
from tests.llamacpp_words import Words
from tests.tiny_gguf import Tiny

FILE = Path("m.gguf")
TEXTS = [
    "The grass is green.", "  naïve café — 北京 🙂\t", "3.14159e-10", "it's 2024, IT'S; we'LL",
    "a\r\nb\n\n c",
    "12345678901234567890", "   four   blanks    ", "日本語 テスト", "🙂🏳️‍🌈 é",
    "\tdef f(x):\n        return x\n",
    "<s>in</s>text<pad>", "a<tool>b</tool> <tool", "x\u00a0y\u2003z", "½ ² ٣٤ Ⅷ", "", " ", "\n",
]  # fmt: skip


def with_tokens(folder: Path) -> Path:
    """A checkpoint whose tokenizer has a user-defined token and a further special one."""
    source = tiny.tokenizer(tiny.checkpoint(folder, vocab_size=tiny.WORDS + 4))
    words = Tokenizer.from_file(str(source / "tokenizer.json"))
    words.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=False)])
    words.add_special_tokens(["<|eot_id|>", "<|quiet|>"])
    words.save(str(source / "tokenizer.json"))
    return source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokens(tmp_path_factory.mktemp("tokens") / "s")


def both(source: Path, folder: Path, keys: dict[str, Any]) -> tuple[Any, Words]:
    """The tokenizer that `export` makes, and llama.cpp's."""
    file = tiny_gguf.write(source, folder / "m.gguf", Tiny(keys=keys))
    convert(file, folder / "c")
    return AutoTokenizer.from_pretrained(folder / "c"), Words(file)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "smaug-bpe", "starcoder"])
@pytest.mark.parametrize("bos", [None, True, False])
def test_ids_are_those_of_llama_cpp(pre: str, bos: bool | None, source: Path, tmp_path: Path) -> None:
    """Without a key for the BOS llama.cpp adds one for llama-bpe and for no other."""
    keys = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": bos}
    ours, words = both(source, tmp_path, keys)
    with words as theirs:
        for text in TEXTS:
            assert ours(text).input_ids == theirs.ids(text), text
            assert ours(text, add_special_tokens=False).input_ids == theirs.ids(text, special=False), text
    assert (ours("x").input_ids[0] == 1) == (bos if bos is not None else pre == "llama-bpe")


def test_an_eos_is_added_where_the_file_says_so(source: Path, tmp_path: Path) -> None:
    ours, words = both(source, tmp_path, {"tokenizer.ggml.add_eos_token": True})
    with words as theirs:
        assert ours("The grass").input_ids == theirs.ids("The grass")
    assert ours("x").input_ids[-1] == 2


@pytest.mark.parametrize("bos", [False, True])
def test_ids_are_those_of_the_tokenizer_that_was_written(bos: bool, tmp_path: Path) -> None:
    source = tiny_gguf.source(tmp_path / "source", bos=bos)
    convert(
        tiny_gguf.write(source, tmp_path / "m.gguf", Tiny(keys={"tokenizer.ggml.add_bos_token": bos})),
        tmp_path / "c",
    )
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "c"))
    for text in TEXTS:
        assert one(text).input_ids == other(text).input_ids
        if "<" not in text:
            assert other.decode(other(text, add_special_tokens=False).input_ids) == text
    assert other("</s>", add_special_tokens=False).input_ids == [2]
    assert (other.bos_token, other.eos_token, other.model_max_length) == ("<s>", "</s>", 256)


def test_user_defined_tokens_are_shown_and_control_tokens_are_not(source: Path, tmp_path: Path) -> None:
    ours, words = both(source, tmp_path, {})
    original = AutoTokenizer.from_pretrained(source)
    ids = ours("<tool>in</tool><|quiet|><|eot_id|>", add_special_tokens=False).input_ids
    with words as theirs:
        assert ids == theirs.ids("<tool>in</tool><|quiet|><|eot_id|>", special=False)
    assert ours.decode(ids, skip_special_tokens=True) == "<tool>in</tool>"
    assert ours.decode(ids, skip_special_tokens=True) == original.decode(ids, skip_special_tokens=True)


def test_what_ends_a_turn_or_a_message_ends_a_text(source: Path, tmp_path: Path) -> None:
    words = json.loads((source / "tokenizer.json").read_text())["added_tokens"]
    number = {token["content"]: token["id"] for token in words}
    convert(tiny_gguf.write(source, tmp_path / "a.gguf"), tmp_path / "a")
    keys = {
        "tokenizer.ggml.eot_token_id": number["<|quiet|>"],
        "tokenizer.ggml.eom_token_id": number["<tool>"],
    }
    convert(tiny_gguf.write(source, tmp_path / "b.gguf", Tiny(keys=keys)), tmp_path / "b")
    ends = [
        json.loads((tmp_path / name / "generation_config.json").read_text())["eos_token_id"] for name in "ab"
    ]
    assert ends[0] == [2, number["<|eot_id|>"]]
    assert ends[1] == [2, number["<|quiet|>"], number["<tool>"], number["<|eot_id|>"]]


def test_chat_templates_and_absent_tokens() -> None:
    fields: dict[str, Any] = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.eos_token_id": 1}
    settings = tokenizer.settings(FILE, fields, 99)
    assert settings["eos_token"] == "b" and settings["model_max_length"] == 99
    assert not {"bos_token", "pad_token", "unk_token", "chat_template"} & set(settings)
    one = {**fields, "tokenizer.chat_template": "{{ x }}"}
    assert tokenizer.settings(FILE, one, 99) == {**settings, "chat_template": "{{ x }}"}
    two = {**one, "tokenizer.chat_template.tool_use": "{{ y }}", "tokenizer.chat_templates": ["tool_use"]}
    assert tokenizer.settings(FILE, two, 99)["chat_template"] == [
        {"name": "default", "template": "{{ x }}"},
        {"name": "tool_use", "template": "{{ y }}"},
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokenizer.ggml.pre": None}, "pre-tokenizer None is not known"),
        ({"tokenizer.ggml.bos_token_id": 999}, "bos_token_id is 999, and there are 300 tokens"),
        (
            {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
            "there is no bos_token_id",
        ),
        ({"tokenizer.ggml.token_type": [1, 1]}, "not one type for each token"),
        ({"tokenizer.ggml.merges": ["a nothing"]}, "no pair of its tokens"),
        ({"tokenizer.ggml.merges": None}, "no list tokenizer.ggml.merges"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "has 'a' twice"),
        ({"tokenizer.ggml.tokens": None}, "no list tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix is True"),
        ({"tokenizer.ggml.model": "t5"}, "only byte-level BPE"),
    ],
)
def test_what_contradicts_itself_is_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tiny_gguf.write(tiny_gguf.source(tmp_path / "s"), tmp_path / "m.gguf", Tiny(keys=keys))
    with pytest.raises(UserError, match=message) as caught:
        convert(file, tmp_path / "c")
    assert "\n" not in str(caught.value) and not (tmp_path / "c").exists()
