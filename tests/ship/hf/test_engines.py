"""Which engines load what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ship.hf import folders


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_engines_that_take_windows_from_an_index(model_type: str, workdir: Path) -> None:
    """Where every n-th of the layers that are left sees everything they are right; else they are named."""
    base = folders.base(workdir, model_type, num_hidden_layers=6)
    right, wrong = folders.variant(base, "block0-1"), folders.variant(base, "block0_5")
    assert all(engine.loads for engine in folders.shipped(right, name="right").engines)
    shipment = folders.shipped(wrong, name="wrong")
    named = {engine.name for engine in shipment.engines if not engine.loads}
    assert named == ({"SGLang"} if model_type == "gemma2" else {"mlx-lm"})
    assert "windows from their new indices" in shipment.described()
    patterns = [folders.config(Path(name)).get("sliding_window_pattern") for name in ("right", "wrong")]
    assert patterns == ([None, None] if model_type == "gemma2" else [2, None])


def test_every_engine_has_a_command_and_a_word(workdir: Path) -> None:
    base = folders.base(workdir, **folders.NAS)
    for i, name in enumerate(("block1", "attn1")):
        shipment = folders.shipped(folders.variant(base, name), name=f"out{i}")
        names = ["transformers", "vLLM", "SGLang", "TensorRT-LLM", "mlx-lm"]
        assert [engine.name for engine in shipment.engines] == names
        assert all("{folder}" in engine.command for engine in shipment.engines)
        assert all(engine.words() in shipment.described() for engine in shipment.engines)
        plain = shipment.plain()
        assert json.loads(json.dumps(plain)) == plain and plain["folder"] == str(Path.cwd() / f"out{i}")
        trusts = ["trust" in engine.command for engine in shipment.engines]
        assert trusts == [i == 1 and engine.name != "transformers" for engine in shipment.engines]
