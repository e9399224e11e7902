"""Qwen3. Source: transformers `configuration_qwen3.py`."""

from __future__ import annotations

from typing import Any

from pipeline.models.config import qwen2

DEFAULTS: dict[str, Any] = {**qwen2.DEFAULTS, "head_dim": 128, "attention_bias": False}
FIXED: dict[str, Any] = {"partial_rotary_factor": 1.0, "mlp_bias": False}
