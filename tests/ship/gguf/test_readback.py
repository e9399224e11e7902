"""What a file is taken for."""

from __future__ import annotations

from pathlib import Path

from pipeline.models.config import normalised
from pipeline.models.gguf import tensors
from pipeline.models.gguf.dialects import DIALECTS
from pipeline.ship.gguf import keys, readback
from tests import tiny


def test_a_key_that_says_something_else_is_named(tmp_path: Path) -> None:
    config = keys.cut(normalised({"model_type": "llama", **tiny.COMMON}, tmp_path / "config.json"), [0, 1])
    names, given = tensors.places(config, DIALECTS["llama"]), keys.of_whole_layers("llama", config)
    assert readback.difference(readback.unwritten(given, names, 96), config) is None
    for key, value, word in (("rope.freq_base", 5.0, "rope_theta"), ("context_length", 9, "max_position")):
        said = readback.difference(readback.unwritten({**given, f"llama.{key}": value}, names, 96), config)
        assert said is not None and word in said
