"""OLMo 2. Source: transformers `configuration_olmo2.py`."""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "bos_token_id": None,
    "eos_token_id": 50279,
    "pad_token_id": 1,
}
FIXED: dict[str, Any] = {"partial_rotary_factor": 1.0, "sliding_window": None, "mlp_bias": False}
