"""The keys of a file."""

from __future__ import annotations

from pathlib import Path

from pipeline.models.config import normalised
from pipeline.ship.gguf import keys
from tests import tiny


def test_a_window_that_llama_cpp_has_not_is_the_context(tmp_path: Path) -> None:
    config = normalised(
        {"model_type": "mistral", **tiny.COMMON, "sliding_window": 11}, tmp_path / "config.json"
    )
    assert keys.of_whole_layers("llama", keys.cut(config, [0, 1]))["llama.context_length"] == 11
    config = normalised(
        {"model_type": "gemma2", **tiny.COMMON, "sliding_window": 11}, tmp_path / "config.json"
    )
    assert keys.of_whole_layers("gemma2", keys.cut(config, [0, 1]))["gemma2.context_length"] == 256


def test_a_map_of_low_rank_has_whole_blocks_of_rows() -> None:
    assert [keys.width(rank) for rank in (1, 32, 33)] == [32, 32, 64]
