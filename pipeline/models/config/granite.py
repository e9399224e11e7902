"""Granite 3 without experts. Source: transformers `configuration_granite.py`.

The multipliers of its class are 1: of `attention_multiplier`, too, which stands for 1 / √D.
"""

from __future__ import annotations

from typing import Any

from pipeline.models.config import llama

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
FIXED: dict[str, Any] = llama.FIXED
