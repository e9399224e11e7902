"""A tokenizer is held to the checkpoint's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.models import tokenizer as tokenizers
from pipeline.ship.gguf import proof
from pipeline.types import UserError
from tests import tiny_gguf


def test_fields_that_give_other_ids_are_refused_with_the_first_text(tmp_path: Path) -> None:
    words = tokenizers.load(tiny_gguf.source(tmp_path / "m"))
    described = json.loads(words.backend.to_str())
    config = {"vocab_size": 300}
    fields = tiny_gguf._words(tmp_path / "m", config, tiny_gguf.Tiny())
    assert (
        proof.chosen(tmp_path, words, [{**fields, "tokenizer.ggml.merges": []}, fields], described)[0]
        == fields
    )
    with pytest.raises(UserError, match=r"'.*' would be .* in llama.cpp, and is"):
        proof.chosen(tmp_path, words, [{**fields, "tokenizer.ggml.merges": []}], described)
