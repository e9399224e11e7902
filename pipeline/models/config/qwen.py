"""The first Qwen (1.8B to 72B, 2023). Source: the `configuration_qwen.py` that lies beside its weights.

transformers has no class of it; `models/qwen.py` has one. The first release of August 2023 had GPT-2's names
(`OLDER`), which the later revisions replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000,
    "partial_rotary_factor": 1.0,
    "seq_length": None,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "no_bias": True,
    "rope_scaling": None,
    "scale_attn_weights": True,
    "sliding_window": None,
    "use_cache_quantization": False,
    "activation": "swiglu",
    "apply_residual_connection_post_layernorm": False,
    "pos_emb": "rotary",
}
OLDER = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
}
NAMES = {
    "kv_channels": "head_dim",
    "layer_norm_epsilon": "rms_norm_eps",
    "rotary_emb_base": "rope_theta",
    "rotary_pct": "partial_rotary_factor",
}
DERIVED = ("num_key_value_heads", "head_dim")


def context(config: Mapping[str, Any]) -> int:
    """Tokens of a text, for which attention is plain: beyond `seq_length` it is scaled, and so are angles.

    Up to it the factor of `use_logn_attn` is 1 and that of `use_dynamic_ntk` is 1 (`modeling_qwen.py`).

    Args:
        config: with every key.
    """
    longest: int = config["max_position_embeddings"]
    is_scaled = config["use_dynamic_ntk"] or config["use_logn_attn"]
    return min(longest, config["seq_length"] or longest) if is_scaled else longest
