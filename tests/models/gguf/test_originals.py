"""The original model's layer numbers, which a GGUF may give: taken where they fit, else refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.models import drop_lists
from pipeline.models.config import read_config
from pipeline.models.gguf import originals
from pipeline.models.gguf.convert import convert
from pipeline.models.gguf.header import GgufHeader
from pipeline.types import SkipSet, UserError
from tests import tiny_gguf
from tests.tiny_gguf import Tiny


def read(count: int = 3, **keys: Any) -> tuple[int, tuple[int, ...]]:
    """What the keys say of a file with so many layers."""
    fields = {f"skip_pipeline.{key}": value for key, value in keys.items()}
    return originals.read(GgufHeader(Path("m.gguf"), fields, ()), count)


@pytest.mark.parametrize(
    ("keys", "total", "indices"),
    [
        ({}, 3, (0, 1, 2)),
        ({"num_layers": 5, "layers": [0, 2, 4], "variant": "block1_3", "digest": "ab"}, 5, (0, 2, 4)),
        ({"num_layers": 3, "layers": [0, 1, 2]}, 3, (0, 1, 2)),
        ({"variant": "base"}, 3, (0, 1, 2)),
    ],
)
def test_numbers(keys: dict[str, Any], total: int, indices: tuple[int, ...]) -> None:
    assert read(**keys) == (total, indices)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_layers": 2}, r"num_layers is 2, and 3 layers are there"),
        ({"num_layers": 2**31}, r"num_layers is 2147483648"),
        ({"num_layers": -4}, r"num_layers is -4"),
        ({"num_layers": True}, r"num_layers is True"),
        ({"num_layers": None}, r"num_layers is None"),
        ({"layers": None}, r"layers is None; it needs the index of each of 3 layers"),
        ({"layers": "0,2,3"}, r"layers is '0,2,3'"),
        ({"layers": [0, 2]}, r"layers has 2 numbers"),
        ({"layers": [0.0, 2.0, 3.0]}, r"needs the index"),
        ({"layers": [-1, 2, 3]}, r"needs the index"),
        ({"layers": [0, 3, 2]}, r"not ascending: 2 follows 3"),
        ({"layers": [0, 2, 2]}, r"has 2 twice: a map stands in"),
        ({"layers": [0, 2, 4]}, r"layers has 4, and skip_pipeline\.num_layers is 4"),
        ({"window": 3}, r"skip_pipeline\.window is not understood"),
    ],
)
def test_what_contradicts_itself_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^m\.gguf: .*{message}") as caught:
        read(**{"num_layers": 4, "layers": [0, 2, 3], **keys})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "qwen2"])
def test_any_architecture_may_say_which_layers_are_gone(model_type: str, tmp_path: Path) -> None:
    """Whole blocks of it, numbered away."""
    three = tiny_gguf.source(tmp_path / "s", model_type, num_hidden_layers=3, query_pre_attn_scalar=32)
    how = Tiny(keys={"skip_pipeline.num_layers": 5, "skip_pipeline.layers": [0, 2, 4]})
    convert(tiny_gguf.write(three, tmp_path / "m.gguf", how), tmp_path / "c")
    config, own = read_config(tmp_path / "c"), read_config(three)
    assert drop_lists.skip_set(config, tmp_path) == SkipSet.parse("block1_3")
    assert [config["layer_types"][i] for i in (0, 2, 4)] == [
        *({"gemma3_text": ["sliding_attention"] * 3}.get(model_type, own["layer_types"]))
    ]
    tensors, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "c", three))
    assert {name.split(".")[2] for name in tensors if ".layers." in name} == {"0", "2", "4"}
    for one, two in ((0, 0), (2, 1), (4, 2)):
        part = "mlp.up_proj.weight"
        assert torch.equal(
            tensors[f"model.layers.{one}.{part}"].float(), expected[f"model.layers.{two}.{part}"]
        )
