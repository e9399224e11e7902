"""Sizes that contradict each other are refused by the key's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.models.gguf.convert import convert
from pipeline.types import UserError
from tests import tiny_gguf
from tests.tiny_gguf import Tiny


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.value_length", 16), ("rope.dimension_count", 16), ("vocab_size", 299),
        ("attention.head_count", [4, 2]), ("feed_forward_length", [96, 0]), ("embedding_length", None),
        ("attention.layer_norm_rms_epsilon", None), ("attention.layer_norm_rms_epsilon", float("nan")),
        ("rope.freq_base", 0.0), ("rope.freq_base", float("nan")), ("block_count", [2, 2]),
        ("context_length", [256, 256]), ("attention.head_count", [4, 4, 4]), ("context_length", "many"),
        ("attention.head_count_kv", 0),
    ],
)  # fmt: skip
def test_a_size_that_cannot_be_is_named(key: str, value: Any, tmp_path: Path) -> None:
    how = Tiny(keys={f"llama.{key}": value})
    file = tiny_gguf.write(tiny_gguf.source(tmp_path / "s"), tmp_path / "m.gguf", how)
    with pytest.raises(UserError, match=rf"llama\.{key.replace('.', '[.]')}") as caught:
        convert(file, tmp_path / "c")
    assert "\n" not in str(caught.value) and not (tmp_path / "c").exists()


def test_a_list_of_equal_sizes_is_one_size(tmp_path: Path) -> None:
    how = Tiny(keys={"llama.attention.head_count": [4, 4], "llama.feed_forward_length": [96, 96]})
    convert(tiny_gguf.write(tiny_gguf.source(tmp_path / "s"), tmp_path / "m.gguf", how), tmp_path / "c")
    assert (tmp_path / "c" / "config.json").is_file()
