"""GPT-NeoX and Pythia. Source: transformers `configuration_gpt_neox.py`."""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000,
    "rope_scaling": None,
    "partial_rotary_factor": 0.25,
    "use_parallel_residual": True,
    "attention_bias": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": None,
}
FIXED: dict[str, Any] = {"sliding_window": None}
NAMES = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
DERIVED = ("num_key_value_heads", "head_dim")
