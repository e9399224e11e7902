"""Phi-1, Phi-1.5 and Phi-2. Source: transformers `configuration_phi.py`."""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
FIXED: dict[str, Any] = {"sliding_window": None, "qk_layernorm": False}
