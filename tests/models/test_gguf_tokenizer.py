"""The tokenizer of a GGUF file is the one that was written into it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.models import gguf, gguf_tokenizer
from tests import tiny
from tests.models.test_gguf import written

TEXTS = ["The grass is green.", "  naïve café — 北京 🙂\t", "3.14159e-10", "it's 2024"]


@pytest.mark.parametrize("bos", [False, True])
def test_ids_are_those_of_the_tokenizer_that_was_written(bos: bool, tmp_path: Path) -> None:
    source = tiny.tokenizer(tiny.checkpoint(tmp_path / "source", vocab_size=tiny.WORDS), bos=bos)
    gguf.convert(written(source, tmp_path / "m.gguf", bos=bos), tmp_path / "converted")
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "converted"))
    for text in TEXTS:
        assert one(text).input_ids == other(text).input_ids
        assert other.decode(other(text, add_special_tokens=False).input_ids) == text
    assert other("</s>", add_special_tokens=False).input_ids == [2]
    assert (other.bos_token, other.eos_token, other.model_max_length) == ("<s>", "</s>", 256)


def test_the_chat_template_and_absent_tokens() -> None:
    fields = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.eos_token_id": 1}
    settings = gguf_tokenizer.settings(fields, 99)
    assert settings["eos_token"] == "b" and settings["model_max_length"] == 99
    assert not {"bos_token", "pad_token", "unk_token", "chat_template"} & set(settings)
    with_template = gguf_tokenizer.settings({**fields, "tokenizer.chat_template": "{{ x }}"}, 99)
    assert with_template == {**settings, "chat_template": "{{ x }}"}


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("smollm", "a 2024", 6),  # digits one by one, the blank alone
        ("gpt-2", "a 2024", 2),
        ("llama-bpe", "a 2024", 4),  # digits by three, the blank alone
        ("qwen2", "a 2024", 6),
    ],
)
def test_numbers_are_split_as_each_family_does(name: str, text: str, pieces: int) -> None:
    splitter = gguf_tokenizer._splitter(Path("m.gguf"), name)
    assert len(splitter.pre_tokenize_str(text)) == pieces
