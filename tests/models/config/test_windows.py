"""Which layers have a window: both forms mean the same, contradictions are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models.config import Pair, Refused, assert_refused, assert_same_meaning

SLIDING = {"use_sliding_window": True, "sliding_window": 9, "num_hidden_layers": 4}
PAIRS: dict[str, Pair] = {
    "layer_types": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "num_hidden_layers": 2},
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
            "num_hidden_layers": 2,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "gemma 2's own pattern": (
        "gemma2",
        {"num_hidden_layers": 3},
        {
            "num_hidden_layers": 3,
            "sliding_window": 4096,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma 3's first form": (
        "gemma3_text",
        {"num_hidden_layers": 4, "sliding_window": 9, "sliding_window_pattern": 3},
        {
            "num_hidden_layers": 4,
            "sliding_window": 9,
            "sliding_window_pattern": 3,
            "layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"],
        },
    ),
    "gemma 3's own pattern": (
        "gemma3_text",
        {"num_hidden_layers": 7},
        {
            "num_hidden_layers": 7,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        },
    ),
    "layers without rope": (
        "smollm3",
        {**SLIDING, "no_rope_layer_interval": 2},
        {
            **SLIDING,
            "no_rope_layer_interval": 2,
            "no_rope_layers": [1, 0] * 2,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "types that say what the window says": (
        "mistral",
        {"num_hidden_layers": 2, "sliding_window": 9},
        {"num_hidden_layers": 2, "sliding_window": 9, "layer_types": ["sliding_attention"] * 2},
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_forms_mean_the_same(pair: str) -> None:
    assert_same_meaning(PAIRS[pair])


WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
NONSENSE: list[Refused] = [
    ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
    ("mistral", {"sliding_window": 8, "use_sliding_window": False}, "use_sliding_window is false"),
    (
        "qwen2",
        {**WINDOW, "num_hidden_layers": 2, "layer_types": ["full_attention"]},
        "1 entries for 2 layers",
    ),
    (
        "qwen2",
        {**WINDOW, "num_hidden_layers": 1, "layer_types": ["chunked_attention"]},
        "'chunked_attention'",
    ),
    ("qwen2", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "layer_types contradicts"),
    ("llama", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "layer_types contradicts"),
    ("mistral", {"num_hidden_layers": 1, "layer_types": ["full_attention"]}, "layer_types contradicts"),
    ("gemma2", {"sliding_window": None}, "sliding_window is null, but layer 0 has a window"),
    ("gemma3_text", {"num_hidden_layers": 1, "layer_types": ["chunked_attention"]}, "'chunked_attention'"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
    ("smollm3", {"num_hidden_layers": 1, "sliding_window": 8, "layer_types": ["sliding_attention"]}, "none"),
    ("qwen2", {"layer_types": "full_attention"}, "layer_types is 'full_attention'"),
]


@pytest.mark.parametrize(("model_type", "keys", "why"), NONSENSE)
def test_what_no_model_has_is_refused_by_key(model_type: str, keys: dict[str, Any], why: str) -> None:
    assert_refused(model_type, keys, why)
