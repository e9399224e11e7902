"""Gemma 3, text alone. Source: transformers `configuration_gemma3.py`, `Gemma3TextConfig`.

Its attention passes over `attn_logit_softcapping`, which its class still has.
"""

from __future__ import annotations

from typing import Any

from pipeline.models.config import gemma2

DEFAULTS: dict[str, Any] = {
    **{key: value for key, value in gemma2.DEFAULTS.items() if key != "attn_logit_softcapping"},
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": None,
    "final_logit_softcapping": None,
}
FIXED: dict[str, Any] = {
    "partial_rotary_factor": 1.0,
    "mlp_bias": False,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
}
