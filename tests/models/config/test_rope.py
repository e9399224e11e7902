"""The rope in one form, of the two that transformers writes; numbers that cannot be are refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from pipeline.models import config
from tests import tiny
from tests.models.config import (
    LONG,
    LONG_OUTSIDE,
    Pair,
    Refused,
    assert_refused,
    assert_same_meaning,
    read,
)

PAIRS: dict[str, Pair] = {
    "plain": (
        "llama",
        {"rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "float16"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "dtype": "float16"},
    ),
    "llama3": (
        "llama",
        {"rope_theta": 5e5, "rope_scaling": tiny.LLAMA3},
        {"rope_parameters": {**tiny.LLAMA3, "rope_theta": 5e5}},
    ),
    "llama3, its type by its old name": (
        "llama",
        {"rope_scaling": tiny.LLAMA3},
        {"rope_scaling": {"type": "llama3", **{k: v for k, v in tiny.LLAMA3.items() if k != "rope_type"}}},
    ),
    "partial": (
        "phi",
        {"rope_theta": 5e5, "partial_rotary_factor": 0.25},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.25}},
    ),
    "longrope": (
        "phi3",
        {"rope_theta": 5e5, "rope_scaling": {"type": "longrope", **LONG}, **LONG_OUTSIDE},
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 5e5,
                "partial_rotary_factor": 1.0,
                "original_max_position_embeddings": 16,
                **LONG,
            },
            **LONG_OUTSIDE,
        },
    ),
    "one a type of layer": (
        "qwen2",
        {"rope_theta": 5e5, "num_hidden_layers": 2},
        {
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 5e5}
                for kind in ("full_attention", "sliding_attention")
            },
            "layer_types": ["full_attention"] * 2,
            "num_hidden_layers": 2,
        },
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_forms_mean_the_same(pair: str) -> None:
    assert_same_meaning(PAIRS[pair])


def test_transformers_reads_what_it_is_given() -> None:
    for model_type, _, new in PAIRS.values():
        ours = read(model_type, **new)
        theirs = CONFIG_MAPPING[model_type].from_dict(config.for_transformers(ours))
        scaling = theirs.rope_scaling or {}
        kind, wanted = scaling.get("rope_type", scaling.get("type")), ours["rope_scaling"] or {}
        if tiny.TRANSFORMERS == 4:
            assert theirs.rope_theta == ours["rope_theta"] and kind == wanted.get("rope_type")
            assert getattr(theirs, "partial_rotary_factor", 1.0) == ours["partial_rotary_factor"]
        else:  # version 5 keeps all of it in rope_parameters, which it also calls rope_scaling
            assert theirs.rope_parameters["rope_theta"] == ours["rope_theta"]
            assert kind == wanted.get("rope_type", "default")
            assert scaling.get("partial_rotary_factor", 1.0) == ours["partial_rotary_factor"]
        assert getattr(theirs, "sliding_window", None) == ours["sliding_window"]


OLD_GEMMA = {
    "rope_theta": 2e6,
    "rope_local_base_freq": 5e4,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
NEW_GEMMA = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e4},
    }
}


def test_gemma_3_has_a_rope_for_its_windows() -> None:
    assert_same_meaning(("gemma3_text", OLD_GEMMA, NEW_GEMMA))
    bare = {"rope_parameters": {"full_attention": None, "sliding_attention": {"rope_theta": 1e4}}}
    assert_same_meaning(("gemma3_text", {}, bare))
    theirs = CONFIG_MAPPING["gemma3_text"].from_dict(
        config.for_transformers(read("gemma3_text", **NEW_GEMMA))
    )
    if tiny.TRANSFORMERS == 4:
        assert (theirs.rope_theta, theirs.rope_local_base_freq) == (2e6, 5e4)
        assert theirs.rope_scaling["factor"] == 8.0
    else:
        assert theirs.rope_parameters["full_attention"]["factor"] == 8.0
        assert theirs.rope_parameters["full_attention"]["rope_theta"] == 2e6
        assert theirs.rope_parameters["sliding_attention"]["rope_theta"] == 5e4


NONSENSE: list[Refused] = [
    (
        "gemma3_text",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        "has not one object for full_attention and one for sliding_attention",
    ),
    (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "the rope of sliding_attention layers has the type 'linear'",
    ),
    ("gemma3_text", {**NEW_GEMMA, "rope_local_base_freq": 1e4}, "rope_local_base_freq is 10000.0, and 50000"),
    ("gemma3_text", {**NEW_GEMMA, "rope_theta": 1e4}, "rope_theta is 10000.0, and 2000000.0"),
    ("gemma3_text", {"rope_local_base_freq": 0}, "rope_local_base_freq is 0"),
    ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ("gemma2", {"final_logit_softcapping": -1.0}, "final_logit_softcapping is -1.0"),
    ("gemma2", {"head_dim": None}, "head_dim is null, and gemma2"),
    ("llama", {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "the type 'spiral'"),
    ("llama", {"rope_scaling": {"factor": 2.0}}, "the type None"),
    ("llama", {"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, r"the type \['linear'\]"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "has no factor"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "factor is '4'"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": True}}, "factor is True"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, "factor is nan"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale": 3.0}}, "'mscale'"),
    ("llama", {"rope_scaling": {**tiny.LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor must be above"),
    ("llama", {"rope_scaling": {**tiny.LLAMA3, "original_max_position_embeddings": 64.5}}, "is 64.5"),
    ("llama", {"rope_scaling": {k: v for k, v in tiny.LLAMA3.items() if k != "factor"}}, "has no factor"),
    ("llama", {"rope_scaling": {**tiny.LLAMA3, "type": "linear"}}, "type and rope_type, which differ"),
    (
        "llama",
        {"rope_scaling": tiny.LLAMA3, "original_max_position_embeddings": 128},
        "original_max_position_embeddings is 128, and 64 in rope_scaling",
    ),
    (
        "llama",
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "rope_theta is 10000.0, and 500000.0 in rope_parameters",
    ),
    (
        "llama",
        {"rope_scaling": tiny.LLAMA3, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "contradict each other",
    ),
    (
        "qwen2",
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e4},
                "sliding_attention": {"rope_theta": 1e6},
            }
        },
        "differs from layer to layer",
    ),
    (
        "phi3",
        {**LONG_OUTSIDE, "rope_scaling": {"type": "longrope", **LONG, "long_factor": [1.0]}},
        "1 numbers",
    ),
    ("phi3", {**LONG_OUTSIDE, "rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "no short_factor"),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "phi3 has longrope alone"),
    ("llama", {"head_dim": 16, "rope_scaling": {"type": "longrope", **LONG}}, "needs original_max_position"),
    (
        "phi3",
        {**LONG_OUTSIDE, "rope_scaling": {"type": "longrope", **LONG, "factor": 3.0}},
        "factor in rope_scaling is 3.0, but 4096 / 16",
    ),
    (
        "phi3",
        {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "rope_parameters": {"rope_type": "longrope", **LONG, "original_max_position_embeddings": 16},
        },
        "original_max_position_embeddings is 4096, and 16 in rope_parameters",
    ),
]


@pytest.mark.parametrize(("model_type", "keys", "why"), NONSENSE)
def test_what_no_model_has_is_refused_by_key(model_type: str, keys: dict[str, Any], why: str) -> None:
    assert_refused(model_type, keys, why)
