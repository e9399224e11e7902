"""Every architecture's GGUF gives its checkpoint back: transformers' logits, and llama.cpp's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.evals.check import beside_llamacpp
from pipeline.evals.check.beside_llamacpp import LIMIT
from pipeline.models import checkpoint
from pipeline.models.gguf.dialects import DIALECTS, architecture, of_model_type
from pipeline.store.records import LlamaCppRecord
from tests import tiny_gguf
from tests.models.gguf.test_convert import converted, distance
from tests.tiny_gguf import Tiny

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 16 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
LINEAR = {"rope_type": "linear", "factor": 8.0}
WINDOW, WHOLE = "sliding_attention", "full_attention"
GEMMA = {"query_pre_attn_scalar": 32}
SOURCES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 4}, {}),
    "mistral": ("mistral", {"sliding_window": None}, {}),
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", {}, {}),
    "phi3": ("phi3", {"sliding_window": None}, {}),
    "phi3 partly rotated": ("phi3", {"sliding_window": None, "partial_rotary_factor": 0.5},
                            {"phi3.rope.dimension_count": 8}),
    "phi3 untied": ("phi3", {"sliding_window": None, "tie_word_embeddings": False}, {}),
    "phi3 longrope": ("phi3", {"sliding_window": None, "rope_scaling": LONGROPE,
                               "max_position_embeddings": 2048, "original_max_position_embeddings": 512}, {}),
    "gemma2": ("gemma2", GEMMA, {}),
    "gemma3": ("gemma3_text", {**GEMMA, "num_hidden_layers": 7, "sliding_window_pattern": 6}, {}),
    "gemma3 stretched": ("gemma3_text", {**GEMMA, "num_hidden_layers": 7, "sliding_window_pattern": 6,
                                         "rope_scaling": LINEAR},
                         {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}),
    "gemma3 of another pattern": ("gemma3_text",
                                  {**GEMMA, "num_hidden_layers": 4, "sliding_window_pattern": 2},
                                  {"gemma3.attention.sliding_window_pattern": 2}),
    "gemma3 with a window in every layer": (
        "gemma3_text", {**GEMMA, "layer_types": [WINDOW] * 2},
        {"gemma3.attention.sliding_window_pattern": 0}),
    "gemma2 with a list of windows": (
        "gemma2", {**GEMMA, "num_hidden_layers": 5, "layer_types": [WHOLE, WINDOW, WINDOW, WHOLE, WHOLE]},
        {"gemma2.attention.sliding_window_pattern": [False, True, True, False, False]}),
    "gemma3 with a list of numbers": (
        "gemma3_text",
        {**GEMMA, "num_hidden_layers": 5, "layer_types": [WINDOW, WHOLE, WHOLE, WINDOW, WINDOW]},
        {"gemma3.attention.sliding_window_pattern": [1, 0, 0, 1, 1]}),
}  # fmt: skip
"""What it is → (model_type, what its config has, further keys of its GGUF). llama.cpp runs these alike."""
ALONE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "phi3 with a window": ("phi3", {"sliding_window": 9}, {}),  # llama.cpp takes no notice of it
    "phi3 beyond longrope's switch": (
        "phi3", {**SOURCES["phi3 longrope"][1], "original_max_position_embeddings": 64}, {}),
}  # fmt: skip
"""Those that are compared with transformers only."""


@pytest.mark.parametrize("name", [*SOURCES, *ALONE])
def test_logits_are_transformers(name: str, tmp_path: Path) -> None:
    model_type, changes, keys = {**SOURCES, **ALONE}[name]
    source = tiny_gguf.source(tmp_path / "s", model_type, **changes)
    target = converted(source, Tiny(keys=keys))
    assert distance(target, source) < 1e-4
    expected, tensors = (load_file(folder / "model.safetensors") for folder in (source, target))
    assert set(tensors) == set(expected)
    for tensor, values in tensors.items():  # a norm of Gemma's has 1 added and taken away in float32
        tolerance = 1e-7 if "gemma" in model_type and tensor.endswith("norm.weight") else 0.0
        assert torch.allclose(values.float(), expected[tensor], rtol=0, atol=tolerance), tensor


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_logits_are_llama_cpps(name: str, workdir: Path) -> None:
    model_type, changes, keys = SOURCES[name]
    source = tiny_gguf.source(workdir / "s", model_type, **changes)
    file = tiny_gguf.write(source, workdir / "m.gguf", Tiny(keys=keys))
    record = beside_llamacpp.compare(checkpoint.resolve(str(file)).folder)
    assert isinstance(record, LlamaCppRecord) and record.passed and record.limit == LIMIT
    assert record.distance is not None and record.distance < 0.005


def test_a_dialect_is_found_by_its_model_type() -> None:
    assert set(DIALECTS) == {"llama", "deci", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"}
    for name, dialect in DIALECTS.items():
        assert of_model_type(dialect.model_type) is dialect
        assert dialect.model_type.startswith("llama" if name == "deci" else name)


def test_an_architecture_is_found_by_its_model_type() -> None:
    names = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "gemma3_text": "gemma3", "olmo2": None}
    assert {model_type: architecture(model_type) for model_type in names} == names
